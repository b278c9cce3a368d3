"""Waits with a deadline: a test goes on as soon as what it waits for is true, and says what did not come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], *, seconds: float = 30, every: float = 0.05, what: str = "what the test waits for") -> T:
    """The first true value of `condition`; an AssertionError that names `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds:g} s; last value: {value!r}")
        time.sleep(every)
    return value


async def eventually(condition: Callable[[], T], *, seconds: float = 30, what: str = "what the test waits for") -> T:
    """`until` for a test that shares its event loop with what it waits for."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds:g} s; last value: {value!r}")
        await asyncio.sleep(0.005)
    return value
