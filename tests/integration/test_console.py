"""The console on a real Ray Serve: whichever replica answers, the page speaks of all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.artifacts.store import Store
from tests.support.models import A_FLOWER, forest, logistic_store, publish_iris
from tests.support.processes import freeze, replicas, resident, thaw
from tests.support.server import HEADERS, Server, serving
from tests.support.waiting import until

REQUESTS = 40
LOOK_BYTES = 12 * 1024 * 1024
"""Most memory that looking at the page may add to a replica; measured: 6 MB."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("console")
    logistic_store(folder / "models")
    with serving(folder / "models", folder, replicas=2) as running:
        yield running


def data_of(server: Server) -> dict[str, Any]:
    """What the page shows, on a connection of its own, so that any replica may answer."""
    response = httpx2.get(f"{server.url}/ui/data", headers=HEADERS, timeout=30)
    assert response.status_code == 200
    data: dict[str, Any] = response.json()
    return data


def test_looking_at_the_page_costs_a_replica_little_memory(server: Server) -> None:
    pids = replicas(server.process.pid)
    for path in ("/metrics", "/model", "/openapi.json") * 8:  # what other requests bring into the memory is no cost of the page
        assert httpx2.get(f"{server.url}{path}", headers=HEADERS, timeout=30).status_code == 200
        assert httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers=HEADERS, timeout=30).status_code == 200
    before = sum(resident(pid) for pid in pids)
    until(lambda: len(data_of(server)["replicas"]) == 2)
    for _ in range(10):
        assert httpx2.get(f"{server.url}/ui/view", headers=HEADERS, timeout=30).status_code == 200
    assert sum(resident(pid) for pid in pids) - before < len(pids) * LOOK_BYTES


def test_any_replica_speaks_of_all_replicas(server: Server) -> None:
    before = data_of(server)["total"]["requests"]
    for _ in range(REQUESTS):
        assert httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers=HEADERS, timeout=30).status_code == 200
    until(lambda: data_of(server)["total"]["requests"] == before + REQUESTS, seconds=10)
    answers = [data_of(server) for _ in range(12)]
    assert len({answer["own"] for answer in answers}) == 2
    for answer in answers:
        assert {replica["replica"] for replica in answer["replicas"]} == {each["own"] for each in answers}
        assert (answer["serving"], answer["problem"]) == (2, None)


def test_a_replaced_model_is_seen_on_every_replica(server: Server, tmp_path: Path) -> None:
    store = Store(server.output.parent / "models")
    entry = publish_iris(store, forest(), onnx=True)
    until(lambda: {replica["digest"] for replica in data_of(server)["replicas"]} == {entry.digest}, seconds=60)
    assert data_of(server)["model"]["version"] == str(entry.version)


def test_a_replica_that_does_not_answer_is_named_and_holds_up_nothing(server: Server) -> None:
    data_of(server)
    pids = replicas(server.process.pid)
    frozen = pids[0]
    freeze(frozen)
    try:
        with contextlib.suppress(httpx2.HTTPError):  # the proxy may still send to the frozen one
            httpx2.get(f"{server.url}/ui/data", headers=HEADERS, timeout=8)

        def others() -> Any:
            with contextlib.suppress(httpx2.HTTPError):
                response = httpx2.get(f"{server.url}/ui/data", headers=HEADERS, timeout=8)
                return response.status_code == 200 and response.json()["serving"] >= 1
            return False

        assert until(others, seconds=30)
    finally:
        thaw(frozen)
    until(lambda: data_of(server)["serving"] == 2, seconds=60)


# --- actions


def test_without_the_setting_nothing_changes_the_served_version(server: Server) -> None:
    before = server.versions()
    for path, body in (("/ui/promote", {"version": "1"}), ("/ui/rollback", {})):
        response = httpx2.post(f"{server.url}{path}", json=body, headers=HEADERS, timeout=30)
        assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert "IRIS_CONSOLE_ACTIONS" in data_of(server)["actions"]["why"]
    assert server.versions() == before
