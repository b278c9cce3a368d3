"""Waits with a deadline: a test goes on as soon as what it waits for is true, and says what did not come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(probe: Callable[[], T], *, seconds: float = 30, every: float = 0.05, what: str = "what the test waits for") -> T:
    """The first true value of `probe`; an AssertionError that names `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds:g} s; last seen: {value!r}")
        time.sleep(every)
