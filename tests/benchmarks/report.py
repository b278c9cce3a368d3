"""The figures of a run of the benchmark as text, as JSON and as charts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks import charts
from tests.benchmarks.batches import table

Found = dict[str, Any]

BEGIN, END = "<!-- batches -->", "<!-- end of batches -->"
"""Marks of a page around the table of batches."""


def text(found: Found) -> str:
    return "\n".join(line for part in (_models, _life, _replicas, _disturbance, _batches, _minute, _calls) for line in part(found))


def write(found: Found, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.json").write_text(json.dumps(found, indent=2) + "\n")
    (folder / "benchmarks.md").write_text(text(found))
    for name, svg in charts.pictures(found).items():
        (folder / name).write_text(svg)


def keep(found: Found, file: Path) -> None:
    """Put the figures of this run that charts show in place of those in the file."""
    kept = json.loads(file.read_text())
    for part in ("models", "batches"):
        kept[part] = found.get(part) or kept[part]
    file.write_text(json.dumps({**kept, "machine": found["machine"]}, indent=2) + "\n")


def fill(found: Found, page: Path) -> None:
    """Put the table of batches in place of the one between the two marks of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end or "batches" not in found:
        raise ValueError(f"{page} has no marks for the table of batches, or --only batches was not asked for")
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(table(found["batches"])) + f"{end}{after}")


def _models(found: Found) -> Iterator[str]:
    if not found["models"]:
        return
    yield "| model (predictor) | load | plain FastAPI | iris-api | ratio (lowest to highest) | p50 / p99 ms | p99 / p50 |"
    yield "| --- | --- | --: | --: | --: | --: | --: |"
    for result in found["models"]:
        for load, row in result["loads"].items():
            cells = (
                f"{result['model']} ({result['predictor']})",
                load,
                f"{row['plain_rate']:,.0f}/s",
                f"{row['rate']:,.0f}/s",
                f"**{row['ratio']:.2f}** ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
                f"{row['p50_ms']:.2f} / {row['p99_ms']:.2f}",
                f"{row['p99_ms'] / row['p50_ms']:.1f}",
            )
            yield f"| {' | '.join(cells)} |"
    yield ""


def _life(found: Found) -> Iterator[str]:
    if "life" not in found:
        return
    hello, ours = found["life"]["hello"], found["life"]["iris-api"]
    yield "| one replica | bare `serve run` | iris-api | ratio |"
    yield "| --- | --: | --: | --: |"
    names = {
        "start_seconds": "start to first answer, s",
        "stop_seconds": "stop, nothing left, s",
        "pss_megabytes": "memory (PSS), MB",
    }
    for kind, name in names.items():
        yield f"| {name} | {hello[kind]:.1f} | {ours[kind]:.1f} | {ours[kind] / hello[kind]:.2f} |"
    yield ""


def _replicas(found: Found) -> Iterator[str]:
    if "replicas" not in found:
        return
    rates, cpu = found["replicas"]["rate"], found["replicas"]["microseconds_of_cpu"]
    yield f"two replicas to one, 32 connections: {rates[2]:,.0f}/s to {rates[1]:,.0f}/s, {rates[2] / rates[1]:.2f}"
    for count, used in cpu.items():
        yield f"CPU of a request, µs, {count} replica(s): " + ", ".join(
            f"{name} {value:.0f}" for name, value in sorted(used.items(), key=lambda item: -item[1])
        )
    yield ""


def _disturbance(found: Found) -> Iterator[str]:
    if "disturbance" not in found:
        return
    quiet = found["disturbance"]["nothing"]
    yield "| single rows, 4 connections, beside | requests/s | p50 ms | p99 ms | p99 to that beside nothing | slowest ms |"
    yield "| --- | --: | --: | --: | --: | --: |"
    for name, run in found["disturbance"].items():
        numbers = f"{run['rate']:,.0f} | {run['p50']:.2f} | {run['p99']:.2f} | {run['p99'] / quiet['p99']:.1f} | {run['max']:.0f}"
        yield f"| {name} | {numbers} |"
    yield ""


def _batches(found: Found) -> Iterator[str]:
    if "batches" in found:
        yield from table(found["batches"])


def _minute(found: Found) -> Iterator[str]:
    if "minute" in found:
        run = found["minute"]
        yield (
            f"a minute of logistic regression over 32 connections: {run['rate']:,.0f}/s, p50 {run['p50']:.2f} ms, "
            f"p99 {run['p99']:.2f} ms, slowest {run['max']:.0f} ms"
        )
        yield ""


def _calls(found: Found) -> Iterator[str]:
    if "calls" not in found:
        return
    yield ""
    yield "| calls over gRPC, one connection | MLServer | iris-api | ratio (lowest to highest) | CPU of a call, µs |"
    yield "| --- | --: | --: | --: | --: |"
    for load, row in found["calls"].items():
        rates = f"{row['mlserver_rate']:,.0f}/s | {row['rate']:,.0f}/s"
        ratios = f"**{row['ratio']:.2f}** ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        yield f"| {load} | {rates} | {ratios} | {row['mlserver_cpu']:.0f} to {row['cpu']:.0f} |"
