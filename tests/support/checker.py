"""An open-loop load with a history of every request, and the checker that judges the history.

The generator sends at a constant rate whether answers come or not, so that a slow server does not slow down the questions. A client
tries once more, after a quarter of a second, when it got no answer or one of 500, 502, 503, 504, as `docs/api.md` advises.

The checker knows what each version must answer and when each was published. It accepts nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
import orjson

RETRIED = frozenset({500, 502, 503, 504})
RETRY_SECONDS = 0.25
DOCUMENTED = frozenset({200, 429, 503})
"""What a right request with a right key may get; 500 and 502 are no documented answers to it."""


class Line(msgspec.Struct, frozen=True):
    """One attempt: times are seconds of one monotonic clock; `error` is what came instead of an answer."""

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


@dataclass(slots=True)
class Load:
    """A running load; `history` is its file, `published` what the test tells about publications."""

    history: Path
    so_far: list[Line] = field(default_factory=list)
    published: list[tuple[float, str]] = field(default_factory=list)

    def now_served(self, version: str) -> None:
        """To be called when the pointer has been moved to `version`."""
        self.published.append((time.monotonic(), version))

    def right_answers(self) -> int:
        """How many there are so far."""
        return sum(line.status == 200 for line in list(self.so_far))

    def lines(self) -> list[Line]:
        """The whole history, after the load."""
        return read_history(self.history)


def read_history(file: Path) -> list[Line]:
    raw = file.read_bytes()
    return [msgspec.json.decode(line, type=Line) for line in raw.splitlines()]


@contextlib.contextmanager
def load(
    url: str, row: Mapping[str, object], history: Path, *, key: str, rate: float, timeout: float = 10.0, connections: int = 32
) -> Iterator[Load]:
    """Send `rate` predictions a second until the block ends; then wait for what is under way and write the history."""
    record = Load(history)
    stopped = threading.Event()
    lines = record.so_far
    thread = threading.Thread(
        target=lambda: asyncio.run(_run(url, row, lines, stopped, key=key, rate=rate, timeout=timeout, connections=connections)),
        daemon=True,
    )
    thread.start()
    try:
        yield record
    finally:
        stopped.set()
        thread.join(timeout * 2 + 10)
        history.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


async def _run(
    url: str,
    row: Mapping[str, object],
    lines: list[Line],
    stopped: threading.Event,
    *,
    key: str,
    rate: float,
    timeout: float,
    connections: int,
) -> None:
    body = orjson.dumps(dict(row))
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    dice = random.Random(0)
    limits = aiohttp.ClientTimeout(total=timeout)
    connector = aiohttp.TCPConnector(limit=connections * 32, keepalive_timeout=30)
    under_way: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(headers=headers, timeout=limits, connector=connector) as session:
        started = time.monotonic()
        number = 0
        while not stopped.is_set():
            due = started + number / rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(min(wait, 0.2))
                if time.monotonic() < due:
                    continue
            task = asyncio.create_task(_ask(session, url, body, f"c-{number}", due, lines, dice))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            number += 1
        await asyncio.gather(*under_way)


async def _ask(
    session: aiohttp.ClientSession, url: str, body: bytes, name: str, due: float, lines: list[Line], dice: random.Random
) -> None:
    line = await _attempt(session, url, body, name, 1, due)
    lines.append(line)
    if line.error or line.status in RETRIED:
        await asyncio.sleep(RETRY_SECONDS * dice.uniform(0.5, 1.5))
        lines.append(await _attempt(session, url, body, name, 2, due))


async def _attempt(session: aiohttp.ClientSession, url: str, body: bytes, name: str, attempt: int, due: float) -> Line:
    sent = time.monotonic()
    try:
        async with session.post(f"{url}/predict", data=body, headers={"X-Request-ID": name}) as answer:
            text = await answer.text(errors="replace")
            end = time.monotonic()
            version = answer.headers.get("x-model-version", "")
            retry_after = answer.headers.get("retry-after", "")
            wrong = "" if answer.headers.get("x-request-id", name) == name else "the answer to another request"
            return Line(name, attempt, due, sent, end, answer.status, version, text, wrong, retry_after)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Line(name, attempt, due, sent, time.monotonic(), error=f"{type(error).__name__}: {error}"[:200])


# --- the judge


@dataclass(frozen=True, slots=True)
class Report:
    """What a history says; `violations` are answers that must never be, the rest are figures."""

    violations: tuple[str, ...]
    requests: int
    answers: Counter[str]
    statuses: Counter[int]
    failed_first: int
    failed_after_retry: int
    refused: int
    longest_silence: float
    p50: float
    p99: float

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.answers.total()} right answers, {self.refused} refused with 429 or 503, "
            f"failed without retry {self.failed_first}, after one retry {self.failed_after_retry}, "
            f"longest time without an answer {self.longest_silence:.2f} s, "
            f"p50 {self.p50 * 1000:.1f} ms, p99 {self.p99 * 1000:.1f} ms"
        )


def judge(
    lines: Sequence[Line],
    golden: Mapping[str, str],
    published: Sequence[tuple[float, str]],
    *,
    minimum: int,
    grace: float = 10.0,
    refused: frozenset[str] = frozenset(),
    documented: frozenset[int] = DOCUMENTED,
) -> Report:
    """Compare each attempt with what was allowed.

    `golden` is the body that each version must give, `published` when each became the served one (monotonic seconds), `grace` how
    long after a newer one it may still answer, `refused` versions that must never answer, `minimum` how many right answers the
    run must hold to count as one.
    """
    violations = []
    answers: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    durations: list[float] = []
    first: dict[str, Line] = {}
    last: dict[str, Line] = {}
    turns = _turns(published, grace)
    for line in lines:
        statuses[line.status] += 1
        if line.attempt == 1:
            first[line.id] = line
        last[line.id] = line
        problem = _problem(line, golden, turns, refused, documented)
        if problem:
            violations.append(f"{line.id} (attempt {line.attempt}): {problem}")
        elif line.status == 200 and not line.error:
            answers[line.version] += 1
            durations.append(line.end - line.due if line.attempt == 1 else line.end - line.sent)
    if answers.total() < minimum:
        violations.append(f"only {answers.total()} right answers, which is less than the {minimum} that make a run")
    durations.sort()
    good = sorted(line.end for line in lines if line.status == 200 and not line.error)
    start = min((line.sent for line in lines), default=0.0)
    stop = max((line.end for line in lines), default=0.0)
    gaps = [b - a for a, b in zip([start, *good], [*good, stop], strict=True)]
    return Report(
        violations=tuple(violations),
        requests=len(first),
        answers=answers,
        statuses=statuses,
        failed_first=sum(_failed(line) for line in first.values()),
        failed_after_retry=sum(_failed(line) for line in last.values()),
        refused=sum(line.status in (429, 503) and not line.error for line in first.values()),
        longest_silence=max(gaps),
        p50=durations[len(durations) // 2] if durations else 0.0,
        p99=durations[int(len(durations) * 0.99)] if durations else 0.0,
    )


def _failed(line: Line) -> bool:
    """No answer, or a server's error; 429 is an answer that says when to come back."""
    return bool(line.error) or line.status >= 500


