"""Attempts of a download: the limit on consecutive failures, and the pauses between attempts."""

from __future__ import annotations

import time

MAX_FAILURES = 5
"""Maximum number of consecutive attempts that bring less than PROGRESS bytes."""

PROGRESS = 1 << 20
PAUSE = 0.5
"""Half of the first pause, in seconds; each pause is twice as long as the previous pause."""


class Attempts:
    """Counts the failed attempts since the last attempt that brought PROGRESS bytes."""

    def __init__(self) -> None:
        self.failures = 0

    def failed(self, gained: int) -> bool:
        """Count a failed attempt that brought `gained` bytes; returns True when no attempt is left."""
        self.failures = 1 if gained >= PROGRESS else self.failures + 1
        return self.failures >= MAX_FAILURES

    def pause(self) -> None:
        """Wait before the next attempt."""
        time.sleep(PAUSE * 2**self.failures)
