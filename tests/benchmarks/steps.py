"""The steps of one row in a replica's process: microseconds of each, without network.

    python -m tests.benchmarks.steps

Each step is called many times in a row, and the quickest of many short rounds counts. The gateway as a whole answers the same
request. What the other steps leave of its time are its own checks, the batcher, and the notes for the metrics.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from serve_app.artifacts.store import Store
from serve_app.protocols.native import NativeRowCodec
from tests.benchmarks.metrics_cost import BODY, ask, gateway_of
from tests.support.models import publish_iris
from tests.support.native import context_of

CALLS, ROUNDS = 100, 500


def best(call: Callable[[], object]) -> float:
    """Microseconds of a call in the quickest round."""
    quickest = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        quickest = min(quickest, time.perf_counter() - started)
    return 1e6 * quickest / CALLS


async def measure(folder: Path) -> dict[str, float]:
    publish_iris(Store(folder), onnx=True)
    gateway, collector = gateway_of(folder, counts=True)
    predictor = collector.slot.predictor
    assert predictor is not None
    codec = NativeRowCodec(context_of(predictor))
    batch = codec.decode(BODY, ())
    scores = predictor.row_scores(batch.matrix)
    whole = 1e6 * min([await ask(gateway.answer, CALLS) for _ in range(ROUNDS)])
    steps = {
        "decode and check": best(lambda: codec.decode(BODY, ())),
        "model": best(lambda: predictor.row_scores(batch.matrix)),
        "write the answer": best(lambda: codec.encode(batch, scores)),
    }
    return {**steps, "gateway, the rest": whole - sum(steps.values()), "the gateway as a whole": whole}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for name, microseconds in asyncio.run(measure(Path(temporary))).items():
            print(f"{name}: {microseconds:.1f} us")