def _turns(published: Sequence[tuple[float, str]], grace: float) -> list[tuple[str, float, float]]:
    """(version, from, until): while a version may answer."""
    ends = [at + grace for at, _ in published[1:]] + [float("inf")]
    return [(version, at, end) for (at, version), end in zip(published, ends, strict=True)]


def _problem(
    line: Line,
    golden: Mapping[str, str],
    turns: Sequence[tuple[str, float, float]],
    refused: frozenset[str],
    documented: frozenset[int],
) -> str | None:
    if line.error:
        return line.error if line.error.startswith("the answer") else None  # a failure is counted, not a wrong answer
    if line.status not in documented and line.status not in RETRIED:
        return f"status {line.status} is not documented"
    if line.status in (429, 503) and line.status in documented and not line.retry_after and line.body.startswith("{"):
        return f"{line.status} without Retry-After"
    if line.status != 200:
        return None
    if line.version in refused:
        return f"an answer of version {line.version}, which was refused"
    if line.version not in golden:
        return f"an answer of version {line.version or '(none)'}, which nobody published"
    if line.body != golden[line.version]:
        return f"version {line.version} answered {line.body[:100]}"
    if not any(version == line.version and line.end >= start and line.sent <= end for version, start, end in turns):
        return f"an answer of version {line.version} at a time when it was not the published one"
    return None
