"""Writes that survive a power failure, or leave the previous content."""

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
"""Prefix of the temporary name of a link."""


def write_file(path: Path, data: bytes) -> None:
    """Write a new read-only file and make its bytes durable. Raises OSError, also when the file exists."""
    write_pieces(path, (data,), mode=0o444)


def write_pieces(path: Path, pieces: Iterable[bytes], *, mode: int) -> None:
    """Write a new file from pieces and make its bytes durable. Raises OSError, also when the file exists."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(handle, "wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: Any) -> None:
    """Write bytes as a file, and create its parent folders. Other processes read the old content or the new one, never a part.

    The same holds after a power failure. `data` is anything that a binary file accepts. Raises OSError; the old content stays then,
    unless only the sync of the folder failed.
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
    """Make `path` a link to `target` in one step. Raises OSError and restores the previous link when the sync fails."""
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
    """The target of a link; None when the path is not a link or cannot be read."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def discard(folder: Path) -> None:
    """Rename a folder and remove it, so no reader sees it partly empty. A failure leaves a name with a dot for `clear_rubbish`.

    It opens the parent folder once, without following a link, so it removes nothing outside the parent.
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
    """Remove folders whose name begins with a dot from the folder with this handle, without following links."""
    for name in os.listdir(folder):
        if name.startswith("."):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)


def open_lock(folder: int, name: str) -> int:
    """The handle of the lock file `name` in the folder with the handle `folder`.

    It creates a missing file and never changes an existing one. Raises OSError, also when the path is not a regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(name, flags, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "the lock is not a regular file; remove it", name)
    return handle


def _swap(path: Path, target: str) -> None:
    aside = path.with_name(f"{LINK}{uuid.uuid4().hex}")
    os.symlink(target, aside)
    try:
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
