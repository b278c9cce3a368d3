"""The checker of a load's history.

It knows what each version must respond and when each was published. It accepts nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from tests.support.load import RETRIED, WRONG_REQUEST, Attempt

DOCUMENTED = frozenset({200, 429, 503})
"""What a right request with a right key may get; 500 and 502 are no documented responses to it."""


Code = Literal["mixed_up", "status", "retry_after", "refused_version", "unknown_version", "body", "period", "too_few"]
"""What is wrong with a response, or with a whole history (`too_few`)."""


class Violation(NamedTuple):
    """A response that must never be; `attempt` is the request's id and the number of the attempt."""

    code: Code
    attempt: str
    detail: str


class Period(NamedTuple):
    """When a version may respond, in monotonic seconds."""

    version: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a history says: responses that must never be, and figures. Durations are in seconds."""

    violations: tuple[Violation, ...]
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


@dataclass(frozen=True, slots=True)
class Rules:
    """What a response may be."""

    expected: Mapping[str, str]
    periods: Sequence[Period]
    refused: frozenset[str]
    documented: frozenset[int]

    def violation(self, attempt: Attempt) -> tuple[Code, str] | None:
        """None when it is allowed. An attempt without a response is a failure, which is counted, and no violation."""
        if attempt.error:
            return ("mixed_up", attempt.error) if attempt.error == WRONG_REQUEST else None
        if attempt.status == 200:
            return self._wrong_success(attempt)
        if attempt.status not in self.documented:
            return None if attempt.status in RETRIED else ("status", str(attempt.status))
        # HAProxy's own 503 is no JSON and has no Retry-After.
        if attempt.status in (429, 503) and not attempt.retry_after and attempt.body.startswith("{"):
            return "retry_after", str(attempt.status)
        return None

    def _wrong_success(self, attempt: Attempt) -> tuple[Code, str] | None:
        version = attempt.version
        if version in self.refused:
            return "refused_version", version
        if version not in self.expected:
            return "unknown_version", version
        if attempt.body != self.expected[version]:
            return "body", f"version {version}: {attempt.body[:100]}"
        if not any(one.version == version and attempt.end >= one.start and attempt.sent <= one.end for one in self.periods):
            return "period", version
        return None


def check_history(
    history: Sequence[Attempt],
    expected: Mapping[str, str],
    published: Sequence[tuple[float, str]],
    *,
    minimum: int,
    grace: float = 10.0,
    refused: frozenset[str] = frozenset(),
    documented: frozenset[int] = DOCUMENTED,
) -> Report:
    """Compare each attempt with what was allowed.

    `expected` is the body of each version, `published` when each became the served one (monotonic seconds), `grace` how many
    seconds after a newer one it may still respond, `refused` versions that must never respond, `minimum` how many right responses
    make a run.
    """
    rules = Rules(expected, _periods(published, grace), refused, documented)
    violations = []
    right: list[Attempt] = []
    for attempt in history:
        violation = rules.violation(attempt)
        if violation is not None:
            code, detail = violation
            violations.append(Violation(code, f"{attempt.id}/{attempt.attempt}", detail))
        elif attempt.status == 200 and not attempt.error:
            right.append(attempt)
    if len(right) < minimum:
        violations.append(Violation("too_few", "", f"{len(right)} right responses, {minimum} make a run"))
    first = {attempt.id: attempt for attempt in history if attempt.attempt == 1}
    last = {attempt.id: attempt for attempt in history}
    # Of a first attempt the time counts from when it was due: waiting to be sent is waiting too.
    durations = sorted(attempt.end - (attempt.due if attempt.attempt == 1 else attempt.sent) for attempt in right)
    return Report(
        violations=tuple(violations),
        requests=len(first),
        answers=Counter(attempt.version for attempt in right),
        statuses=Counter(attempt.status for attempt in history),
        failed_first=sum(_failed(attempt) for attempt in first.values()),
        failed_after_retry=sum(_failed(attempt) for attempt in last.values()),
        refused=sum(attempt.status in (429, 503) and not attempt.error for attempt in first.values()),
        longest_silence=_longest_silence(history),
        p50=quantile(durations, 0.5),
        p99=quantile(durations, 0.99),
    )


def quantile(durations: Sequence[float], share: float) -> float:
    """The value below which this share of the sorted `durations` lies; 0.0 when there is none."""
    return durations[int(len(durations) * share)] if durations else 0.0


def _longest_silence(history: Sequence[Attempt]) -> float:
    """The longest time in seconds without a 200, from the first request to the end of the last."""
    start = min((attempt.sent for attempt in history), default=0.0)
    stop = max((attempt.end for attempt in history), default=0.0)
    good = sorted(attempt.end for attempt in history if attempt.status == 200 and not attempt.error)
    return max(b - a for a, b in pairwise([start, *good, stop]))


def _failed(attempt: Attempt) -> bool:
    """No response, or a server's error; 429 is a response that says when to come back."""
    return bool(attempt.error) or attempt.status >= 500


def _periods(published: Sequence[tuple[float, str]], grace: float) -> list[Period]:
    ends = [at + grace for at, _ in published[1:]] + [float("inf")]
    return [Period(version, at, end) for (at, version), end in zip(published, ends, strict=True)]
