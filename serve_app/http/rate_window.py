"""Limits on rate: so many requests in a window of time, by key and by client, counted across replicas.

One book counts for all replicas. A replica takes a few requests at a time out of it and hands them out by itself, so that a
request rarely waits for the book. The book never gives out more than the limit; what a replica took and did not use
before the window ends is lost, which is a hundredth of what was left in the window, at most.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice

log = logging.getLogger("iris_api.limits")

MAX_NAMES = 100_000
"""Names remembered at once; those seen first are forgotten first."""
SHARE = 100
"""A replica takes a part of what is left in the window: one in so many, at least one."""
COUNTER_SECONDS = 0.5
"""How long a request waits for the book before the replica counts by itself."""
RETRY_SECONDS = 5.0
"""How long the replica then counts by itself before it asks the book again."""

_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour)")
_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` requests in each window of `seconds`."""

    count: int
    seconds: float


def parse_rate(text: str) -> Rate:
    """`600/minute` as a rate; raises ValueError."""
    found = _RATE.fullmatch(text.strip())
    if found is None:
        raise ValueError("write a rate as 600/minute; second, minute and hour are known")
    return Rate(int(found[1]), _SECONDS[found[2]])


Grant = tuple[int, float]
"""Requests given out, and the seconds until the window ends."""
RateCounter = Callable[[str, Rate], Awaitable[Grant]]


class RateLimitWindow:
    """The book: how many requests each name made in its window, which begins with the first of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, tuple[float, int]] = {}  # name -> end of the window, requests in it

    def take(self, name: str, rate: Rate, *, share: int = SHARE) -> Grant:
        """A share of what is left in the window of this name, 0 when it is used up."""
        now = self._clock()
        end, used = self._used.get(name, (0.0, 0))
        if now >= end:
            end, used = now + rate.seconds, 0
            self._used.pop(name, None)  # so that it becomes the newest
            if len(self._used) >= MAX_NAMES:
                forget_oldest(self._used)
        left = rate.count - used
        given = min(left, max(1, left // share)) if left > 0 else 0
        self._used[name] = (end, used + given)
        return given, min(end - now, rate.seconds)


def forget_oldest(names: dict[str, object] | dict[str, tuple[float, int]]) -> None:
    """Drop the tenth of the names that was put in first."""
    for name in list(islice(names, max(1, len(names) // 10))):
        del names[name]


class Lease:
    """What a replica may hand out of one name's window, and until when."""

    __slots__ = ("asking", "end", "left")

    def __init__(self) -> None:
        self.left = 0
        self.end = 0.0
        self.asking: asyncio.Task[None] | None = None


class RateLimitClient:
    """Admits or refuses requests in one replica; with no `book` it counts for itself alone."""

    def __init__(self, book: RateCounter | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._book = book
        self._clock = clock
        self._own = RateLimitWindow(clock)
        self._leases: dict[str, Lease] = {}
        self._alone_until = 0.0
        self._told = False

    async def wait_of(self, name: str, rate: Rate) -> float:
        """0 when this request of `name` is admitted, else the seconds until its window ends."""
        if self._book is None:
            given, wait = self._own.take(name, rate, share=rate.count)
            return 0.0 if given else wait
        lease = self._leases.get(name)
        if lease is None:
            if len(self._leases) >= MAX_NAMES:
                forget_oldest(self._leases)  # type: ignore[arg-type]
            lease = self._leases[name] = Lease()
        while True:
            if self._clock() < lease.end:
                if lease.left > 0:
                    lease.left -= 1
                    return 0.0
                if lease.left < 0:  # the book said so: the window is used up
                    return lease.end - self._clock()
            if lease.asking is None:
                lease.asking = asyncio.ensure_future(self._ask(name, rate, lease))
            await asyncio.shield(lease.asking)

    async def _ask(self, name: str, rate: Rate, lease: Lease) -> None:
        given, wait = await self._grant(name, rate)
        lease.left, lease.end = given or -1, self._clock() + max(wait, 0.001)
        lease.asking = None

    async def _grant(self, name: str, rate: Rate) -> Grant:
        assert self._book is not None
        if self._clock() >= self._alone_until:
            try:
                grant = await asyncio.wait_for(self._book(name, rate), COUNTER_SECONDS)
            except Exception as error:  # whatever is wrong with the book, requests go on
                self._alone_until = self._clock() + RETRY_SECONDS
                if not self._told:
                    log.warning("rate limits are counted by each replica alone", extra={"why": type(error).__name__})
                self._told = True
            else:
                self._told = False
                return grant
        return self._own.take(name, rate)
