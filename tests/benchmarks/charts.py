"""Bar charts of a run of the benchmark as SVG: python -m tests.benchmarks.charts BENCHMARKS.json FOLDER."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

OURS, PLAIN, TIMES = "iris-api", "plain FastAPI", "\N{MULTIPLICATION SIGN}"
WIDTH, LEFT, RIGHT, LINE = 760, 210, 80, 24
"""Pixels: of a chart, of the labels, of the figures behind the bars, and from one bar to the next."""
STYLE = """\
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1c2733 }
text { stroke: #ffffff; stroke-width: 4px; paint-order: stroke }
.paper { fill: #ffffff } .title { font-size: 15px; font-weight: 600 } .group { font-weight: 600 }
.note { font-size: 12px; fill: #4d5a67 } .bar { fill: #98a4b0 } .ours { fill: #2f6fb3 }
.grid { stroke: #dde3e9 } .one { stroke: #1c2733 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; stroke: #131a21 } .paper { fill: #131a21 } .note { fill: #a9b5c1 }
.bar { fill: #677482 } .ours { fill: #5b9be0 } .grid { stroke: #2c3742 } .one { stroke: #e6edf3 }
}"""


class Bar(NamedTuple):
    """One figure with its name; `is_ours` gives the color of iris-api."""

    label: str
    value: float
    text: str
    is_ours: bool


class Group(NamedTuple):
    """The bars below one heading."""

    heading: str
    bars: Sequence[Bar]


class Axis(NamedTuple):
    """The positions of values: `low` to `high`, on a logarithmic scale for ratios. Bars begin at `base`."""

    low: float
    high: float
    base: float
    ticks: Mapping[float, str]
    is_logarithmic: bool

    def at(self, value: float) -> float:
        low, high, value = (math.log(each) if self.is_logarithmic else each for each in (self.low, self.high, value))
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)


def pictures(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the SVG of each chart whose part was measured, by the name of its file."""
    charts: dict[str, tuple[str, Callable[[Any], tuple[Axis, list[Group]]], str]] = {
        "benchmarks.svg": ("models", _rates, "Requests or rows a second, times plain FastAPI (logarithmic)"),
        "benchmarks-formats.svg": ("batches", _formats, "Rows a second by form of request and answer, logistic regression"),
        "benchmarks-servers.svg": (
            "servers",
            _servers,
            "Requests or rows a second, times plain FastAPI in the same run (logarithmic)",
        ),
    }
    return {name: _svg(title, *draw(found[part])) for name, (part, draw, title) in charts.items() if found.get(part)}


def _rates(models: Sequence[Mapping[str, Any]]) -> tuple[Axis, list[Group]]:
    groups = [
        Group(
            f"{model['model']} ({model['predictor']})",
            [Bar(load, row["ratio"], _times(row["ratio"]), True) for load, row in model["loads"].items()],
        )
        for model in models
    ]
    return _ratios(groups), groups


def _servers(loads: Mapping[str, Mapping[str, float]]) -> tuple[Axis, list[Group]]:
    groups = [
        Group(load, [Bar(name, ratio, _times(ratio), name == OURS) for name, ratio in servers.items() if name != PLAIN])
        for load, servers in loads.items()
    ]
    return _ratios(groups), groups


def _formats(batches: Sequence[Mapping[str, Any]]) -> tuple[Axis, list[Group]]:
    groups = [
        Group(
            f"{count:,} rows a call",
            [Bar(row["form"], row["rate"], f"{row['rate']:,.0f}", row["form"] != PLAIN) for row in batches if row["rows"] == count],
        )
        for count in dict.fromkeys(row["rows"] for row in batches)
    ]
    top = max(row["rate"] for row in batches)
    step = 10 ** math.floor(math.log10(top))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if top / (step * part) <= 6)
    ticks = {at * step: f"{at * step:,.0f}" for at in range(int(top / step) + 1)}
    return Axis(0, top, 0, ticks, is_logarithmic=False), groups


def _ratios(groups: Sequence[Group]) -> Axis:
    values = [bar.value for group in groups for bar in group.bars]
    low, high = min(0.8, 0.8 * min(values)), 1.2 * max(values)
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return Axis(low, high, 1, {10.0**power: f"{10.0**power:g} {TIMES}" for power in powers}, is_logarithmic=True)


def _times(ratio: float) -> str:
    return f"{ratio:.{0 if ratio >= 100 else 1 if ratio >= 2 else 2}f} {TIMES}"


def _svg(title: str, axis: Axis, groups: Sequence[Group]) -> str:
    height = 66 + sum(LINE * (1 + len(group.bars)) + 6 for group in groups)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
    paper = f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>'
    name = escape(title)
    lines = [
        head,
        f"<title>{name}</title>",
        f"<style>\n{STYLE}\n</style>",
        paper,
        f'<text class="title" x="14" y="24">{name}</text>',
    ]
    return "\n".join([*lines, *_grid(axis, height), *_bars(axis, groups), "</svg>"]) + "\n"


def _grid(axis: Axis, height: int) -> Iterator[str]:
    for value, text in axis.ticks.items():
        x, kind = axis.at(value), "one" if value == axis.base else "grid"
        yield f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="38" y2="{height - 26}"/>'
        yield f'<text class="note" text-anchor="middle" x="{x:.1f}" y="{height - 10}">{text}</text>'


def _bars(axis: Axis, groups: Sequence[Group]) -> Iterator[str]:
    y = 38
    for group in groups:
        yield f'<text class="group" x="14" y="{y + 17}">{escape(group.heading)}</text>'
        y += LINE
        for bar in group.bars:
            start, end = sorted((axis.at(axis.base), axis.at(bar.value)))
            kind = "bar ours" if bar.is_ours else "bar"
            yield f'<text text-anchor="end" x="{LEFT - 10}" y="{y + 16}">{escape(bar.label)}</text>'
            yield f'<rect class="{kind}" x="{start:.1f}" y="{y + 3}" width="{max(end - start, 1):.1f}" height="{LINE - 6}" rx="2"/>'
            yield f'<text x="{end + 6:.1f}" y="{y + 16}">{escape(bar.text)}</text>'
            y += LINE
        y += 6


def main() -> None:
    source, folder = map(Path, sys.argv[1:])
    for name, svg in pictures(json.loads(source.read_text())).items():
        (folder / name).write_text(svg)


if __name__ == "__main__":
    main()
