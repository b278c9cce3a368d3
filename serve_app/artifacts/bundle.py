"""A bundle: the immutable folder of one version, and the proof that its bytes are the ones that were published.

The folder's name is `<version>-<digest>`, the digest being the sha256 of `metadata.json`, which in turn lists size and
sha256 of every other file. Whoever trusts the name can trust every byte, and nothing is parsed before it was compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from serve_app.artifacts.signature import Signature
from serve_app.artifacts.signing import MAX_SEAL_BYTES, SEAL
from serve_app.errors import BundleRefused

MANIFEST = "metadata.json"
METRICS = "metrics.json"
JOBLIB = "model.joblib"
ONNX = "model.onnx"
GOLDEN = "golden.json"
PLAIN_FILES = (JOBLIB, MANIFEST, METRICS)
"""What the system of old wrote, and what is always found directly in the store."""

FORMAT = 1
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_BUNDLE_BYTES = 4 * 1024 * 1024 * 1024

_FOLDER = re.compile(r"(?P<version>[1-9][0-9]{0,17})-(?P<digest>[0-9a-f]{64})")
_VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")  # it goes into a header of each answer
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Bundle:
    """One version, read and verified. `files` holds the bytes that were hashed: nobody reads the disk again."""

    version: str
    digest: str
    metadata: Mapping[str, Any]
    metrics: Mapping[str, Any]
    files: Mapping[str, bytes] = field(repr=False)
    signature: Signature | None = None
    source: str = "store"
    seal: bytes | None = field(default=None, repr=False)

    @property
    def etag(self) -> str:
        return f'"{self.digest}"'


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder_name(version: int, digest: str) -> str:
    return f"{version}-{digest}"


def parse_folder(name: str) -> tuple[int, str] | None:
    """(version, digest) of a folder's name; None when it is no bundle."""
    found = _FOLDER.fullmatch(name)
    return (int(found["version"]), found["digest"]) if found else None


def describe(files: Mapping[str, bytes], metadata: Mapping[str, Any]) -> bytes:
    """The manifest's bytes for these files: `metadata` and the list that proves them."""
    for name in files:
        if not _FILE.fullmatch(name) or name in (MANIFEST, SEAL):
            raise ValueError(f"{name!r} cannot be the name of a file in a bundle")
    listed = {name: {"sha256": sha256(data), "size": len(data)} for name, data in sorted(files.items())}
    document = {**metadata, "format": FORMAT, "files": listed}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"


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
        metadata = _manifest(handle, version, digest)
        files = {}
        for name, entry in metadata["files"].items():
            data = _read(handle, name, entry["size"])
            if len(data) != entry["size"] or sha256(data) != entry["sha256"]:
                raise BundleRefused("digest", f"{name} of version {version} does not have the published digest")
            files[name] = data
        seal = _seal(handle)
    return _bundle(str(version), digest, metadata, files, source, seal)


def read_manifest(folder: Path) -> dict[str, Any]:
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
    metadata = parse_manifest(raw)
    for name, entry in metadata["files"].items():
        data = files.get(name)
        if data is None or len(data) != entry["size"] or sha256(data) != entry["sha256"]:
            raise BundleRefused("digest", f"{name} does not have the published digest")
    return _bundle(version, digest, metadata, {name: files[name] for name in metadata["files"]}, source, seal)


def read_plain(folder: Path) -> Bundle | None:
    """The three plain files of the system of old, or None when there are none.

    They were written one by one and prove nothing; the digest over the three only gives them a name. Files that change
    while they are read are looked at again at the next poll.
    """
    if not (folder / MANIFEST).is_file() or not (folder / JOBLIB).is_file():
        return None
    try:
        before = _stamp(folder)
        data = {name: (folder / name).read_bytes() for name in PLAIN_FILES if (folder / name).is_file()}
        if _stamp(folder) != before:
            raise BundleRefused("unreadable", "the model's files are being written", final=False)
    except OSError as error:
        raise _unreadable(folder.name, error) from None
    if MANIFEST not in data or JOBLIB not in data:
        raise BundleRefused("unreadable", "the model's files are being written", final=False)
    metadata = _object(data[MANIFEST], MANIFEST)
    metrics = _object(data[METRICS], METRICS) if METRICS in data else {}
    digest = plain_digest(data)
    version = metadata.get("mlflow_model_version")
    named = str(version) if isinstance(version, int | str) and _VERSION.fullmatch(str(version)) else "0"
    return Bundle(named, digest, metadata, metrics, data, None, "plain")


