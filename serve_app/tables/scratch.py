"""The folder that downloads go into: bounded in size, checked for free space, removed afterwards."""

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
"""Bytes of the disk that a download leaves free for everything else."""

MAX_NAME = 200
"""Bytes in the name of a file or folder; keys of buckets may be longer than a file system allows."""


@dataclass(frozen=True, slots=True)
class ScratchSpace:
    """Where downloads may go: a folder (None: the one for temporary files), and how many bytes they may take."""

    folder: Path | None
    limit: int


@dataclass(slots=True)
class Scratch:
    """The folder of one command; `used` are the bytes in it."""

    folder: Path
    limit: int
    used: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reserve(self, name: str, size: int) -> None:
        """Raise UsageError unless `size` more bytes fit into the limit and onto the disk."""
        if self.used + size > self.limit:
            raise UsageError(
                f"{name} has {_size(self.used + size)}, more than the {_size(self.limit)} that downloads may take: "
                "raise --scratch-bytes"
            )
        free = shutil.disk_usage(self.folder).free - RESERVE
        if size > free:
            raise UsageError(
                f"{name} has {_size(size)}, and {self.folder.parent} has room for {_size(max(0, free))}: "
                "free some, or name another folder with --scratch-dir"
            )

    def add(self, name: str, size: int) -> None:
        """Count bytes before they are written; raises UsageError as `reserve` does."""
        with self._lock:
            self.reserve(name, size)
            self.used += size

    def file(self, path: str) -> Path:
        """The place of a file that is called `path` in its bucket; raises UsageError for a path that leaves the folder."""
        if any(part in (".", "..") for part in path.split("/")):
            raise UsageError(f"{path} has '.' or '..' in its name: rename it")
        place = self.folder / local_name(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


@contextmanager
def open_scratch(space: ScratchSpace) -> Iterator[Scratch]:
    """A new folder, which is removed at the end; raises UsageError when there is none to be had."""
    try:
        if space.folder is not None:
            space.folder.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="iris-api-data-", dir=space.folder, ignore_cleanup_errors=True)
    except OSError as error:
        place = space.folder or tempfile.gettempdir()
        raise UsageError(
            f"downloads cannot be put into {place} ({error.strerror}): name another folder with --scratch-dir"
        ) from None
    with folder as name:
        yield Scratch(Path(name), space.limit)


def local_name(path: str) -> str:
    """The path with each part that is too long for a file system cut, and the hash of the whole part in its place."""
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
