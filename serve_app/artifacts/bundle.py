"""A bundle: the immutable folder of one version, and the check that its bytes are those that were published.

The name of the folder is `<version>-<digest>`. The digest is the sha256 of `metadata.json`, which lists the size and the sha256 of
every other file. The name therefore proves every byte. The functions here compare the digest of a file before they parse it.

They read a bundle in this order: the manifest, the seal, the sizes, then the files. They hash files that the replica does not use
piece by piece, and do not keep them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.artifacts.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest, json_object, parse_manifest, sha256
from serve_app.artifacts.manifest_bounds import MAX_GOLDEN_BYTES, MAX_GOLDEN_VALUES, MAX_METRICS_BYTES
from serve_app.artifacts.memory_limit import max_model_bytes
from serve_app.artifacts.names import GOLDEN, MANIFEST, METRICS, SEAL, VERSION
from serve_app.artifacts.read_policy import ReadPolicy, check_seal, used_files
from serve_app.artifacts.regular_file import UnfitFile, hash_regular, open_folder, read_regular
from serve_app.artifacts.signature import Signature
from serve_app.artifacts.signing import MAX_SEAL_BYTES
from serve_app.errors import BundleRefused
from serve_app.printable import printable

_FOLDER = re.compile(r"(?P<version>[1-9][0-9]{0,17})-(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Bundle:
    """One version, read and verified.

    `files` holds the bytes of the files that the replica uses, as they were hashed, so nothing reads the disk again. `advice` says
    what to do when the model cannot be loaded. Raises BundleRefused `manifest` for a version that cannot be part of a header.
    """

    version: str
    digest: str
    manifest: Manifest
    metrics: Mapping[str, Any]
    files: Mapping[str, bytes] = field(repr=False)
    source: str = "store"
    seal: bytes | None = field(default=None, repr=False)
    advice: str | None = None

    def __post_init__(self) -> None:
        if not VERSION.fullmatch(self.version):
            raise BundleRefused("manifest", "the version must have 1 to 64 letters, digits, points, dashes or underscores")

    @property
    def signature(self) -> Signature | None:
        """The manifest's signature; None for a model without a manifest of this project."""
        return self.manifest.signature

    @property
    def etag(self) -> str:
        """The digest as an HTTP entity tag."""
        return f'"{self.digest}"'


def folder_name(version: int, digest: str) -> str:
    """The name of a bundle's folder."""
    return f"{version}-{digest}"


def parse_folder(name: str) -> tuple[int, str] | None:
    """Version and digest of a folder's name; None for a folder that is not a bundle."""
    match = _FOLDER.fullmatch(name)
    return (int(match["version"]), match["digest"]) if match else None


def read_bundle(folder: Path, policy: ReadPolicy | None = None) -> Bundle:
    """Read and verify a folder of the store. Without a policy, it needs no seal and reads every form of the model.

    Raises BundleRefused: `pointer` (the name is not that of a bundle), `manifest`, `digest`, `signature`, `unsigned`, `forbidden`,
    or `unreadable`. Only `unreadable` may pass without a change to the bundle.
    """
    with _opened(folder) as (handle, version, digest):
        raw, seal = _proven_manifest(handle, version, digest), _seal(handle)
        if policy is not None:
            check_seal(digest, seal, policy.verify)
        manifest = _parsed_manifest(raw, version)
        used = used_files(manifest.files, policy)
        check_sizes(manifest.files, used)
        return _bundle(str(version), digest, manifest, _read_files(handle, manifest, used), "store", seal)


def check_bundle(folder: Path) -> None:
    """Verify every file of a folder of the store without keeping the model in memory; raises BundleRefused."""
    with _opened(folder) as (handle, version, digest):
        manifest = _parsed_manifest(_proven_manifest(handle, version, digest), version)
        used = {METRICS} & manifest.files.keys()
        check_sizes(manifest.files, used)
        _bundle(str(version), digest, manifest, _read_files(handle, manifest, used), "store", None)


def read_manifest(folder: Path) -> Manifest:
    """The verified manifest of a folder of the store, without the other files; raises BundleRefused."""
    with _opened(folder) as (handle, version, digest):
        return _parsed_manifest(_proven_manifest(handle, version, digest), version)


def manifest_bytes(folder: Path) -> bytes:
    """The verified bytes of the manifest of a folder of the store; raises BundleRefused."""
    with _opened(folder) as (handle, version, digest):
        return _proven_manifest(handle, version, digest)