def plain_digest(files: Mapping[str, bytes]) -> str:
    """What stands for the digest of files that have no manifest to prove them."""
    return sha256(b"".join(sha256(files.get(name, b"")).encode() for name in PLAIN_FILES))


def plain_stamp(folder: Path) -> tuple[tuple[int, int, int], ...] | None:
    """Changes when one of the plain files does; None when there is no model. Costs three stat calls."""
    try:
        stamp = _stamp(folder)
    except OSError:
        return None
    return stamp if stamp[0][0] and stamp[1][0] else None


def parse_manifest(raw: bytes) -> dict[str, Any]:
    """The manifest as a dictionary with a well-formed `files`; BundleRefused `manifest` or `format` otherwise."""
    metadata = _object(raw, MANIFEST)
    if metadata.get("format") != FORMAT:
        raise BundleRefused("format", "this format of bundle is unknown; upgrade the serving image")
    files = metadata.get("files")
    if not isinstance(files, dict) or not files:
        raise BundleRefused("manifest", f"{MANIFEST} lists no files")
    total = 0
    for name, entry in files.items():
        if not _FILE.fullmatch(name) or name in (MANIFEST, SEAL) or not isinstance(entry, dict):
            raise BundleRefused("manifest", f"{MANIFEST} lists a file that cannot be part of a bundle")
        size, digest = entry.get("size"), entry.get("sha256")
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise BundleRefused("manifest", f"{MANIFEST} lists a file without size and sha256")
        total += size
    if total > MAX_BUNDLE_BYTES:
        raise BundleRefused("manifest", f"the bundle is larger than {MAX_BUNDLE_BYTES} bytes")
    return metadata


def _bundle(
    version: str, digest: str, metadata: dict[str, Any], files: Mapping[str, bytes], source: str, seal: bytes | None
) -> Bundle:
    try:
        signature = Signature.from_dict(metadata["signature"])
    except (KeyError, TypeError, ValueError):
        raise BundleRefused("signature", f"{MANIFEST} holds no usable signature") from None
    metrics = _object(files[METRICS], METRICS) if METRICS in files else {}
    return Bundle(version, digest, metadata, metrics, files, signature, source, seal)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """The folder's handle: what is read through it comes from one folder, whatever is renamed meanwhile."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _unreadable(folder.name, error) from None
    try:
        yield handle
    finally:
        os.close(handle)


def _manifest(folder: int, version: int, digest: str) -> dict[str, Any]:
    raw = _read(folder, MANIFEST, MAX_MANIFEST_BYTES)
    if sha256(raw) != digest:
        raise BundleRefused("digest", f"{MANIFEST} of version {version} does not have the published digest")
    metadata = parse_manifest(raw)
    if metadata.get("version", version) != version:
        raise BundleRefused("manifest", f"the bundle of version {version} says that it is another version")
    return metadata


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
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise BundleRefused("digest", f"{name} is not a plain file")
            if found.st_size > limit:
                raise BundleRefused("digest", f"{name} is larger than published")
            with open(handle, "rb", closefd=False) as file:
                return file.read(found.st_size)
        finally:
            os.close(handle)
    except OSError as error:
        raise _unreadable(name, error) from None


def _stamp(folder: Path) -> tuple[tuple[int, int, int], ...]:
    stamps = []
    for name in PLAIN_FILES:
        try:
            found = (folder / name).stat()
            stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
        except FileNotFoundError:
            stamps.append((0, 0, 0))
    return tuple(stamps)


def _object(raw: bytes, name: str) -> dict[str, Any]:
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise BundleRefused("manifest", f"{name} is not JSON") from None
    if not isinstance(document, dict):
        raise BundleRefused("manifest", f"{name} is not a JSON object")
    return document


def _unreadable(name: str, error: OSError) -> BundleRefused:
    return BundleRefused("unreadable", f"{name} cannot be read ({error.strerror})", final=False)
