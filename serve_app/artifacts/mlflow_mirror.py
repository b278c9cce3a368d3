"""The mirror: copies of the versions that the alias in MLflow named, so a replica can serve them without MLflow.

If the store is writable, a copy is a bundle of the store, and the store's pointer follows the alias. Otherwise it is a bundle in a
folder of this machine. A small file beside the bundles names the version that the replica last took from MLflow, and its bundle.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from serve_app.artifacts.bundle import Bundle, folder_name, parse_folder
from serve_app.artifacts.durable import discard, replace_file, sync_folder, write_file
from serve_app.artifacts.manifest import parse_manifest, sha256
from serve_app.artifacts.mlflow_source import Files
from serve_app.artifacts.mlflow_version import PREFIX, RegisteredVersion
from serve_app.artifacts.names import MANIFEST, SEAL
from serve_app.artifacts.read_policy import ReadPolicy
from serve_app.artifacts.regular_file import UnfitFile, read_regular
from serve_app.artifacts.staging import staging
from serve_app.artifacts.store import BUNDLES, Entry, Store
from serve_app.errors import BundleRefused, IrisApiError, StoreError

ORIGIN = "mlflow"
"""Origin of a bundle that was made from a model without a bundle."""
RECORD = ".mlflow-alias.json"
MAX_RECORD_BYTES = 16 * 1024
CACHED = 3
"""Number of bundles that the folder of this machine keeps."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The version that the replica last took from MLflow, and its copy.

    `digest` is the served digest; `bundle` is the folder's name of the copy. They differ for a model without a bundle in MLflow.
    """

    name: str
    alias: str
    pointer: str
    version: str
    digest: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    bundle: str
    changed_at: float
    """When the version was registered, in seconds since 1970."""
    at: float
    """When the replica took it, in seconds since 1970."""


class Mirror:
    """The copies of one registered model's alias. `keep` and `note` may run in a separate thread; the others only read."""

    def __init__(self, store: Store, cache: Path, *, name: str, alias: str) -> None:
        self._store = store
        self._cache = Store(cache, keep=CACHED)
        self._name = name
        self._alias = alias
        self._lock = threading.Lock()

    def last(self) -> Record | None:
        """The version that the replica last took from MLflow; None without a version."""
        records = [record for home in (self._store, self._cache) if (record := self._record(home)) is not None]
        return max(records, key=lambda record: record.at, default=None)

    def find(self, pointer: str, digest: str | None = None) -> Record | None:
        """The copy of the version with this pointer, or the bundle of the store with this digest; None without a copy."""
        for home in (self._store, self._cache):
            record = self._record(home)
            if record is not None and record.pointer == pointer and self._home(record.bundle) is not None:
                return record
        entry = None if digest is None else self._entry(digest)
        if entry is None:
            return None
        return self._described(pointer, str(entry.version), entry.digest, entry.folder.name, 0.0)

    def read(self, record: Record, policy: ReadPolicy | None) -> Bundle:
        """The copy as a verified bundle; raises BundleRefused."""
        home = self._home(record.bundle)
        if home is None:
            raise BundleRefused("unreadable", "the copy of the version in MLflow is gone", final=False)
        bundle = home.read(f"{BUNDLES}/{record.bundle}", policy)
        if bundle.manifest.origin != ORIGIN:  # only a model without a bundle in MLflow uses the digest of the record
            return replace(bundle, source="mlflow")
        return replace(bundle, version=record.version, digest=record.digest, source="mlflow")

    def keep(self, version: RegisteredVersion, served: Bundle, raw: bytes, seal: bytes | None, files: Files) -> str:
        """Store the bundle with this manifest unless it exists, point to it, and write the record; returns the folder.

        `served` is the bundle that the replica serves. Raises StoreError when it can write neither the store nor the folder of this
        machine.
        """
        manifest = parse_manifest(raw)
        name = folder_name(manifest.version or 0, sha256(raw))
        if parse_folder(name) is None:
            raise StoreError(f"version {version.version} in MLflow cannot be the version of a bundle")
        record = self._described(version.pointer, served.version, served.digest, name, version.changed_at)
        with self._lock:
            home = self._place(name)
            try:
                self._put(home, name, raw, seal, files)
            except (StoreError, OSError):
                if home is self._cache:
                    raise
                home = self._cache
                self._put(home, name, raw, seal, files)
            self._point(home, name)
            replace_file(home.root / RECORD, msgspec.json.encode(record))
        return str(home.root)

    def note(self, version: RegisteredVersion, served: Bundle, bundle: str) -> str:
        """Do the same as `keep` for a version whose bundle is already stored."""
        record = self._described(version.pointer, served.version, served.digest, bundle, version.changed_at)
        with self._lock:
            home = self._home(bundle)
            if home is None:
                raise StoreError("the copy of the version in MLflow is gone")
            is_written = home is self._cache or self._writes_store()
            if is_written:
                self._point(home, bundle)
            place = home if is_written else self._cache
            _make_private(self._cache.root) if place is self._cache else None
            replace_file(place.root / RECORD, msgspec.json.encode(record))
        return str(home.root)

    # --- inside

    def _writes_store(self) -> bool:
        root = self._store.root
        folder = root if os.path.lexists(root) else root.parent
        return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)

    def _place(self, name: str) -> Store:
        """The place for a bundle of this name: the store, unless it is read-only or holds another bundle with this version."""
        parsed = parse_folder(name)
        if parsed is None or not self._writes_store():
            return self._cache
        is_taken = any(entry.version == parsed[0] and entry.folder.name != name for entry in self._store.entries())
        return self._cache if is_taken else self._store

    def _put(self, home: Store, name: str, raw: bytes, seal: bytes | None, files: Files) -> None:
        if home is self._cache:
            _make_private(home.root)
            self._forget(name)
        put_bundle(home, name, raw, seal, files)

    def _forget(self, name: str) -> None:
        """Remove bundles with the same version from the folder of this machine; they belong to another registered model."""
        for entry in self._cache.entries():
            if str(entry.version) == name.partition("-")[0] and entry.folder.name != name:
                discard(entry.folder)

    def _point(self, home: Store, name: str) -> None:
        if home.pointer() != f"{BUNDLES}/{name}":
            parsed = parse_folder(name)
            assert parsed is not None
            home.promote(parsed[0])
        if home is self._cache:
            with contextlib.suppress(StoreError):
                home.prune()

    def _home(self, bundle: str) -> Store | None:
        for home in (self._store, self._cache):
            if (home.root / BUNDLES / bundle).is_dir() and (home is self._store or _is_private(home.root)):
                return home
        return None

    def _entry(self, digest: str) -> Entry | None:
        """The bundle of the store with this digest."""
        with contextlib.suppress(StoreError):
            return next((entry for entry in self._store.entries() if entry.digest == digest and entry.manifest is not None), None)
        return None

    def _described(self, pointer: str, version: str, digest: str, bundle: str, changed_at: float) -> Record:
        return Record(
            name=self._name,
            alias=self._alias,
            pointer=pointer,
            version=version,
            digest=digest,
            bundle=bundle,
            changed_at=changed_at,
            at=time.time(),
        )

    def _record(self, home: Store) -> Record | None:
        """The record of a folder; None when it is invalid or belongs to another model or alias."""
        if home is self._cache and not _is_private(home.root):
            return None
        try:
            record = msgspec.json.decode(read_regular(home.root / RECORD, MAX_RECORD_BYTES), type=Record)
        except (OSError, UnfitFile, msgspec.MsgspecError, ValueError):
            return None
        is_ours = (record.name, record.alias) == (self._name, self._alias) and record.pointer.startswith(PREFIX)
        return record if is_ours and parse_folder(record.bundle) is not None else None


