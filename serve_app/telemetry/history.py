"""The recent past of a replica for the console: its traffic by minute, and its inputs over the last hours.

Requests do not touch it. The loop that exports the metrics calls `sample` about once a second, which compares the counts with those
of the last call. The size is bounded: one hour of minutes, and one copy of the drift counts for each step of the window.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from serve_app.telemetry import histogram
from serve_app.telemetry.histogram import SECONDS_BOUNDS, Histogram
from serve_app.telemetry.state import BinCounts, MetricsState, RequestKey

MINUTES = 60
"""Number of minutes with traffic counts."""
STEP_SECONDS = 15 * 60
STEPS = 24
"""The console compares the drift counts of the last STEPS times STEP_SECONDS (6 hours) with the training."""


@dataclass(slots=True)
class Minute:
    """The requests of one minute: `start` in minutes since 1970, their number by status class, their durations (SECONDS_BOUNDS)."""

    start: int
    requests: dict[str, float] = field(default_factory=dict)
    seconds: Histogram = field(default_factory=lambda: histogram.empty(SECONDS_BOUNDS))


@dataclass(frozen=True, slots=True)
class Mark:
    """The drift counts of one version at the start of a step; `at` in seconds since 1970."""

    at: float
    features: tuple[npt.NDArray[np.float64], ...]
    predictions: npt.NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class Recent:
    """The rows of one version by the bins of its reference, counted since `since` (seconds since 1970)."""

    counts: BinCounts
    since: float
    features: tuple[npt.NDArray[np.float64], ...]
    predictions: npt.NDArray[np.float64] | None


class History:
    """The recent past of one replica; only the thread of the event loop uses it.

    The traffic counts prediction requests of all protocols, without requests of probes, scrapers and pages.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._before: dict[RequestKey, Histogram] = {}
        self._minutes: deque[Minute] = deque(maxlen=MINUTES)
        self._marks: deque[Mark] = deque(maxlen=STEPS)
        self._counts: BinCounts | None = None  # the counts to which the marks belong
        self._known: tuple[BinCounts, ...] = ()

    def sample(self, state: MetricsState, version: str | None) -> None:
        """Add the counts since the last call; `version` is the served version."""
        now = self._clock()
        self._sample_requests(state, int(now // 60))
        self._sample_bins(None if version is None else state.bins.get(version), now)
        self._known = tuple(state.bins.values())

    def minutes(self) -> list[Minute]:
        """The minutes of the last hour with requests, the oldest first."""
        first = int(self._clock() // 60) - MINUTES
        return [minute for minute in self._minutes if minute.start > first]

    def recent(self, digest: str) -> Recent | None:
        """The rows of the last hours for the version with this digest; None before its first sample."""
        counts = self._counts
        if counts is None or counts.digest != digest or not self._marks:
            return None
        first = self._marks[0]
        features = tuple(rows - before for rows, before in zip(counts.features, first.features, strict=True))
        predictions = None
        if counts.predictions is not None and first.predictions is not None:
            predictions = counts.predictions - first.predictions
        return Recent(counts, first.at, features, predictions)

    def _sample_requests(self, state: MetricsState, start: int) -> None:
        current: dict[RequestKey, Histogram] = {}
        for key in {key for key, body_format in state.requests if body_format}:  # a page has no format
            seconds = state.seconds[key]
            before = self._before.get(key)
            if before is not None and np.array_equal(before, seconds):
                current[key] = before
                continue
            current[key] = seconds.copy()
            added = seconds if before is None else seconds - before
            count = histogram.count(added)
            if count > 0:
                minute = self._minute(start)
                minute.requests[key[2]] = minute.requests.get(key[2], 0.0) + count
                minute.seconds += added
        self._before = current  # also drops the counts that the collector dropped

    def _minute(self, start: int) -> Minute:
        """The newest minute; a clock that was set back does not create an older minute."""
        if not self._minutes or self._minutes[-1].start < start:
            self._minutes.append(Minute(start))
        return self._minutes[-1]

    def _sample_bins(self, counts: BinCounts | None, now: float) -> None:
        if counts is not self._counts:
            self._counts = counts
            self._marks.clear()
            if counts is not None and not any(counts is known for known in self._known):
                counts = BinCounts.empty(counts.digest, counts.reference)  # all counts of a new version are recent
        if counts is not None and (not self._marks or now - self._marks[-1].at >= STEP_SECONDS):
            predictions = None if counts.predictions is None else counts.predictions.copy()
            self._marks.append(Mark(now, tuple(rows.copy() for rows in counts.features), predictions))
