"""Floods without a key against one replica behind HAProxy: its memory is bounded, and other clients are answered meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial

import httpx2
import pytest

from serve_app.artifacts.store import Store
from tests.support import processes
from tests.support.figures import note
from tests.support.floods import flood, head, hold, read_slowly
from tests.support.models import A_FLOWER, logistic, publish_iris
from tests.support.server import HEADERS, Server, serving
from tests.support.waiting import until

ORIGIN = "Origin: https://a.example"
STALLED, STREAMS, SECONDS = 110, 40, 5.0
GROWTH = 100e6
LEFT = 50e6
"""Bytes that the memory of a replica may grow by under a flood, and afterwards; the first flood also warms the allocator."""

FLOODS = {
    "an unknown path": [head("POST", "/nothing")],
    "GET /health": [head("GET", "/health")],
    "POST /health": [head("POST", "/health")],
    "/docs": [head("POST", "/docs"), head("PUT", "/static-offline-docs/swagger-ui.css")],
    "/predict": [head("POST", "/predict")],
    "/predict from a browser": [head("POST", "/predict", ORIGIN), head("POST", "/predict/batch", ORIGIN)],
    "/predict with gzip": [head("POST", "/predict", "Content-Encoding: gzip")],
    "Serve's control paths": [head("POST", "/-/healthz/"), head("GET", "/-/health%7a"), head("POST", "/-/route%73")],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = Store(tmp_path_factory.mktemp("models"))
    publish_iris(store, logistic(), onnx=True)
    with serving(store.root, tmp_path_factory.mktemp("server"), CORS_ORIGINS="https://a.example") as server:
        until(lambda: "iris-api: ready after" in server.output.read_text(), seconds=150, what="the end of the start")
        yield server


@contextlib.contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """The memory of a process, read every 50 ms until the block ends."""
    sizes: list[int] = [processes.resident(pid)]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            sizes.append(processes.resident(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join()


def ask(server: Server, times: int) -> Counter[tuple[str, int]]:
    """The statuses of `/health`, `/metrics` and of predictions as a browser sends them, each with a connection of its own."""
    statuses: Counter[tuple[str, int]] = Counter()
    for _ in range(times):
        for method, path in (("GET", "/health"), ("GET", "/readyz"), ("POST", "/predict")):
            headers = {**HEADERS, "Origin": "https://a.example"}
            body = A_FLOWER if method == "POST" else None
            response = httpx2.request(method, server.url + path, json=body, headers=headers, timeout=30)
            statuses[path, response.status_code] += 1
    return statuses


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_without_a_key_leaves_nothing_behind(server: Server, name: str) -> None:
    pid = processes.replicas(server.process.pid)[0]
    before = processes.resident(pid)
    with watched(pid) as sizes:
        result = asyncio.run(flood(server.url, FLOODS[name], stalled=STALLED, streams=STREAMS, seconds=SECONDS))
        until(lambda: processes.resident(pid) < before + LEFT, seconds=20, what="the end of the flood's memory")
    peak, left = max(sizes) - before, processes.resident(pid) - before
    statuses = {status: count for status, count in sorted(result.statuses.items()) if status}
    note(
        f"{name}: {result.sent / 1e6:.0f} MB sent, answers {statuses}, memory +{peak / 1e6:.0f} MB, afterwards {left / 1e6:+.0f} MB"
    )
    assert peak < GROWTH
    assert not [status for status in statuses if status.startswith("5")]
    assert processes.replicas(server.process.pid) == [pid]
    assert set(ask(server, 2)) == {("/health", 200), ("/readyz", 200), ("/predict", 200)}


@pytest.mark.parametrize("path", ["/nothing", "/health", "/docs", "/model", "/predict"])
def test_four_hundred_slow_connections_without_a_key_take_no_place(server: Server, path: str) -> None:
    heads = [head("POST", path, ORIGIN), head("POST", path), head("GET", path)]
    answers: list[Counter[tuple[str, int]]] = []
    work = partial(lambda: answers.append(ask(server, 20)))
    result = asyncio.run(hold(server.url, heads, connections=400, work=work))
    note(f"{path}: 400 slow connections, {sum(answers[0].values())} other requests, all 200: {dict(answers[0])}")
    assert set(answers[0]) == {("/health", 200), ("/readyz", 200), ("/predict", 200)}
    assert not [status for status in result.statuses if status.startswith("5")]


def test_a_thousand_clients_that_do_not_read_take_no_memory_and_no_place(server: Server) -> None:
    pid = processes.replicas(server.process.pid)[0]
    before = processes.resident(pid)
    answers: list[Counter[tuple[str, int]]] = []
    paths = ("/static-offline-docs/swagger-ui-bundle.js", "/openapi.json", "/metrics")
    with watched(pid) as sizes:
        asyncio.run(read_slowly(server.url, paths, connections=1000, work=lambda: answers.append(ask(server, 20))))
    note(f"1000 clients that do not read: memory +{(max(sizes) - before) / 1e6:.0f} MB, {sum(answers[0].values())} other requests")
    assert set(answers[0]) == {("/health", 200), ("/readyz", 200), ("/predict", 200)}
    assert max(sizes) - before < GROWTH
