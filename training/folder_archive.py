"""A folder with any files in an archive: the tables of data-pvc, the artifacts of MLflow."""

from __future__ import annotations

import functools
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from serve_app.artifacts.archive import PIECE_BYTES, FileChanged, Section, Source, hashed
from serve_app.artifacts.staging import LOCK, STAGING, check_space, move_missing, staging, unpack
from serve_app.artifacts.store_archive import Restored
from serve_app.errors import StoreError, UsageError
from serve_app.printable import printable

SETTLED_SECONDS = 1.0
"""Seconds since the last write; before, a process may still write the file."""
SETTLING_SECONDS = 60.0
_NOT_ARCHIVED = frozenset({STAGING, LOCK, "lost+found"})
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def snapshot(folder: Path) -> list[Source]:
    """Every regular file of the folder, without links. Raises UsageError when the folder does not exist, and FileChanged."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    return sources(folder)


def sources(root: Path, *trees: str, settled: bool = False) -> list[Source]:
    """The regular files below `root`, or below some of its folders; raises FileChanged for a file that changes all the time.

    With `settled`, the function does not wait for the end of writes.
    """
    found = []
    for tree in trees or (".",):
        for path in _files(root / tree):
            if not settled:
                _settle(path)
            try:
                found.append(hashed(str(path.relative_to(root)), functools.partial(_pieces, path)))
            except FileNotFoundError:
                continue  # removed since the folder was listed
    return found


def check_target(folder: Path, *, merge: bool) -> None:
    """Raise StoreError when the folder holds files, unless `merge` allows it."""
    if not merge and next(_files(folder), None) is not None:
        raise StoreError(
            f"{folder} holds files already, so nothing was restored: restore into an empty folder, "
            "or use --merge to add only missing files"
        )


def restore(section: Section, folder: Path, *, merge: bool = False) -> Restored:
    """Write the files of a section into the folder; existing files stay. Raises ArchiveError and StoreError."""
    check_target(folder, merge=merge)
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder) as staged:
        check_space(staged, section.lines())
        return Restored(*move_missing(unpack(section, staged), staged, folder))


def _files(root: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _NOT_ARCHIVED)
        for name in sorted(names):
            path = Path(parent, name)
            if name not in _NOT_ARCHIVED and _is_regular(path):
                yield path


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _settle(path: Path) -> None:
    """Wait until the file has not changed for a while; raises FileChanged after a minute."""
    deadline = time.monotonic() + SETTLING_SECONDS
    while _is_regular(path) and 0 <= (age := time.time() - path.lstat().st_mtime) < SETTLED_SECONDS:
        if time.monotonic() > deadline:
            raise FileChanged(f"{printable(path.name)} changes all the time: stop its writer, then run the command again")
        time.sleep(SETTLED_SECONDS - age)


def _pieces(path: Path) -> Iterator[bytes]:
    with open(os.open(path, _FLAGS), "rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
