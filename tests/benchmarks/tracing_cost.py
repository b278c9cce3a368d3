"""What a span costs: microseconds per single-row prediction without tracing, not sampled, and sampled.

    python -m tests.benchmarks.tracing_cost

The same requests in turn, in one thread, without network; spans are dropped where they would be sent. The best round counts.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from serve_app.artifacts.store import Store
from serve_app.telemetry.tracing import Tracing
from tests.benchmarks.metrics_cost import ROUNDS, ask, gateway_of
from tests.support.models import publish_iris


class Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def measure(folder: Path) -> None:
    publish_iris(Store(folder), onnx=True)
    gateway, _ = gateway_of(folder, counts=True)
    ways = {
        "without tracing": gateway.answer,
        "not sampled": Tracing(BatchSpanProcessor(Nowhere()), 0.0).around(gateway.answer, gateway.route_of),
        "sampled": Tracing(BatchSpanProcessor(Nowhere()), 1.0).around(gateway.answer, gateway.route_of),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, answer in ways.items():
            best[name] = min(best[name], await ask(answer))
    for name, seconds in best.items():
        print(f"{name}: {seconds * 1e6:.2f} us a row, {(seconds - best['without tracing']) * 1e6:+.2f} us")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(measure(Path(temporary)))