def put_bundle(store: Store, name: str, raw: bytes, seal: bytes | None, files: Files) -> None:
    """Write a bundle that was published elsewhere into the store, unless the store holds it.

    `name` is the name of its folder; `raw` holds the bytes of its manifest. Raises StoreError and the errors of `files`.
    """
    if name in {entry.folder.name for entry in store.entries()}:
        return
    store.root.mkdir(parents=True, exist_ok=True)
    with staging(store.root) as folder:
        aside = folder / BUNDLES / name
        aside.mkdir(parents=True)
        for file, data in files():
            write_file(aside / file, data)
        if seal is not None:
            write_file(aside / SEAL, seal)
        write_file(aside / MANIFEST, raw)
        sync_folder(aside)
        held = {entry.folder.name for entry in store.entries()}
        store.take_over(Store(folder), [name], None, held=held)


def _make_private(folder: Path) -> None:
    """Create the folder for this user only; raises StoreError when it belongs to another user."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be created ({error.strerror}): set IRIS_CACHE_DIR") from error
    if not _is_private(folder):
        raise StoreError(f"other users can write {folder}: set IRIS_CACHE_DIR to a folder that only this user can write")


def _is_private(folder: Path) -> bool:
    """Whether the folder belongs to this user and no other user can write it, because its contents decide what is served."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


Unkept = (IrisApiError, OSError, ValueError)
"""Errors that `keep` and `note` raise when they cannot make a copy."""
