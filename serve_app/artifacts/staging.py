"""A staging folder for a restore: it receives the files of an archive, which move to their final names after verification."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from serve_app.artifacts.archive import ArchiveError, FileLine, Section
from serve_app.artifacts.durable import open_lock, sync_folder, write_pieces
from serve_app.artifacts.regular_file import open_folder
from serve_app.errors import StoreError
from serve_app.printable import printable

STAGING = ".restore"
LOCK = ".restore.lock"
_SPARE_BYTES = 16 * 1024 * 1024


@contextlib.contextmanager
def staging(root: Path) -> Iterator[Path]:
    """An empty folder inside `root`, on the same file system. It is removed at the end, or by the next restore after a crash.

    Raises StoreError when another restore into `root` is running.
    """
    handle = open_folder(root, follow=True)
    try:
        lock = open_lock(handle, LOCK)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"another restore into {root} is running: wait until it ends") from None
            folder = root / STAGING
            shutil.rmtree(STAGING, ignore_errors=True, dir_fd=handle)
            os.mkdir(STAGING, dir_fd=handle)
            try:
                yield folder
            finally:
                shutil.rmtree(STAGING, ignore_errors=True, dir_fd=handle)
        finally:
            os.close(lock)
    finally:
        os.close(handle)


def check_space(folder: Path, lines: Iterable[FileLine]) -> None:
    """Raise StoreError when the files do not fit into the volume of `folder`."""
    needed = sum(line.size for line in lines)
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if needed + _SPARE_BYTES > free:
        raise StoreError(f"the archive needs {needed / 1e6:,.0f} MB, but the volume of {folder} has {free / 1e6:,.0f} MB free")


def unpack(
    section: Section, folder: Path, *, wanted: Callable[[FileLine], bool] = lambda _: True, mode: int = 0o644
) -> list[FileLine]:
    """Write the wanted files of a section durably into the empty `folder`; returns their lines. Raises ArchiveError and OSError."""
    written = []
    for line, pieces in section.files():
        if wanted(line):
            _write(folder / line.name, pieces, mode)
            written.append(line)
    return written


def _write(path: Path, pieces: Iterable[bytes], mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pieces(path, pieces, mode=mode)
    except (FileExistsError, NotADirectoryError):
        raise ArchiveError(f"the archive uses the name {printable(path.name)} both for a file and for a folder") from None


def move_missing(lines: Iterable[FileLine], staged: Path, root: Path) -> tuple[int, int]:
    """Move files to their names under `root`, except those that exist there; returns the numbers (moved, existing)."""
    moved = existing = 0
    folders: set[Path] = set()
    for line in lines:
        target = root / line.name
        if os.path.lexists(target):
            existing += 1
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(staged / line.name, target)
        folders.add(target.parent)
        moved += 1
    for folder in folders:
        sync_folder(folder)
    return moved, existing
