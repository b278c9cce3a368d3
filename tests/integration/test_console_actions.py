"""The actions of the console on a real Ray Serve: what `/predict` answers changes on every replica, or nothing changes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve_app.artifacts.store import Store
from serve_app.http.auth import Scope
from tests.support.keys import add_key
from tests.support.models import A_FLOWER, forest, logistic_store, publish_iris
from tests.support.server import HEADERS, Server, serving
from tests.support.volume import mount, unmount
from tests.support.waiting import until

Headers = dict[str, str]


@dataclass(frozen=True, slots=True)
class Managed:
    """An application of two replicas over three versions, and the keys of two clients."""

    server: Server
    store: Store
    manager: Headers
    alice: Headers
    is_volume: bool


def headers_of(file: Path, name: str, *scopes: Scope) -> Headers:
    return {"X-API-Key": add_key(file, name, *scopes)}


@pytest.fixture(scope="module")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    folder = tmp_path_factory.mktemp("managed")
    models, keys = folder / "models", folder / "keys.json"
    models.mkdir()
    is_volume = mount(models, "size=64m")  # which only root may
    try:
        store = logistic_store(models)
        for number in range(2):
            publish_iris(store, forest(number + 1), onnx=True)
        manager, alice = headers_of(keys, "olga", "manage"), headers_of(keys, "alice")
        with serving(models, folder, replicas=2, IRIS_CONSOLE_ACTIONS="true", IRIS_API_KEYS_FILE=str(keys)) as server:
            yield Managed(server, store, manager, alice, is_volume)
    finally:
        if is_volume:
            unmount(models)


def served(server: Server) -> set[str]:
    """The versions that `/predict` names; each request has a connection of its own, so all replicas are asked."""
    answers = [httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers=HEADERS, timeout=30) for _ in range(8)]
    assert {answer.status_code for answer in answers} == {200}
    return {answer.headers["x-model-version"] for answer in answers}


def post(server: Server, path: str, body: dict[str, str], headers: Headers) -> tuple[int, str]:
    """The status, and the version that is served from now on or the code of the problem."""
    response = httpx2.post(f"{server.url}{path}", json=body, headers=headers, timeout=30)
    document = response.json()
    return response.status_code, document["version"] if response.status_code == 200 else document["code"]


def actions(managed: Managed, headers: Headers) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{managed.server.url}/ui/data", headers=headers, timeout=30).json()["actions"]
    return found


def test_a_key_without_the_scope_changes_nothing(managed: Managed) -> None:
    server = managed.server
    until(lambda: served(server) == {"3"}, seconds=60)
    for headers in (managed.alice, HEADERS):
        assert post(server, "/ui/promote", {"version": "1"}, headers) == (403, "insufficient_scope")
        assert post(server, "/ui/rollback", {}, headers) == (403, "insufficient_scope")
        assert not actions(managed, headers)["allowed"]
    assert served(server) == {"3"}


def test_a_key_with_the_scope_changes_what_every_replica_answers(managed: Managed) -> None:
    server, manager = managed.server, managed.manager
    assert actions(managed, manager) == {"allowed": True, "why": None, "back": 2}
    assert post(server, "/ui/promote", {"version": "1", "served": "3"}, manager) == (200, "1")
    until(lambda: served(server) == {"1"}, seconds=60)
    assert post(server, "/ui/promote", {"version": "3"}, manager) == (200, "3")
    assert post(server, "/ui/rollback", {"served": "3"}, manager) == (200, "2")
    assert post(server, "/ui/rollback", {"served": "3"}, manager) == (409, "pointer_moved")
    until(lambda: served(server) == {"2"}, seconds=60)
    until(lambda: changes(server) == [("olga", 1, 3), ("olga", 3, 1), ("olga", 3, 2)], seconds=20)


def changes(server: Server) -> list[tuple[str, int, int]]:
    """Key and versions of each change in the log; lines of two replicas may come in any order."""
    lines = [line for line in server.output.read_text().splitlines() if '"iris_api.audit"' in line]
    records = [json.loads(line[line.index("{") :]) for line in lines if '"before"' in line]
    return sorted((each["key"], each["before"], each["version"]) for each in records)


def test_a_store_that_is_read_only_stays_as_it_is(managed: Managed) -> None:
    if not managed.is_volume:
        pytest.skip("NOT TESTED: only root can mount a store")
    server, before = managed.server, managed.store.pointer()
    subprocess.run(["mount", "-o", "remount,ro", managed.store.root], check=True)
    assert post(server, "/ui/promote", {"version": "1"}, managed.manager) == (503, "store_not_writable")
    assert post(server, "/ui/rollback", {}, managed.manager) == (503, "store_not_writable")
    until(lambda: actions(managed, managed.manager)["why"] == "this replica cannot write to the store", seconds=20)
    assert managed.store.pointer() == before
