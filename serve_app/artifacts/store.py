"""The store: a folder of immutable bundles and one atomic pointer to the served one.

    MODEL_DIR/
        bundles/<version>-<digest>/    a bundle; never changed after its folder has its name
        current -> bundles/<...>       the pointer; a rename replaces it
        model.joblib, metadata.json, metrics.json -> current/<name>

Writers take a lock and write under temporary names, so readers need no lock: the pointer always names a complete bundle. A writer
that is killed leaves the old or the new pointer, and temporary files that the next writer removes.

MODEL_DIR itself may be a link. Inside it, only the names above are links. The store opens `bundles`, its folders and every file
without following links, so it reads, changes and removes nothing outside the store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serve_app.artifacts.bundle import Bundle, check_bundle, folder_name, parse_folder, read_bundle, read_manifest
from serve_app.artifacts.durable import (
    LINK,
    clear_rubbish,
    discard,
    link_of,
    open_lock,
    replace_link,
    sync_folder,
    write_file,
)
from serve_app.artifacts.legacy import adopt, legacy_stamp, read_legacy
from serve_app.artifacts.manifest import Manifest, describe, sha256
from serve_app.artifacts.names import JOBLIB, LEGACY_FILES, MANIFEST, METRICS, SEAL
from serve_app.artifacts.read_policy import ReadPolicy
from serve_app.artifacts.regular_file import open_folder
from serve_app.artifacts.signing import Sign
from serve_app.errors import BundleRefused, StoreError

CURRENT = "current"
BUNDLES = "bundles"
LOCK = ".lock"
MAX_VERSION = 10**18 - 1
KEEP = 10
"""Number of bundles that a store keeps by default; it never removes the served bundle."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the store's listing; `manifest` is None for a damaged bundle.

    `skipped` has one message for each damaged version that a roll-back skipped to reach this version.
    """

    version: int
    digest: str
    served: bool
    manifest: Manifest | None
    folder: Path
    skipped: tuple[str, ...] = ()


Check = Callable[[Entry], None]
"""Raises StoreError for a version that must not be served. The store calls it before it changes anything."""


class Store:
    """The folder of bundles at `root` (MODEL_DIR). Readers do not write, so they can use a read-only mount."""

    def __init__(self, root: Path | str, *, keep: int = KEEP) -> None:
        if keep < 1:
            raise ValueError("a store keeps at least one bundle")
        self.root = Path(root)
        self.keep = keep

    # --- reading

    def pointer(self) -> str | None:
        """A string that names the served version and changes with it; None without a model. Costs one system call."""
        try:
            return os.readlink(self.root / CURRENT)
        except FileNotFoundError:
            stamp = legacy_stamp(self.root)
            # The second look finds the pointer of a first publication that ran in between.
            return None if stamp is None else link_of(self.root / CURRENT) or f"plain:{stamp}"
        except OSError as error:
            # `current` is not a link, or the volume does not respond; the store may hold a model.
            raise BundleRefused("pointer", f"the store's pointer cannot be read ({error.strerror})", final=False) from None

    def read(self, pointer: str, policy: ReadPolicy | None = None) -> Bundle:
        """The verified bundle that `pointer` (from `pointer()`) names; raises BundleRefused.

        With a policy, it reads only the files that the policy allows and uses.
        """
        if pointer.startswith("plain:"):
            legacy = read_legacy(self.root, policy)
            if legacy is None or os.path.lexists(self.root / CURRENT):
                raise BundleRefused("unreadable", "the model's files are being written", final=False)
            return legacy
        return read_bundle(self._target(pointer), policy)

    def current(self, policy: ReadPolicy | None = None) -> Bundle | None:
        """The served bundle, verified; None for an empty store."""
        while (pointer := self.pointer()) is not None:
            try:
                return self.read(pointer, policy)
            except BundleRefused as error:
                if error.final or self.pointer() == pointer:
                    raise  # otherwise a writer replaced and removed this bundle
        return None

    def entries(self) -> list[Entry]:
        """Every bundle, oldest version first. A damaged bundle has no manifest. Raises StoreError."""
        try:
            return self._entries(link_of(self.root / CURRENT))
        except OSError as error:
            raise StoreUnavailable(f"the store {self.root} cannot be read: {error.strerror}") from error

    def served(self) -> Entry | None:
        """The line of the served version; None without one."""
        return next((entry for entry in self.entries() if entry.served), None)

    # --- writing

    def publish(
        self,
        files: Mapping[str, bytes],
        manifest: Manifest,
        *,
        version: int | None = None,
        expected: str | None = None,
        check: bool = False,
        sign: Sign | None = None,
    ) -> Entry:
        """Put a bundle into the store and point to it; returns its entry.

        It uses `version` when the number is free, otherwise the next free number. With `check`, it raises PointerMoved when the
        pointer is not `expected`, because another writer published in between. `sign` seals the bundle. Raises StoreError; the
        store is unchanged then.
        """
        missing = [name for name in (JOBLIB, METRICS) if name not in files]
        if missing:
            raise ValueError(f"a bundle needs {' and '.join(missing)}")
        with self._writing():
            if check and self.pointer() != expected:
                raise PointerMoved("another process published a model meanwhile")
            self._adopt_legacy()
            folder = self._write(files, manifest, version, sign)
            try:
                check_bundle(folder)  # proves that the bundle can be read back before it is served
                self._point(folder.name)
            except BaseException:
                if link_of(self.root / CURRENT) != f"{BUNDLES}/{folder.name}":
                    discard(folder)
                raise
            with contextlib.suppress(StoreError):  # the new model is already served; the next writer prunes
                self._prune()
            return self._entry(folder, served=True)

    def promote(self, version: int, *, check: Check | None = None) -> Entry:
        """Point to a version of the store; raises StoreError when it is missing or damaged, or `check` refuses it."""
        if not self.entries():  # do not create a mistyped folder
            raise StoreError(f"{self.root} holds no published model, so there is no version {version}")
        with self._writing():
            return self._promote(version, check)

    def roll_back(self, *, check: Check | None = None) -> Entry:
        """Point to the newest undamaged version that is older than the served one.

        The entry's `skipped` names the damaged versions between the two. Raises StoreError without such a version, or when `check`
        refuses it.
        """
        if not self.entries():
            raise StoreError(f"{self.root} serves no published model, so there is nothing to roll back")
        with self._writing():
            entries = self.entries()
            served = next((entry.version for entry in entries if entry.served), None)
            if served is None:
                raise StoreError(f"{self.root} serves no published model, so there is nothing to roll back")
            older = [entry.version for entry in entries if entry.version < served]
            if not older:
                raise StoreError(f"version {served} is the oldest in {self.root}, so there is no version to roll back to")
            return self._promote_newest(reversed(older), check)

    def prune(self) -> None:
        """Remove the oldest bundles beyond `keep`; raises StoreError."""
        with self._writing():
            self._prune()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of writers on the bundles and the pointer; raises StoreError."""
        with self._writing():
            yield

    def take_over(
        self, staged: Store, names: Iterable[str], served: str | None, *, held: Set[str], check: Check | None = None
    ) -> None:
        """Move the bundles `names` from a store on the same volume into this store; point to `served` unless a model is served.

        `held` names the bundles that this store had when the caller listed it. Raises StoreError when it holds others now, when a
        bundle is damaged, or when `check` refuses the version to serve; the store is unchanged then.
        """
        folders = [staged.root / BUNDLES / name for name in names]
        for folder in folders:
            try:
                check_bundle(folder)
            except BundleRefused as error:
                raise StoreError(f"the bundle {folder.name[:20]} is damaged, so nothing was added to the store: {error}") from error
        with self._writing():
            if {entry.folder.name for entry in self.entries()} != held:
                raise StoreError(f"another process changed {self.root} meanwhile, so nothing was added: run the command again")
            target = served if self.pointer() is None else None
            if target is not None and check is not None:
                home = staged.root if any(folder.name == target for folder in folders) else self.root
                check(self._entry(home / BUNDLES / target, served=False))
            moved: list[Path] = []
            try:
                for folder in folders:
                    os.rename(folder, self.root / BUNDLES / folder.name)
                    moved.append(self.root / BUNDLES / folder.name)
                sync_folder(self.root / BUNDLES)
                if target is not None:
                    check_bundle(self.root / BUNDLES / target)
                    self._point(target)
            except BaseException:
                if target is None or link_of(self.root / CURRENT) != f"{BUNDLES}/{target}":
                    for folder in moved:
                        discard(folder)
                raise

    # --- inside

    def _target(self, pointer: str) -> Path:
        parent, _, name = pointer.rpartition("/")
        if parent != BUNDLES or parse_folder(name) is None:
            raise BundleRefused("pointer", "the store's pointer does not name a bundle of this store")
        return self.root / BUNDLES / name

    def _entries(self, pointer: str | None) -> list[Entry]:
        try:
            names = os.listdir(self.root / BUNDLES)
        except FileNotFoundError:
            return []
        folders = [self.root / BUNDLES / name for name in names if parse_folder(name)]
        entries = [self._entry(folder, served=pointer == f"{BUNDLES}/{folder.name}") for folder in folders]
        return sorted(entries, key=lambda entry: entry.version)

    def _entry(self, folder: Path, *, served: bool) -> Entry:
        parsed = parse_folder(folder.name)
        assert parsed is not None
        manifest: Manifest | None = None
        with contextlib.suppress(OSError, BundleRefused):
            manifest = read_manifest(folder)
        return Entry(*parsed, served=served, manifest=manifest, folder=folder)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock of writers; raises StoreError for every error of the volume."""
        try:
            (self.root / BUNDLES).mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as handles:
                root = self._handle(handles, self.root, follow=True)
                bundles = self._handle(handles, self.root / BUNDLES)
                lock = open_lock(root, LOCK)
                handles.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
                clear_rubbish(bundles)
                self._clear_links(root)
                yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise StoreUnavailable(
                f"the store {self.root} cannot be written: {error.strerror}{where}; nothing was published"
            ) from error
        except BundleRefused as error:
            raise StoreUnavailable(f"the store {self.root} cannot be written: {error}; nothing was published") from error

    def _handle(self, handles: contextlib.ExitStack, folder: Path, *, follow: bool = False) -> int:
        """The handle of a folder of the store, valid until `handles` are closed; raises OSError."""
        if not follow and folder.is_symlink():
            raise OSError(errno.ELOOP, "it is a link; set MODEL_DIR to the target instead", str(folder))
        handle = open_folder(folder, follow=follow)
        handles.callback(os.close, handle)
        return handle

    def _clear_links(self, root: int) -> None:
        """Remove the links that a killed writer left. The caller holds the lock, so no running writer owns them."""
        for name in os.listdir(root):
            if name.startswith(LINK):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=root)

    def _free_version(self, requested: int | None) -> int:
        taken = {parsed[0] for name in os.listdir(self.root / BUNDLES) if (parsed := parse_folder(name))}
        if requested is not None and 0 < requested <= MAX_VERSION and requested not in taken:
            return requested
        return max(taken, default=0) + 1

    def _write(self, files: Mapping[str, bytes], manifest: Manifest, requested: int | None, sign: Sign | None = None) -> Path:
        """Write a bundle durably under a temporary name, the manifest last, and rename it; returns the folder."""
        number = self._free_version(requested)
        raw = describe(files, msgspec.structs.replace(manifest, version=number))
        aside = self.root / BUNDLES / f".{uuid.uuid4().hex}"
        folder = self.root / BUNDLES / folder_name(number, sha256(raw))
        aside.mkdir()
        try:
            for name, data in files.items():
                write_file(aside / name, data)
            if sign is not None:
                write_file(aside / SEAL, sign(sha256(raw)))
            write_file(aside / MANIFEST, raw)
            sync_folder(aside)
            os.rename(aside, folder)
            sync_folder(self.root / BUNDLES)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            discard(folder)
            raise
        return folder

    def _point(self, name: str) -> None:
        """Create the legacy names, which lead through the pointer, and then move the pointer as the last step that can fail."""
        self._link_legacy_names()
        replace_link(self.root / CURRENT, f"{BUNDLES}/{name}")

    def _link_legacy_names(self) -> None:
        for name in LEGACY_FILES:
            path, target = self.root / name, f"{CURRENT}/{name}"
            if link_of(path) == target:
                continue
            if path.is_file() and not os.path.lexists(self.root / CURRENT):
                # Keep the bytes of a model that cannot be served and cannot become a bundle.
                os.replace(path, self.root / f"replaced-{name}")
            replace_link(path, target)

    def _adopt_legacy(self) -> None:
        """Keep the model of a legacy layout as a bundle, so a roll-back can reach it."""
        if os.path.lexists(self.root / CURRENT):
            return
        try:
            legacy = read_legacy(self.root)
            if legacy is None:
                return
            files, manifest = adopt(legacy)
        except BundleRefused as error:
            if not error.final:  # another process is writing these files
                raise
            return
        folder = self._write(files, manifest, int(legacy.version) if legacy.version.isdigit() else None)
        replace_link(self.root / CURRENT, f"{BUNDLES}/{folder.name}")
        self._link_legacy_names()

    def _promote_newest(self, versions: Iterable[int], check: Check | None) -> Entry:
        """Point to the first undamaged version; raises StoreError when all are damaged or `check` refuses it."""
        skipped: list[str] = []
        for version in versions:
            try:
                return dataclasses.replace(self._promote(version, check), skipped=tuple(skipped))
            except DamagedVersion as error:
                skipped.append(str(error))
        raise StoreError("; ".join(skipped))

    def _promote(self, version: int, check: Check | None) -> Entry:
        entry = next((entry for entry in self.entries() if entry.version == version), None)
        if entry is None:
            known = ", ".join(str(entry.version) for entry in self.entries()) or "none"
            raise StoreError(f"{self.root} holds no version {version}; it holds: {known}")
        try:
            check_bundle(entry.folder)
        except BundleRefused as error:
            raise DamagedVersion(f"version {version} is damaged and was not promoted: {error}") from error
        if check is not None:
            check(entry)
        self._adopt_legacy()
        self._point(entry.folder.name)
        return self._entry(entry.folder, served=True)

    def _prune(self) -> None:
        entries = self.entries()
        for entry in [entry for entry in entries if not entry.served][: max(0, len(entries) - self.keep)]:
            discard(entry.folder)


class DamagedVersion(StoreError):
    """A version of the store is damaged and cannot be served."""


class PointerMoved(StoreError):
    """Another writer moved the pointer between the comparison and the change."""


class StoreUnavailable(StoreError):
    """The volume of the store cannot be read, or takes no change."""
