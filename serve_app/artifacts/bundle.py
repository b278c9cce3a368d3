"""A bundle: the immutable folder of one version, and the proof that its bytes are the ones that were published.

The folder's name is `<version>-<digest>`, the digest being the sha256 of `metadata.json`, which in turn lists size and
sha256 of every other file. The name therefore proves every byte, and nothing is parsed before it was compared.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.artifacts.manifest import MAX_MANIFEST_BYTES, Manifest, json_object, parse_manifest, sha256
from serve_app.artifacts.names import MANIFEST, METRICS, SEAL
from serve_app.artifacts.signature import Signature
from serve_app.artifacts.signing import MAX_SEAL_BYTES
from serve_app.errors import BundleRefused

_FOLDER = re.compile(r"(?P<version>[1-9][0-9]{0,17})-(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Bundle:
    """One version, read and verified. `files` holds the bytes that were hashed, so that the disk is not read again."""

    version: str
    digest: str
    manifest: Manifest
    metrics: Mapping[str, Any]
    files: Mapping[str, bytes] = field(repr=False)
    source: str = "store"
    seal: bytes | None = field(default=None, repr=False)

    @property
    def signature(self) -> Signature | None:
        """The manifest's signature; None for a model without a manifest of our own."""
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


def read_bundle(folder: Path, *, source: str = "store") -> Bundle:
    """Read and verify a folder of the store.

    Raises BundleRefused: `pointer` (the name is no bundle's), `manifest`, `digest`, `signature`, or `unreadable`, which is
    the only one that may pass by itself.
    """
    parsed = parse_folder(folder.name)
    if parsed is None:
        raise BundleRefused("pointer", "the pointer does not name a bundle")
    version, digest = parsed
    with _opened(folder) as handle:
        manifest = _manifest(handle, version, digest)
        files = {}
        for name, entry in manifest.files.items():
            data = _read(handle, name, entry.size)
            if len(data) != entry.size or sha256(data) != entry.sha256:
                raise BundleRefused("digest", f"{name} of version {version} does not have the published digest")
            files[name] = data
        seal = _seal(handle)
    return _bundle(str(version), digest, manifest, files, source, seal)


def read_manifest(folder: Path) -> Manifest:
    """The verified manifest of a folder of the store, without the other files; raises BundleRefused."""
    parsed = parse_folder(folder.name)
    if parsed is None:
        raise BundleRefused("pointer", "the pointer does not name a bundle")
    with _opened(folder) as handle:
        return _manifest(handle, *parsed)


def verify_files(
    version: str, digest: str, raw: bytes, files: Mapping[str, bytes], *, source: str, seal: bytes | None = None
) -> Bundle:
    """The same proof for a bundle that came over the network: `raw` is its manifest."""
    if sha256(raw) != digest:
        raise BundleRefused("digest", f"{MANIFEST} does not have the published digest")
    manifest = parse_manifest(raw)
    for name, entry in manifest.files.items():
        data = files.get(name)
        if data is None or len(data) != entry.size or sha256(data) != entry.sha256:
            raise BundleRefused("digest", f"{name} does not have the published digest")
    return _bundle(version, digest, manifest, {name: files[name] for name in manifest.files}, source, seal)


def _bundle(version: str, digest: str, manifest: Manifest, files: Mapping[str, bytes], source: str, seal: bytes | None) -> Bundle:
    if manifest.signature is None:
        raise BundleRefused("signature", f"{MANIFEST} holds no signature")
    metrics = json_object(files[METRICS], METRICS) if METRICS in files else {}
    return Bundle(version, digest, manifest, metrics, files, source, seal)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The folder's handle: what is read through it comes from one folder, whatever is renamed meanwhile."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise unreadable(folder.name, error) from None
    try:
        yield handle
    finally:
        os.close(handle)


def _manifest(folder: int, version: int, digest: str) -> Manifest:
    raw = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
    if sha256(raw) != digest:
        raise BundleRefused("digest", f"{MANIFEST} of version {version} does not have the published digest")
    manifest = parse_manifest(raw)
    if manifest.version != version:
        raise BundleRefused("manifest", f"the bundle of version {version} says that it is another version")
    return manifest


def _seal(folder: int) -> bytes | None:
    try:
        os.stat(SEAL, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return _read(folder, SEAL, MAX_SEAL_BYTES)


def _read(folder: int, name: str, limit: int) -> bytes:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BundleRefused("digest", f"{name} is not a plain file")
            if status.st_size > limit:
                raise BundleRefused("digest", f"{name} is larger than published")
            with open(handle, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(handle)
    except OSError as error:
        raise unreadable(name, error) from None


def unreadable(name: str, error: OSError) -> BundleRefused:
    """The refusal of a file that cannot be read now; it may be readable later."""
    return BundleRefused("unreadable", f"{name} cannot be read ({error.strerror})", final=False)
