"""The state of Ray's head on a volume: a folder for each Ray cluster, in which Ray keeps a RocksDB.

Before a head starts, `python -m serve_app.rayserve.head_state` removes the folders that no head uses any more. It also removes a
state with which the head failed to start several times; `head_started` resets this count when Serve's controller has started.
Without RAY_gcs_storage_path, the state is in the head's memory, and both functions do nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from pathlib import Path

STORAGE_PATH = "RAY_gcs_storage_path"
"""Ray's variable with the path of the state: a folder inside the folder of the cluster."""
STARTS = "starts"
MOST_STARTS = 3
UNUSED_SECONDS = 24 * 3600.0


def prepare(state: Path, *, now: float) -> str | None:
    """Prepare the folders for a head with its state in `state`; return one sentence about removed state, or None."""
    home = state.parent
    home.mkdir(parents=True, exist_ok=True)
    unused = [folder for folder in home.parent.iterdir() if folder != home and _is_unused(folder, now)]
    for folder in unused:
        shutil.rmtree(folder, ignore_errors=True)
    starts = _starts(home)
    if starts >= MOST_STARTS:
        shutil.rmtree(state, ignore_errors=True)
        (home / STARTS).write_text("1")
        return f"the head did not start {starts} times with the state in {state}, so it starts with an empty one"
    (home / STARTS).write_text(str(starts + 1))
    return f"removed the state of clusters that are gone: {', '.join(folder.name for folder in unused)}" if unused else None


def head_started() -> None:
    """Record that the head of this process has started with its state."""
    if path := os.environ.get(STORAGE_PATH):
        (Path(path).parent / STARTS).unlink(missing_ok=True)


def _starts(home: Path) -> int:
    """The number of starts since the last successful start of a head."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((home / STARTS).read_text())
    return 0


def _is_unused(folder: Path, now: float) -> bool:
    """Whether no file in a cluster's folder has changed for a day, and no head has its RocksDB open."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not folder.is_dir() or any(now - path.stat().st_mtime < UNUSED_SECONDS for path in files):
        return False
    return not any(_is_locked(path) for path in files if path.name == "LOCK")


def _is_locked(path: Path) -> bool:
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def main() -> None:
    """Prepare the folder of RAY_gcs_storage_path; report a volume that does not allow it, and let the head try."""
    path = os.environ.get(STORAGE_PATH)
    if not path:
        return
    try:
        message = prepare(Path(path), now=time.time())
    except OSError as error:
        message = f"the folder for the state of Ray's head cannot be prepared: {error}"
    if message:
        sys.stdout.write(f"iris-api: {message}\n")


if __name__ == "__main__":
    main()
