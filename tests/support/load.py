"""The load generator: predictions at a constant rate, or as fast as they are answered; each response is checked and counted.

An open loop sends so many requests a second whether responses come or not, so that a slow server does not slow down the load. A
closed loop has so many clients, each of which sends its next request when it has the response to the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

import aiohttp
import msgspec
import orjson
import uvloop

RETRIED = frozenset({500, 502, 503, 504})
RETRY_SECONDS = 0.25
"""A client retries once when it gets no response or one of these, after this time give or take a half (docs/reference/api.md)."""
NO_RETRY = '"code":"not_finite_result"'
"""A problem with this code is not retried: the model computes the same result again."""
WRONG_REQUEST = "the response to another request"
MAX_FAILURES = 1000
"""Failures whose text is kept; all are counted."""


class Attempt(msgspec.Struct, frozen=True):
    """One request and its response. Times are seconds of the monotonic clock; `error` is what came instead of a response."""

    id: str
    attempt: int
    due: float
    sent: float
    end: float
    status: int = 0
    version: str = ""
    body: str = ""
    error: str = ""
    retry_after: str = ""


Check = Callable[[Attempt], str | None]
"""The problem of an attempt; None when its response is right."""


def succeeds(attempt: Attempt) -> str | None:
    """Every 200 is right."""
    if attempt.error:
        return attempt.error
    return None if attempt.status == 200 else f"{attempt.status}: {attempt.body[:200]}"


def matches(expected: Mapping[str, str]) -> Check:
    """A 200 is right when its body is the one of the version that its header names; `expected` may grow during the load."""

    def check(attempt: Attempt) -> str | None:
        problem = succeeds(attempt)
        if problem is None and attempt.body != expected.get(attempt.version):
            problem = f"version {attempt.version or '(none)'} responded {attempt.body[:200]}"
        return problem

    return check


@dataclass(slots=True)
class Load:
    """What became of the requests so far. A test may read it while the load runs."""

    check: Check
    versions: Counter[str] = field(default_factory=Counter)
    """Right responses by version."""
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    """The problem of each attempt without a right response, with the second in which it was sent."""
    failed: int = 0
    reconnects: int = 0
    """Requests that a closed loop sent again because the server had closed the kept connection before it read them."""
    durations: array[float] = field(default_factory=lambda: array("d"))
    """Seconds from sending to the end of each right response."""
    attempts: list[Attempt] | None = None
    """Every attempt of an open loop."""
    published: list[tuple[float, str]] = field(default_factory=list)
    """When the test published which version."""
    started: float = field(default_factory=time.monotonic)

    @property
    def answered(self) -> int:
        """Right responses."""
        return self.versions.total()

    @property
    def finished(self) -> int:
        """Attempts with a response or an error."""
        return self.answered + self.failed

    @property
    def history(self) -> list[Attempt]:
        """Every attempt of an open loop so far."""
        assert self.attempts is not None, "a closed loop keeps no history"
        return list(self.attempts)

    def now_served(self, version: str) -> None:
        """Note that the pointer has just been moved to `version`."""
        self.published.append((time.monotonic(), version))

    def add(self, attempt: Attempt) -> None:
        self.statuses[attempt.status] += 1
        if self.attempts is not None:
            self.attempts.append(attempt)
        problem = self.check(attempt)
        if problem is None:
            self.versions[attempt.version] += 1
            self.durations.append(attempt.end - attempt.sent)
        else:
            self.failed += 1
            if len(self.failures) < MAX_FAILURES:
                self.failures.append(f"{attempt.sent - self.started:.1f} s: {problem}")

    def __str__(self) -> str:
        slow = sum(seconds > 1 for seconds in self.durations)
        return f"{self.finished} requests, {self.failed} failed without retry, {slow} took more than a second"


@contextlib.contextmanager
def open_loop(
    url: str,
    row: Mapping[str, object],
    *,
    key: str,
    rate: float,
    check: Check = succeeds,
    retry: bool = True,
    keep_alive: bool = True,
    timeout: float = 10.0,
    history: Path | None = None,
) -> Iterator[Load]:
    """Send `rate` predictions a second until the block ends, then wait for the responses under way.

    With `retry` a failed request is sent once more. Without `keep_alive` each request has a connection of its own, as behind a load
    balancer. `history` is a file that gets every attempt as a line of JSON.
    """
    load = Load(check, attempts=[])
    client = _Client(url, row, key=key, timeout=timeout, keep_alive=keep_alive)

    async def run(stopped: threading.Event) -> None:
        dice = random.Random(0)
        under_way: set[asyncio.Task[None]] = set()
        started = time.monotonic()
        number = 0
        async with client:
            while not stopped.is_set():
                due = started + number / rate
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(min(wait, 0.2))
                    if time.monotonic() < due:
                        continue
                task = asyncio.create_task(_request(client, load, f"c-{number}", due, dice if retry else None))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                number += 1
            await asyncio.gather(*under_way)

    try:
        with _running(run):
            yield load
    finally:
        if history is not None:
            history.write_bytes(b"".join(msgspec.json.encode(attempt) + b"\n" for attempt in load.history))


@contextlib.contextmanager
def closed_loop(
    url: str,
    row: Mapping[str, object],
    *,
    key: str,
    clients: int = 4,
    requests: int | None = None,
    check: Check = succeeds,
    timeout: float = 20.0,
) -> Iterator[Load]:
    """`clients` connections send without a break until the block ends, or until `requests` are finished. No request is retried."""
    load = Load(check)
    client = _Client(url, row, key=key, timeout=timeout)

    async def run(stopped: threading.Event) -> None:
        sent = 0

        async def send() -> None:
            nonlocal sent
            while not stopped.is_set() and (requests is None or sent < requests):
                sent += 1
                number = sent
                attempt = await client.attempt(f"c-{number}", reconnect=True)
                if attempt is None:
                    load.reconnects += 1
                    attempt = await client.attempt(f"c-{number}")
                load.add(attempt)

        async with client:
            await asyncio.gather(*(send() for _ in range(clients)))

    with _running(run):
        yield load


@contextlib.contextmanager
def _running(run: Callable[[threading.Event], Awaitable[None]]) -> Iterator[None]:
    """`run` in an event loop of its own, in a thread, until the block ends; an error in it is raised at the end."""
    stopped = threading.Event()

    async def main() -> None:
        await run(stopped)

    with ThreadPoolExecutor(1, "load") as pool:
        future = pool.submit(uvloop.run, main())
        try:
            yield
        finally:
            stopped.set()
        future.result()


async def _request(client: _Client, load: Load, name: str, due: float, dice: random.Random | None) -> None:
    attempt = await client.attempt(name, due=due)
    load.add(attempt)
    if dice is not None and _is_retried(attempt):
        await asyncio.sleep(RETRY_SECONDS * dice.uniform(0.5, 1.5))  # as a client waits
        load.add(await client.attempt(name, due=due, number=2))


def _is_retried(attempt: Attempt) -> bool:
    """Whether a client sends this request once more."""
    return bool(attempt.error) or (attempt.status in RETRIED and NO_RETRY not in attempt.body)


class _Client:
    """Sends one row to `/predict`. Connections are unlimited, and kept unless told."""

    def __init__(self, url: str, row: Mapping[str, object], *, key: str, timeout: float, keep_alive: bool = True) -> None:
        self._url = f"{url}/predict"
        self._body = orjson.dumps(dict(row))
        self._headers = {"X-API-Key": key, "Content-Type": "application/json"}
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._keep_alive = keep_alive
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, **({"keepalive_timeout": 30} if self._keep_alive else {"force_close": True}))
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=self._timeout, connector=connector)

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    @overload
    async def attempt(self, name: str, *, reconnect: Literal[True]) -> Attempt | None: ...

    @overload
    async def attempt(self, name: str, *, due: float | None = None, number: int = 1) -> Attempt: ...

    async def attempt(self, name: str, *, due: float | None = None, number: int = 1, reconnect: bool = False) -> Attempt | None:
        """The attempt; with `reconnect`, None when the server closed the connection without a byte of a response."""
        assert self._session is not None
        sent = time.monotonic()
        due = sent if due is None else due
        try:
            async with self._session.post(self._url, data=self._body, headers={"X-Request-ID": name}) as response:
                body = (await response.read()).decode(errors="replace")
                end = time.monotonic()
                headers = response.headers
                error = "" if headers.get("x-request-id", name) == name else WRONG_REQUEST
                version, retry_after = headers.get("x-model-version", ""), headers.get("retry-after", "")
                return Attempt(name, number, due, sent, end, response.status, version, body, error, retry_after)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if reconnect and isinstance(error, aiohttp.ServerDisconnectedError) and isinstance(error.message, str):
                return None
            return Attempt(name, number, due, sent, time.monotonic(), error=f"{type(error).__name__}: {error}"[:200])
