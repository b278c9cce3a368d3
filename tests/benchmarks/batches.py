"""Many rows a call in each form of request and answer, beside plain FastAPI: rows a second, bytes, and CPU time of a call.

All forms get the same rows and must give the labels and the probabilities of the model before one of them is timed. One round loads
every form once, so a ratio compares runs of the same minute.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from serve_app.protocols.media_types import ANSWER_TYPES
from serve_app.protocols.oip import HEADER_LENGTH
from tests.benchmarks.process import cpu_seconds
from tests.benchmarks.wrk import wrk
from tests.support.models import IRIS_CLASSES
from tests.support.server import HEADERS

NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
JSON = {"Content-Type": "application/json"}
COLUMNS = {**JSON, "Accept": ANSWER_TYPES["columns"]}
INFER = "/v2/models/IrisClassifier/infer"
BY_ROW = "JSON, answers by row"
USED = ("CPU µs a call, replica / HAProxy",)
MOST_IN_PLAIN = 1000
"""A call with more rows takes the plain application more than a second."""
LEAST_SECONDS = 3
"""A run with such calls is at least so long."""
REPLICA, PROXY = "ray::ServeReplica:iris-api:IrisApi", "haproxy"


@dataclass(frozen=True, slots=True)
class Form:
    """One form of request and answer. `in_plain`: the plain application answers it, and is the base of the ratios."""

    name: str
    path: str
    rows: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    connections: int = 4
    in_plain: bool = False


def forms() -> list[Form]:
    """All forms, those with the same number of rows together: JSON with answers by row first, but for the plain application."""
    found: list[Form] = []
    for rows, connections in ((1000, 4), (100_000, 2)):
        values = flowers(rows)
        native = json.dumps({"instances": [dict(zip(NAMES, row, strict=True)) for row in values.tolist()]}).encode()
        if rows == MOST_IN_PLAIN:
            found.append(Form("plain FastAPI", "/predict/batch", rows, native, JSON, connections, in_plain=True))
        found += [
            Form(BY_ROW, "/predict/batch", rows, native, JSON, connections),
            Form("JSON, answers in columns", "/predict/batch", rows, native, COLUMNS, connections),
            Form("tensors in JSON", INFER, rows, *tensors(values), connections),
            Form("tensors in bytes, FP64", INFER, rows, *binary(values.astype("<f8"), "FP64"), connections),
            Form("tensors in bytes, FP32", INFER, rows, *binary(values.astype("<f4"), "FP32"), connections),
        ]
    return found


def flowers(rows: int) -> Any:
    """Rows of one decimal, in the range of the iris flowers, nearly all different; shape (rows, 4)."""
    return np.random.default_rng(7).uniform((4.3, 2.0, 1.0, 0.1), (7.9, 4.4, 6.9, 2.5), (rows, 4)).round(1)


def tensors(values: Any) -> tuple[bytes, Mapping[str, str]]:
    """A request of the Open Inference Protocol with its values in JSON."""
    tensor = {"name": "rows", "shape": list(values.shape), "datatype": "FP64", "data": values.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode(), JSON


def binary(values: Any, datatype: str) -> tuple[bytes, Mapping[str, str]]:
    """The same with its values in bytes, and those of the answer."""
    data = values.tobytes()
    tensor = {"name": "rows", "shape": list(values.shape), "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {"Content-Type": "application/octet-stream", HEADER_LENGTH.decode(): str(len(head))}


def batches(
    plain: str, ours: str, estimator: Any, session: int, folder: Path, *, seconds: float, repeat: int
) -> list[dict[str, Any]]:
    """The figures of each form; `plain` and `ours` are addresses, `session` that of our processes, `estimator` what both serve."""
    timed = forms()
    sizes = [_checked(plain if form.in_plain else ours, form, estimator.predict_proba(flowers(form.rows))) for form in timed]
    runs: list[list[dict[str, float]]] = [[] for _ in timed]
    for _ in range(repeat):
        for form, found in zip(timed, runs, strict=True):
            found.append(_run(plain if form.in_plain else ours, form, session, folder, seconds))
    plains = {form.rows: found for form, found in zip(timed, runs, strict=True) if form.in_plain}
    by_row = {form.rows: found for form, found in zip(timed, runs, strict=True) if form.name == BY_ROW}
    return [
        {
            "form": form.name,
            "rows": form.rows,
            "bytes_in": len(form.body),
            "bytes_out": size,
            "rate": statistics.median(run["rate"] for run in found),
            "times_plain": _ratio(found, plains[form.rows]) if form.rows in plains else None,
            "times_json": _ratio(found, by_row[form.rows]),
            "replica_us": statistics.median(run["replica_us"] for run in found),
            "proxy_us": statistics.median(run["proxy_us"] for run in found),
            "p50_ms": statistics.median(run["p50"] for run in found),
        }
        for form, found, size in zip(timed, runs, sizes, strict=True)
    ]


def table(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The figures as a table."""
    heads = ("rows a call", "form", "KB in / out", "rows/s", "times plain FastAPI", "times JSON by row", *USED, "p50 ms")
    yield f"| {' | '.join(heads)} |"
    yield "| --: | --- | --: | --: | --: | --: | --: | --: |"
    for row in found:
        cpu = "" if not row["replica_us"] else f"{row['replica_us']:,.0f} / {row['proxy_us']:,.0f}"
        cells = (
            f"{row['rows']:,}",
            row["form"],
            f"{row['bytes_in'] / 1e3:,.0f} / {row['bytes_out'] / 1e3:,.0f}",
            f"{row['rate']:,.0f}",
            "" if row["times_plain"] is None else f"{row['times_plain']:.1f}",
            f"{row['times_json']:.2f}",
            cpu,
            f"{row['p50_ms']:.2f}",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _run(url: str, form: Form, session: int, folder: Path, seconds: float) -> dict[str, float]:
    seconds = seconds if form.rows <= MOST_IN_PLAIN else max(seconds, LEAST_SECONDS)
    before = cpu_seconds(session)
    run = wrk(url + form.path, form.body, form.connections, seconds, folder, headers=form.headers)
    after = cpu_seconds(session)
    if not run["requests"]:
        raise AssertionError(
            f"{form.name}: no call of {form.rows} rows ended within {seconds} seconds; --seconds makes a run longer"
        )

    def microseconds(process: str) -> float:
        return 0.0 if form.in_plain else 1e6 * (after.get(process, 0.0) - before.get(process, 0.0)) / run["requests"]

    rate = run["rate"] * form.rows
    return {"rate": rate, "p50": run["p50"], "replica_us": microseconds(REPLICA), "proxy_us": microseconds(PROXY)}


def _ratio(runs: Sequence[Mapping[str, float]], base: Sequence[Mapping[str, float]]) -> float:
    return statistics.median(run["rate"] / other["rate"] for run, other in zip(runs, base, strict=True))


def _checked(url: str, form: Form, expected: Any) -> int:
    """The size of the answer in bytes; AssertionError when it does not say what the model says."""
    answer = httpx2.post(url + form.path, content=form.body, headers={**HEADERS, **form.headers}, timeout=120).raise_for_status()
    labels, probabilities = said(answer)
    if labels != [IRIS_CLASSES[at] for at in expected.argmax(axis=1)]:
        raise AssertionError(f"{form.name}: other labels")
    gap = float(np.abs(probabilities - expected).max())
    if gap > 1e-5:
        raise AssertionError(f"{form.name}: other probabilities, up to {gap}")
    return len(answer.content)


def said(answer: httpx2.Response) -> tuple[list[str], Any]:
    """The labels and the probabilities of an answer, whatever its form."""
    length = answer.headers.get(HEADER_LENGTH.decode())
    document = json.loads(answer.content[: int(length)] if length else answer.content)
    if "outputs" in document:
        labels, probabilities = document["outputs"]
        if length is None:
            return labels["data"], np.array(probabilities["data"]).reshape(probabilities["shape"])
        size = labels["parameters"]["binary_data_size"]
        texts, numbers = answer.content[int(length) : int(length) + size], answer.content[int(length) + size :]
        return list(_texts(texts)), np.frombuffer(numbers, "<f8").reshape(probabilities["shape"])
    predictions = document["predictions"]
    if isinstance(predictions, dict):
        return predictions["prediction"], np.array(list(predictions["probabilities"].values())).T
    probabilities = [list(each["probabilities"].values()) for each in predictions]
    return [each["prediction"] for each in predictions], np.array(probabilities)


def _texts(data: bytes) -> Iterator[str]:
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        yield data[4:end].decode()
        data = data[end:]
