"""The report of each replica, and the sum of all reports. They are JSON types, because replicas send them to each other."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from serve_app.inference.slot import Slot
from serve_app.telemetry import histogram
from serve_app.telemetry.collector import MetricsCollector
from serve_app.telemetry.drift import Bins, stability_index
from serve_app.telemetry.histogram import SECONDS_BOUNDS
from serve_app.telemetry.history import MINUTES, History, Recent

Report = dict[str, Any]
"""The report of one replica; `own_report` makes it."""

CHANGED = 0.1
DRIFTED = 0.2
"""Population stability index from which a feature counts as changed, and as drifted (the limit of the alert)."""
ENOUGH_ROWS = 500
"""Fewest rows for a meaningful index; the alert waits for the same number."""


class Counted(NamedTuple):
    """Rows by bin of one column, counted by all replicas with the same model."""

    bins: Bins
    rows: list[float]


def own_report(slot: Slot, collector: MetricsCollector, history: History, name: str) -> Report:
    """The report of this replica with the name `name`. The function reads only memory."""
    collector.flush()
    predictor, refusal = slot.predictor, slot.refusal
    history.sample(collector.state, None if predictor is None else predictor.version)
    recent = None if predictor is None else history.recent(predictor.digest)
    return {
        "replica": name,
        "version": None if predictor is None else predictor.version,
        "digest": None if predictor is None else predictor.digest,
        "predictor": None if predictor is None else predictor.kind,
        "source": None if predictor is None else predictor.bundle.source,
        "model_source": slot.model_source,
        "loaded_at": slot.loaded_at,
        "load_seconds": round(slot.load_seconds, 4),
        "in_flight": collector.in_flight,
        "problem": slot.problem,
        "registry_problem": slot.registry_problem,
        "refused": None
        if refusal is None
        else {"candidate": refusal.candidate, "reason": refusal.reason, "message": refusal.message, "at": refusal.at},
        "minutes": [
            {"start": minute.start, "requests": dict(minute.requests), "seconds": minute.seconds.tolist()}
            for minute in history.minutes()
        ],
        "drift": None if recent is None else _drift_rows(recent),
    }


def traffic(reports: Sequence[Report], now: float | None = None) -> list[dict[str, Any]]:
    """All minutes of the last hour, oldest first: requests by status class, and latency in seconds."""
    newest = int((time.time() if now is None else now) // 60)
    first = newest - MINUTES + 1
    counts: list[dict[str, float]] = [{} for _ in range(MINUTES)]
    seconds = [histogram.empty(SECONDS_BOUNDS) for _ in range(MINUTES)]
    for minute in (minute for report in reports for minute in report["minutes"]):
        at = minute["start"] - first
        if 0 <= at < MINUTES:
            for status_class, count in minute["requests"].items():
                counts[at][status_class] = counts[at].get(status_class, 0.0) + count
            seconds[at] += np.array(minute["seconds"])
    return [_minute(first + at, counts[at], seconds[at]) for at in range(MINUTES)]


def totals(reports: Sequence[Report]) -> dict[str, Any]:
    """Requests by status class and latency in seconds, for the whole hour."""
    counts: dict[str, float] = {}
    seconds = histogram.empty(SECONDS_BOUNDS)
    for minute in (minute for report in reports for minute in report["minutes"]):
        for status_class, count in minute["requests"].items():
            counts[status_class] = counts.get(status_class, 0.0) + count
        seconds += np.array(minute["seconds"])
    return {key: value for key, value in _minute(0, counts, seconds).items() if key != "at"}


def drift(reports: Sequence[Report], recent: Recent | None) -> dict[str, Any] | None:
    """Compare the inputs and answers of the last hours with training; `recent` of this replica defines the bins of the counts.

    The rows of all replicas with the same model are added up. None without a model, or without a reference in its bundle.
    """
    if recent is None or not recent.counts.reference.features:
        return None
    same = [report["drift"] for report in reports if report["drift"] and report["drift"]["digest"] == recent.counts.digest]
    reference = recent.counts.reference
    features = [
        Counted(bins, _added([each["features"][at] for each in same if at < len(each["features"])], len(bins.labels)))
        for at, bins in enumerate(reference.features)
    ]
    bins = reference.predictions
    answers = [each["predictions"] for each in same if each["predictions"]]
    return {
        "since": datetime.fromtimestamp(min([each["since"] for each in same], default=recent.since), UTC).isoformat(
            timespec="seconds"
        ),
        "reference_rows": reference.rows,
        "features": [_compared(each) for each in features],
        "predictions": None if bins is None else _compared(Counted(bins, _added(answers, len(bins.labels)))),
    }


def _drift_rows(recent: Recent) -> dict[str, Any]:
    return {
        "digest": recent.counts.digest,
        "since": recent.since,
        "features": [rows.tolist() for rows in recent.features],
        "predictions": None if recent.predictions is None else recent.predictions.tolist(),
    }


def _added(rows: Sequence[Sequence[float]], size: int) -> list[float]:
    total = np.zeros(size)
    for each in rows:
        if len(each) == size:
            total += np.array(each)
    return [float(value) for value in total]


def _compared(counted: Counted) -> dict[str, Any]:
    bins, rows = counted
    total = math.fsum(rows)
    index = stability_index(np.array(rows), bins.expected) if total else None
    return {
        "name": bins.name,
        "rows": total,
        "index": index,
        "level": _level(index, total),
        "bins": [
            {"label": label, "training": expected, "recent": count / total if total else 0.0, "rows": count}
            for label, expected, count in zip(bins.labels, bins.expected, rows, strict=True)
        ],
    }


def _level(index: float | None, rows: float) -> str:
    if index is None or rows < ENOUGH_ROWS:
        return "too few rows"
    if index > DRIFTED:
        return "drifted"
    return "changed" if index > CHANGED else "stable"


def _minute(start: int, requests: Mapping[str, float], seconds: histogram.Histogram) -> dict[str, Any]:
    quantiles = {f"p{round(100 * share)}": histogram.quantile(seconds, SECONDS_BOUNDS, share) for share in (0.5, 0.95, 0.99)}
    classes = {name: requests.get(name, 0.0) for name in ("2xx", "4xx", "5xx")}
    return {
        "at": datetime.fromtimestamp(60 * start, UTC).isoformat(timespec="seconds"),
        "requests": math.fsum(requests.values()),
        **classes,
        **quantiles,
    }
