"""Reads of files that other processes write, such as those of the store: only regular files up to a size limit.

The functions do not follow links, and do not wait for pipes, sockets or devices. They compare the size before they read the first
byte, so a sparse file costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from serve_app.errors import IrisApiError
from serve_app.printable import printable

PIECE_BYTES = 256 * 1024
"""Bytes in memory while a file is hashed."""

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class UnfitFile(IrisApiError):
    """A file is not regular or exceeds its size limit; the message names the file."""


@contextlib.contextmanager
def open_regular(path: Path | str, limit: int, *, folder: int | None = None) -> Iterator[tuple[int, int]]:
    """The handle and the size in bytes of a regular file of at most `limit` bytes.

    `folder` is the handle of the folder that `path` is relative to. Raises UnfitFile, and OSError when the file cannot be opened,
    for example because it is a link.
    """
    name = os.path.basename(path)
    try:
        handle = os.open(path, _FLAGS, dir_fd=folder)
    except OSError:
        if is_socket(path, folder):
            raise UnfitFile(f"{name} is not a regular file") from None
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UnfitFile(f"{name} is not a regular file")
        if status.st_size > limit:
            raise UnfitFile(f"{name} has {status.st_size} bytes, more than {limit}")
        yield handle, status.st_size
    finally:
        os.close(handle)


def is_socket(path: Path | str, folder: int | None) -> bool:
    """Whether the path names a socket, which cannot be opened."""
    try:
        return stat.S_ISSOCK(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def read_regular(path: Path | str, limit: int, *, folder: int | None = None) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; raises UnfitFile and OSError."""
    with open_regular(path, limit, folder=folder) as (handle, size), open(handle, "rb", closefd=False) as file:
        return file.read(size)


def hash_regular(path: Path | str, size: int, *, folder: int | None = None) -> tuple[int, str]:
    """Size and sha256 of a regular file of at most `size` bytes, read in pieces; raises UnfitFile and OSError."""
    digest, count, piece = hashlib.sha256(), 0, memoryview(bytearray(PIECE_BYTES))
    with open_regular(path, size, folder=folder) as (handle, _):
        while count < size and (read := os.readv(handle, [piece[: min(PIECE_BYTES, size - count)]])):
            digest.update(piece[:read])
            count += read
    return count, digest.hexdigest()


def open_folder(path: Path | str, *, folder: int | None = None, follow: bool = False) -> int:
    """The handle of a folder; without `follow`, the folder must not be a link. Raises OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    return os.open(path, flags, dir_fd=folder)


def read_inside(root: Path, name: str, limit: int) -> bytes:
    """The bytes of `root/name`, which may be a link to a regular file inside `root`, as in a mounted ConfigMap.

    It opens every folder on the path without following further links. Raises UnfitFile and OSError.
    """
    top = os.path.realpath(root)
    parts = Path(os.path.realpath(os.path.join(top, name)))
    if not parts.is_relative_to(top):
        raise UnfitFile(f"{printable(name)} leads out of the store; copy the file into the store")
    *folders, file = parts.relative_to(top).parts
    handle = open_folder(top)
    try:
        for part in folders:
            inner = open_folder(part, folder=handle)
            os.close(handle)
            handle = inner
        return read_regular(file, limit, folder=handle)
    finally:
        os.close(handle)
