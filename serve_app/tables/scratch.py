"""The temporary folder for downloads, with a size limit and a check of the free space."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.errors import UsageError

RESERVE = 128 << 20
"""Bytes of the disk that a download leaves free."""

MAX_NAME = 200
"""Maximum size of a local name in bytes; keys of buckets may be longer than a file system allows."""


@dataclass(frozen=True, slots=True)
class ScratchSpace:
    """The place for downloads: a folder (None: the folder for temporary files), and a limit in bytes."""

    folder: Path | None
    limit: int


@dataclass(slots=True)
class Scratch:
    """The folder of one command; `used` is the number of bytes in it."""

    folder: Path
    limit: int
    used: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reserve(self, name: str, size: int) -> None:
        """Raise UsageError unless `size` more bytes fit into the limit and onto the disk."""
        if self.used + size > self.limit:
            raise UsageError(
                f"{name} has {_size(self.used + size)}, more than the limit of {_size(self.limit)} for downloads: "
                "raise --scratch-bytes"
            )
        free = shutil.disk_usage(self.folder).free - RESERVE
        if size > free:
            raise UsageError(
                f"{name} has {_size(size)}, but {self.folder.parent} has room for {_size(max(0, free))}: "
                "free some space, or name another folder with --scratch-dir"
            )

    def add(self, name: str, size: int) -> None:
        """Count bytes before they are written; raises UsageError like `reserve`."""
        with self._lock:
            self.reserve(name, size)
            self.used += size

    def file(self, path: str) -> Path:
        """The local path for the file `path` of a bucket; raises UsageError for a path that could leave the folder."""
        if any(part in (".", "..") for part in path.split("/")):
            raise UsageError(f"{path} has '.' or '..' in its name: rename it")
        place = self.folder / local_name(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


@contextmanager
def open_scratch(space: ScratchSpace) -> Iterator[Scratch]:
    """A new folder, which is removed at the end; raises UsageError when it cannot be created."""
    try:
        if space.folder is not None:
            space.folder.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="iris-api-data-", dir=space.folder, ignore_cleanup_errors=True)
    except OSError as error:
        place = space.folder or tempfile.gettempdir()
        raise UsageError(
            f"downloads cannot be written to {place} ({error.strerror}): name another folder with --scratch-dir"
        ) from None
    with folder as name:
        yield Scratch(Path(name), space.limit)


def local_name(path: str) -> str:
    """The path, with a truncated name and a hash for each part that is too long for a file system."""
    return "/".join(_cut(part) for part in path.strip("/").split("/"))


def _cut(part: str) -> str:
    raw = part.encode("utf-8", "surrogatepass")
    if len(raw) <= MAX_NAME:
        return part
    ending = "".join(Path(part).suffixes[-2:])[-20:]
    start = raw[: MAX_NAME // 2].decode("utf-8", "ignore")
    return f"{start}-{hashlib.sha256(raw).hexdigest()[:16]}{ending}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count:,} bytes"
