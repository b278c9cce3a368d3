"""Writes that survive a power failure, or leave what was there before."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from serve_app.artifacts.regular_file import open_folder

LINK = ".link-"
"""How the name of a link begins before it has its own."""


def write_file(path: Path, data: bytes) -> None:
    """Write a new file that is read-only, also through a link, and make its bytes durable. Raises OSError, also when it exists."""
    write_pieces(path, (data,), mode=0o444)


def write_pieces(path: Path, pieces: Iterable[bytes], *, mode: int) -> None:
    """Write a new file of pieces, and make its bytes durable. Raises OSError, also when it exists."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(handle, "wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: Any) -> None:
    """Write bytes as a file, and create the folders above it: other processes read the old content or the new one, never a part.

    That is true after a power failure, too. `data` is anything that a binary file writes. Raises OSError; the old content stays
    then, unless only its folder could not be made durable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable; raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_link(path: Path, target: str) -> None:
    """Make `path` a link to `target` in one step; when that cannot be made durable, it is what it was before."""
    before = link_of(path)
    _swap(path, target)
    try:
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            if before is None:
                path.unlink()
            else:
                _swap(path, before)
        raise


def link_of(path: Path) -> str | None:
    """The target of a link; None for what is not a link, or cannot be read."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def discard(folder: Path) -> None:
    """Remove a folder, whole: under its name it is never seen half empty. What cannot be removed now is rubbish with a dot.

    The folder above is opened once and is no link, so that nothing outside it is removed.
    """
    with contextlib.suppress(OSError):
        above = open_folder(folder.parent)
        try:
            aside = f".{uuid.uuid4().hex}"
            os.rename(folder.name, aside, src_dir_fd=above, dst_dir_fd=above)
            shutil.rmtree(aside, ignore_errors=True, dir_fd=above)
        finally:
            os.close(above)


def clear_rubbish(folder: int) -> None:
    """Remove what begins with a dot inside the folder with this handle; a link is not followed."""
    for name in os.listdir(folder):
        if name.startswith("."):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)


def open_lock(folder: int, name: str) -> int:
    """The handle of a lock file inside the folder with this handle.

    The file is created when it is missing, and never changed. Raises OSError, also when it is no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(name, flags, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "the lock is not a plain file; remove it", name)
    return handle


def _swap(path: Path, target: str) -> None:
    aside = path.with_name(f"{LINK}{uuid.uuid4().hex}")
    os.symlink(target, aside)
    try:
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
