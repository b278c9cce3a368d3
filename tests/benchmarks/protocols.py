"""The Open Inference Protocol beside the native protocol, in one run and from one application; answers are compared first.

python -m tests.benchmarks.protocols --seconds 5 --repeat 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import httpx2
import numpy as np

from tests.benchmarks.__main__ import ours, repeated, samples
from tests.benchmarks.wrk import Run, wrk
from tests.support.oip import INFER, binary, outputs, request, tensor
from tests.support.server import HEADERS

LOADS = {
    "one row, 32 connections": (1, 32),
    "one row, 1 connection": (1, 1),
    "1,000 rows a call": (1000, 4),
    "100,000 rows a call": (100_000, 1),
}
BINARY = {"parameters": {"binary_data_output": True}}


class Call(NamedTuple):
    """Path, body and headers of a request."""

    path: str
    body: bytes
    headers: Mapping[str, str]


def calls(count: int) -> dict[str, Call]:
    """The same rows in each protocol, the native one first."""
    rows = repeated(samples(), count) if count > 1 else samples()[7:8]
    table = np.array([list(row.values()) for row in rows])
    columns = [tensor(column.tolist(), name=name) for name, column in zip(rows[0], table.T, strict=True)]
    native = ("/predict", rows[0]) if count == 1 else ("/predict/batch", {"instances": rows})
    return {
        "native JSON": Call(native[0], json.dumps(native[1]).encode(), {}),
        "tensor in JSON": Call(INFER, request(tensor(table.ravel().tolist(), shape=table.shape)), {}),
        "nested tensor in JSON": Call(INFER, request(tensor(table.tolist())), {}),
        "columns in JSON": Call(INFER, request(*columns), {}),
        "tensor in bytes": Call(INFER, *binary(tensor(table), **BINARY)),
        "FP32 tensor in bytes": Call(INFER, *binary(tensor(table, datatype="FP32"), **BINARY)),
    }


def check(url: str, found: Mapping[str, Call]) -> None:
    """Every protocol gives the same labels before one of them is timed."""
    labels: dict[str, list[str]] = {}
    for name, call in found.items():
        reply = httpx2.post(url + call.path, content=call.body, headers=_headers(call), timeout=60)
        reply.raise_for_status()
        if call.path == INFER:
            labels[name] = outputs(reply.content, reply.headers)["predict"].ravel().tolist()
        else:
            document = reply.json()
            labels[name] = [each["prediction"] for each in document.get("predictions", [document])]
    if any(each != labels["native JSON"] for each in labels.values()):
        raise AssertionError(f"different answers: {labels}")


def _headers(call: Call) -> dict[str, str]:
    return {**HEADERS, "Content-Type": "application/json", **call.headers}


def main() -> int:
    """Print a table: rows per second of each protocol, and as a multiple of the native protocol in the same round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="length of one run of the load generator")
    parser.add_argument("--repeat", type=int, default=3, help="rounds; medians are shown")
    parser.add_argument("--only", choices=LOADS, action="append", help="only this load; may be repeated")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iris-api-protocols-") as name, ours(Path(name), "protocols") as (url, _, _):
        folder = Path(name)
        for load in chosen.only or LOADS:
            count, connections = LOADS[load]
            found = calls(count)
            check(url, found)
            runs: dict[str, list[Run]] = {protocol: [] for protocol in found}
            for _ in range(chosen.repeat):
                for protocol, call in found.items():
                    runs[protocol].append(
                        wrk(url + call.path, call.body, connections, chosen.seconds, folder, headers=call.headers)
                    )
            lines = [f"\n| {load} | rows/s | of native | p50 ms | p99 ms |", "| --- | --: | --: | --: | --: |"]
            for protocol, rounds in runs.items():
                ratios = [run["rate"] / native["rate"] for run, native in zip(rounds, runs["native JSON"], strict=True)]
                rate, p50, p99 = (statistics.median(run[number] for run in rounds) for number in ("rate", "p50", "p99"))
                lines.append(f"| {protocol} | {rate * count:,.0f} | {statistics.median(ratios):.2f} | {p50:.2f} | {p99:.2f} |")
            sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
