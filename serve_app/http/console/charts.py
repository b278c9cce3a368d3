"""The geometry of the charts: from numbers to rectangles and lines of an SVG. The content security policy allows no styles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 600.0, 120.0
"""The view box of a chart; CSS scales it."""
ROW_HEIGHT = 18.0
"""Height of one bin of a drift chart."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One rectangle; `kind` is its CSS class, `title` its tooltip."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """The points of a line in the syntax of SVG; `kind` is its CSS class."""

    points: str
    kind: str


def traffic_bars(minutes: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Return one stack of bars for each minute, with errors above successful requests; the highest stack fills the chart."""
    most = max((minute["requests"] for minute in minutes), default=0.0) or 1.0
    step = WIDTH / max(len(minutes), 1)
    bars = []
    for at, minute in enumerate(minutes):
        top = HEIGHT
        for kind in ("2xx", "4xx", "5xx"):
            height = HEIGHT * minute[kind] / most
            top -= height
            if height:
                title = f"{minute['at'][11:16]} UTC: {minute[kind]:g} {kind}"
                bars.append(Bar(_round(at * step), _round(top), _round(step * 0.8), _round(height), f"status-{kind}", title))
    return bars


def latency_lines(minutes: Sequence[Mapping[str, Any]]) -> tuple[list[Line], float | None]:
    """Return the lines of the 50th, 95th and 99th percentile, and the highest value. A minute without requests ends a line."""
    most = max((minute["p99"] for minute in minutes if minute["p99"] is not None), default=None)
    if not most:
        return [], most
    step = WIDTH / len(minutes)
    lines = []
    for kind in ("p99", "p95", "p50"):
        run: list[str] = []
        for at, minute in enumerate([*minutes, {kind: None}]):
            value = minute[kind]
            if value is not None:
                run.append(f"{_round((at + 0.1) * step)},{_round(HEIGHT * (1 - value / most))}")
                run.append(f"{_round((at + 0.7) * step)},{_round(HEIGHT * (1 - value / most))}")
            elif run:
                lines.append(Line(" ".join(run), kind))
                run = []
    return lines, most


def drift_bars(bins: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Return two bars for each bin: the share in training, and below it the share now."""
    most = max((max(each["training"], each["recent"]) for each in bins), default=0.0) or 1.0
    bars = []
    for at, each in enumerate(bins):
        for row, kind in enumerate(("training", "recent")):
            title = f"{each['label']}: {each[kind]:.1%} {'at training' if kind == 'training' else 'now'}"
            top = at * ROW_HEIGHT + 2 + row * 7
            bars.append(Bar(0.0, _round(top), _round(100 * each[kind] / most), 6.0, kind, title))
    return bars


def share_bar(share: float) -> float:
    """The width of the bar of a share; the share 1 has 100 units."""
    return _round(100 * min(max(share, 0.0), 1.0))


def _round(value: float) -> float:
    return round(value, 2)
