"""Rate limits: a number of requests in a time window, by key, client and route, counted across replicas.

One rate counter counts for all replicas. A replica takes a few requests at a time from the counter and admits them by itself, so a
request rarely waits for the counter. The counter never grants more than the limit. Requests that a replica took but did not admit
before the window ends are lost: at most a hundredth of what was left in the window.
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
"""Most names in memory; the oldest names are forgotten first."""
SHARE = 100
"""A replica takes one hundredth of what is left in the window, and at least one request."""
COUNTER_SECONDS = 0.5
"""Seconds that a request waits for the rate counter before the replica counts by itself."""
RETRY_SECONDS = 5.0
"""Seconds that the replica then counts by itself before it asks the rate counter again."""

_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour)")
_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` requests in each window of `seconds`."""

    count: int
    seconds: float


def parse_rate(text: str) -> Rate:
    """`600/minute` as a rate; raises ValueError."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise ValueError("write a rate as 600/minute; the units are second, minute and hour")
    return Rate(int(match[1]), _SECONDS[match[2]])


Grant = tuple[int, float]
"""The number of granted requests, and the seconds until the window ends."""
RateCounter = Callable[[str, Rate], Awaitable[Grant]]


class RateLimitWindow:
    """Counts the requests of each name in its window. The window begins with the first request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, tuple[float, int]] = {}  # name -> end of the window, requests in it

    def take(self, name: str, rate: Rate, *, share: int = SHARE) -> Grant:
        """A share of what is left in the window of this name; 0 when the window is used up."""
        now = self._clock()
        end, used = self._used.get(name, (0.0, 0))
        if now >= end:
            end, used = now + rate.seconds, 0
            self._used.pop(name, None)  # the name becomes the newest
            if len(self._used) >= MAX_NAMES:
                forget_oldest(self._used)
        left = rate.count - used
        count = min(left, max(1, left // share)) if left > 0 else 0
        self._used[name] = (end, used + count)
        return count, min(end - now, rate.seconds)


def forget_oldest(names: dict[str, object] | dict[str, tuple[float, int]]) -> None:
    """Remove the oldest tenth of the names."""
    for name in list(islice(names, max(1, len(names) // 10))):
        del names[name]


class Lease:
    """The requests that a replica may admit for one name, and until when. `renewal` asks the rate counter for more."""

    __slots__ = ("end", "left", "renewal")

    def __init__(self) -> None:
        self.left = 0
        self.end = 0.0
        self.renewal: asyncio.Task[None] | None = None


class RateLimitClient:
    """Admits or refuses requests in one replica. Without a `counter` it counts only the requests of this replica."""

    def __init__(self, counter: RateCounter | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counter = counter
        self._clock = clock
        self._own = RateLimitWindow(clock)
        self._leases: dict[str, Lease] = {}
        self._alone_until = 0.0
        self._logged = False

    async def wait_of(self, name: str, rate: Rate) -> float:
        """0 when this request of `name` is admitted, else the seconds until its window ends."""
        if self._counter is None:
            count, wait = self._own.take(name, rate, share=rate.count)
            return 0.0 if count else wait
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
                if lease.left < 0:  # the rate counter answered that the window is used up
                    return lease.end - self._clock()
            if lease.renewal is None:
                lease.renewal = asyncio.ensure_future(self._renew(name, rate, lease))
            await asyncio.shield(lease.renewal)

    async def _renew(self, name: str, rate: Rate, lease: Lease) -> None:
        count, wait = await self._grant(name, rate)
        lease.left, lease.end = count or -1, self._clock() + max(wait, 0.001)
        lease.renewal = None

    async def _grant(self, name: str, rate: Rate) -> Grant:
        assert self._counter is not None
        if self._clock() >= self._alone_until:
            try:
                grant = await asyncio.wait_for(self._counter(name, rate), COUNTER_SECONDS)
            except Exception as error:  # a failure of the rate counter must not stop requests
                self._alone_until = self._clock() + RETRY_SECONDS
                if not self._logged:
                    log.warning(
                        "the rate counter failed; each replica counts its own requests", extra={"why": type(error).__name__}
                    )
                self._logged = True
            else:
                self._logged = False
                return grant
        return self._own.take(name, rate)
