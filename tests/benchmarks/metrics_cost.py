"""What counting costs: microseconds per single-row prediction with the metrics on and off, and milliseconds per export.

    python -m tests.benchmarks.metrics_cost

Both ways answer the same requests in turn, in one thread, without network; the best round of each counts. Their difference is
smaller than the noise of most machines, so the metrics are also timed by themselves, with the arithmetic that is done later.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from serve_app.artifacts.store import Store
from serve_app.http.app import create_app
from serve_app.http.gateway import Gateway
from serve_app.inference.slot import Slot
from serve_app.protocols.native import NativeRowCodec
from serve_app.telemetry.collector import MetricsCollector
from serve_app.telemetry.state import RequestLabels
from tests.support.apps import http_options
from tests.support.models import A_FLOWER, iris, iris_signature, publish_iris
from tests.support.native import context_of
from tests.support.policies import ALLOW_ALL
from training.reference import reference

REQUESTS = 8192
ROUNDS = 15
BODY = orjson.dumps(A_FLOWER)


class Silent(MetricsCollector):
    """A collector that counts nothing."""

    def answered(self, *_: Any) -> None: ...

    def predicted(self, *_: Any) -> None: ...


def gateway_of(folder: Path, *, counts: bool) -> tuple[Gateway, MetricsCollector]:
    slot = Slot(Store(folder), policy=ALLOW_ALL)
    slot.refresh()
    gateway: Gateway = create_app(slot, http_options()).state.gateway
    collector = (MetricsCollector if counts else Silent)(slot, folder)
    collector.poll_store()
    gateway._collector = gateway._service.collector = collector
    return gateway, collector


async def ask(answer: Callable[..., Awaitable[bool]], requests: int = REQUESTS) -> float:
    """Seconds per request."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY}

    async def send(message: dict[str, Any]) -> None: ...

    started = time.perf_counter()
    for _ in range(requests):
        await answer({**scope, "headers": list(scope["headers"])}, receive, send)
    return (time.perf_counter() - started) / requests


def alone(collector: MetricsCollector) -> float:
    """Seconds per request of what counting one row adds to it, settling included."""
    predictor = collector.slot.predictor
    assert predictor is not None
    matrix = NativeRowCodec(context_of(predictor)).decode(BODY, ()).matrix
    scores = predictor.scores(matrix)
    started = time.perf_counter()
    for _ in range(REQUESTS):
        collector.predicted(predictor, matrix, scores)
        collector.answered(RequestLabels("/predict", "native", "json"), 200, predictor.version, 0.0001)
    collector.flush()
    return (time.perf_counter() - started) / REQUESTS


async def measure(folder: Path) -> None:
    X, y = iris()
    signature = iris_signature()
    told = reference(pd.DataFrame(X, columns=list(signature.names)), y, signature)
    publish_iris(Store(folder), onnx=True, reference=told)
    (on, collector), (off, _) = gateway_of(folder, counts=True), gateway_of(folder, counts=False)
    rounds = [(await ask(on.answer), await ask(off.answer)) for _ in range(ROUNDS)]
    best_on, best_off = min(a for a, _ in rounds), min(b for _, b in rounds)
    print(f"one row: {best_on * 1e6:.2f} us with metrics, {best_off * 1e6:.2f} us without: {(best_on - best_off) * 1e6:.2f} us")
    print(f"the metrics of one row by themselves: {min(alone(collector) for _ in range(ROUNDS)) * 1e6:.2f} us")
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        samples = sum(len(family.samples) for family in collector.collect())
        seconds.append(time.perf_counter() - started)
    print(f"one collection of {samples} samples: {min(seconds) * 1e3:.2f} ms (every 5 s for Ray, and for each GET /metrics)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(measure(Path(temporary)))
