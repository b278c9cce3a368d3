"""The actions of the console: they move the store's pointer as `iris-api promote` and `iris-api rollback` do."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from serve_app.artifacts.promotion import check_promotion
from serve_app.artifacts.read_policy import ReadPolicy
from serve_app.artifacts.store import Entry, PointerMoved, Store
from serve_app.errors import StoreError

MOVE_SECONDS = 10.0
"""Most seconds that an action waits for the store. Another writer can hold its lock, and a volume can hang."""


@dataclass(frozen=True, slots=True)
class Move:
    """The requested move: to a version, or (None) to the newest undamaged version that is older than the served one.

    `served` is the version that the client saw as served. If it is set and the store serves another version, nothing changes.
    """

    version: int | None
    served: int | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """The result of a move: the version that was served before (None: no version), and the entry that is served now."""

    before: int | None
    entry: Entry


class PointerMoves:
    """Moves the pointer of the store at `root`, one move at a time, to versions that `policy` lets replicas serve."""

    def __init__(self, root: Path, policy: ReadPolicy) -> None:
        self._store = Store(root)
        self._check = check_promotion(policy)
        self._thread: ThreadPoolExecutor | None = None

    async def run(self, move: Move) -> Moved:
        """Move the pointer in a thread; raises StoreError, or TimeoutError when the store does not answer in time.

        A move that still waits for the lock when the time is over changes nothing.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "pointer")
        abandoned = threading.Event()
        try:
            running = asyncio.get_running_loop().run_in_executor(self._thread, self._move, move, abandoned)
            return await asyncio.wait_for(running, MOVE_SECONDS)
        finally:
            abandoned.set()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _move(self, move: Move, abandoned: threading.Event) -> Moved:
        before: list[int | None] = []

        def check(entry: Entry) -> None:  # the store is locked, and nothing is changed yet
            if abandoned.is_set():
                raise StoreError("the client no longer waits for this change")
            served = None if (current := self._store.served()) is None else current.version
            if move.served is not None and served != move.served:
                now = "no version" if served is None else f"version {served}"
                raise PointerMoved(f"{now} is served by now, not version {move.served}; nothing was changed")
            self._check(entry)
            before.append(served)

        store = self._store
        entry = store.roll_back(check=check) if move.version is None else store.promote(move.version, check=check)
        return Moved(before[-1], entry)