def verify_files(
    version: str,
    digest: str,
    raw: bytes,
    files: Mapping[str, bytes],
    *,
    source: str,
    seal: bytes | None = None,
    policy: ReadPolicy | None = None,
) -> Bundle:
    """Verify the used files of a bundle that came over the network; `raw` holds the bytes of its manifest."""
    if sha256(raw) != digest:
        raise BundleRefused("digest", f"{MANIFEST} does not have the published digest")
    manifest = parse_manifest(raw)
    for name in files.keys() & manifest.files.keys():
        _check_digest(name, manifest.files[name], len(files[name]), sha256(files[name]))
    for name in used_files(manifest.files, policy) - files.keys():
        raise BundleRefused("digest", f"{name} does not have the published digest")
    return _bundle(version, digest, manifest, {name: files[name] for name in manifest.files if name in files}, source, seal)


def check_sizes(files: Mapping[str, FileEntry], used: Set[str]) -> None:
    """Refuse files that do not fit into the memory, before they are read; raises BundleRefused `manifest`."""
    limits = {METRICS: MAX_METRICS_BYTES, GOLDEN: MAX_GOLDEN_BYTES}
    for name, most in limits.items():
        if name in used and files[name].size > most:
            raise BundleRefused("manifest", f"{name} has {files[name].size} bytes, more than {most}")
    size, most = sum(files[name].size for name in used), max_model_bytes()
    if size > most:
        raise BundleRefused(
            "manifest", f"the model has {size} bytes, more than a quarter of the memory ({most} bytes): raise the memory limit"
        )


def _bundle(version: str, digest: str, manifest: Manifest, files: Mapping[str, bytes], source: str, seal: bytes | None) -> Bundle:
    if manifest.signature is None:
        raise BundleRefused("signature", f"{MANIFEST} holds no signature")
    if files.get(GOLDEN, b"").count(b",") > MAX_GOLDEN_VALUES:
        raise BundleRefused("golden", f"{GOLDEN} holds more than {MAX_GOLDEN_VALUES} values")
    metrics = json_object(files[METRICS], METRICS) if METRICS in files else {}
    return Bundle(version, digest, manifest, metrics, files, source, seal)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[tuple[int, int, str]]:
    """The folder's handle, version and digest. The handle stays on the same folder when another process renames something.

    Neither the folder nor its parent may be a link. Raises BundleRefused for a folder that cannot be opened.
    """
    parsed = parse_folder(folder.name)
    if parsed is None:
        raise BundleRefused("pointer", "the pointer does not name a bundle")
    try:
        above = open_folder(folder.parent)
        try:
            handle = open_folder(folder.name, folder=above)
        finally:
            os.close(above)
    except OSError as error:
        raise unreadable(folder.name, error) from None
    try:
        yield handle, *parsed
    finally:
        os.close(handle)


def _proven_manifest(folder: int, version: int, digest: str) -> bytes:
    raw = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
    if sha256(raw) != digest:
        raise BundleRefused("digest", f"{MANIFEST} of version {version} does not have the published digest")
    return raw


def _parsed_manifest(raw: bytes, version: int) -> Manifest:
    manifest = parse_manifest(raw)
    if manifest.version != version:
        raise BundleRefused("manifest", f"the manifest of version {version} names another version")
    return manifest


def _read_files(folder: int, manifest: Manifest, used: Set[str]) -> dict[str, bytes]:
    """The bytes of the used files. It verifies the other files, too, because the digest in the folder's name covers all of them."""
    files = {}
    for name, entry in manifest.files.items():
        if name in used:
            files[name] = _read(folder, name, entry.size)
            _check_digest(name, entry, len(files[name]), sha256(files[name]))
        else:
            with _refusals(name):
                _check_digest(name, entry, *hash_regular(name, entry.size, folder=folder))
    _check_names(folder, manifest)  # last: an incomplete copy of a bundle must fail with the missing file, which is not final
    return files


def _check_names(folder: int, manifest: Manifest) -> None:
    """Refuse a file that the manifest does not list: no digest covers it, and a later release might read it."""
    known = {MANIFEST, SEAL, *manifest.files}
    with _refusals("the folder"), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in known:
                raise BundleRefused("digest", f"the folder holds {printable(entry.name)}, which the manifest does not list")


def _check_digest(name: str, entry: FileEntry, size: int, digest: str) -> None:
    if (size, digest) != (entry.size, entry.sha256):
        raise BundleRefused("digest", f"{name} does not have the published digest")


def _seal(folder: int) -> bytes | None:
    try:
        os.stat(SEAL, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return _read(folder, SEAL, MAX_SEAL_BYTES)


def _read(folder: int, name: str, limit: int) -> bytes:
    with _refusals(name):
        return read_regular(name, limit, folder=folder)


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turn errors of a file into BundleRefused."""
    try:
        yield
    except UnfitFile as error:
        raise BundleRefused("digest", str(error)) from None
    except OSError as error:
        raise unreadable(name, error) from None


def unreadable(name: str, error: OSError) -> BundleRefused:
    """The error for a file that cannot be read now and may be readable later."""
    return BundleRefused("unreadable", f"{name} cannot be read ({error.strerror})", final=False)
