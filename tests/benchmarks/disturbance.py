"""Single rows beside something else: a batch of 100,000 rows, a model that is replaced. Shown is the p99 of the single rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx2

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.store import Store
from tests.benchmarks.wrk import Run, wrk
from tests.support.models import bundle_files, bundle_manifest, forest
from tests.support.server import HEADERS

CONNECTIONS = 4


def disturbances(url: str, store: Store, row: str, rows: str, folder: Path, *, seconds: float, repeat: int) -> dict[str, Run]:
    """Medians; `row` is the body of one row, `rows` that of a large batch."""
    files = bundle_files(forest(trees=200), onnx=True)
    manifest = bundle_manifest()
    kinds: dict[str, Callable[[], None]] = {
        "nothing": lambda: time.sleep(0.1),
        "100,000 rows in one call": lambda: _batch(url, rows),
        "a model replaced every second": lambda: _replace(store, files, manifest),
    }
    found: dict[str, list[Run]] = {name: [] for name in kinds}
    for _ in range(repeat):
        for name, deed in kinds.items():
            with _again_and_again(deed):
                found[name].append(wrk(f"{url}/predict", row, CONNECTIONS, seconds, folder))
    return {name: {number: median(run[number] for run in runs) for number in runs[0]} for name, runs in found.items()}


def _batch(url: str, rows: str) -> None:
    headers = {**HEADERS, "Content-Type": "application/json"}
    httpx2.post(f"{url}/predict/batch", content=rows, headers=headers, timeout=120).raise_for_status()


def _replace(store: Store, files: Mapping[str, bytes], manifest: Manifest) -> None:
    store.publish(files, manifest)
    time.sleep(1.0)


@contextmanager
def _again_and_again(deed: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                deed()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(180)
    if failed:
        raise failed[0]
