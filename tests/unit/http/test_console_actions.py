"""`POST /ui/promote` and `POST /ui/rollback`: what moves the store's pointer, and every request that does not."""

from __future__ import annotations

import fcntl
import html
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.store import LOCK, Store
from serve_app.http.auth import Scope
from serve_app.http.console import pointer_moves
from serve_app.inference.slot import Slot
from tests.support.apps import HEADERS, client_of
from tests.support.keys import add_key
from tests.support.models import A_FLOWER, logistic, publish_iris, three_versions
from tests.support.policies import ALLOW_ALL

ACTIONS = ("/ui/promote", "/ui/rollback")
Headers = dict[str, str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return three_versions(tmp_path / "models")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def manager(keys: Path) -> Headers:
    """The headers of a client whose key may manage."""
    return headers_of(keys, "olga", "manage")


@pytest.fixture
def client(store: Store, keys: Path, manager: Headers) -> TestClient:
    return opened(store, api_keys_file=keys)


def headers_of(keys: Path, name: str, *scopes: Scope) -> Headers:
    return {"X-API-Key": add_key(keys, name, *scopes)}


def opened(store: Store, **options: Any) -> TestClient:
    return client_of(store, **{"model_dir": store.root, "console_actions": True, **options})


def served(store: Store) -> int | None:
    return None if (entry := store.served()) is None else entry.version


def problem_of(response: Any) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def actions_of(client: TestClient, headers: Headers) -> dict[str, Any]:
    response = client.get("/ui/data", headers=headers)
    assert response.status_code == 200
    actions: dict[str, Any] = response.json()["actions"]
    return actions


# --- what moves the pointer


def test_a_version_is_promoted_and_the_replica_follows_as_it_follows_the_command(
    store: Store, client: TestClient, manager: Headers
) -> None:
    response = client.post("/ui/promote", json={"version": "1"}, headers=manager)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    digest = store.entries()[0].digest
    assert response.json() == {"version": "1", "digest": digest, "before": "3", "notes": []}
    assert served(store) == 1
    client.app_state["slot"].refresh()
    assert client.post("/predict", json=A_FLOWER, headers=manager).headers["x-model-version"] == "1"


def test_a_roll_back_serves_the_newest_older_version_that_is_not_damaged(
    store: Store, client: TestClient, manager: Headers
) -> None:
    (store.entries()[1].folder / JOBLIB).unlink()
    response = client.post("/ui/rollback", json={}, headers=manager)
    assert (response.status_code, response.json()["version"], response.json()["before"]) == (200, "1", "3")
    assert "version 2 is damaged" in response.json()["notes"][0]
    assert served(store) == 1


def test_a_version_that_was_registered_in_mlflow_says_that_the_alias_stays(tmp_path: Path, keys: Path, manager: Headers) -> None:
    store = Store(tmp_path / "tracked")
    for number in ("7", "8"):
        publish_iris(store, logistic(), mlflow_model_version=number)
    response = opened(store, api_keys_file=keys).post("/ui/rollback", json={"served": "2"}, headers=manager)
    assert response.status_code == 200
    assert "alias in MLflow" in response.json()["notes"][0]


def test_the_next_look_shows_the_new_pointer(client: TestClient, manager: Headers) -> None:
    with client:
        before = client.get("/ui/data", headers=manager).json()["store"]["versions"]
        client.post("/ui/promote", json={"version": "2"}, headers=manager)
        after = client.get("/ui/data", headers=manager).json()["store"]["versions"]
    assert [each["served"] for each in before] == [True, False, False]
    assert [each["served"] for each in after] == [False, True, False]


def test_a_change_is_logged_with_the_name_of_the_key_and_the_versions(
    client: TestClient, manager: Headers, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "iris_api.audit"):
        client.post("/ui/promote", json={"version": "1"}, headers={**manager, "X-Request-ID": "ticket-4"})
    (record,) = [record for record in caplog.records if record.name == "iris_api.audit"]
    fields = vars(record)
    assert {name: fields[name] for name in ("action", "key", "before", "version", "request_id")} == {
        "action": "promote",
        "key": "olga",
        "before": 3,
        "version": 1,
        "request_id": "ticket-4",
    }
    assert manager["X-API-Key"] not in str(fields)


# --- who may not


@pytest.mark.parametrize("path", ACTIONS)
def test_without_the_setting_the_addresses_do_not_exist(store: Store, keys: Path, manager: Headers, path: str) -> None:
    client = opened(store, api_keys_file=keys, console_actions=False)
    assert problem_of(client.post(path, json={"version": "1"}, headers=manager)) == (404, "not_found")
    assert served(store) == 3


@pytest.mark.parametrize("path", ACTIONS)
def test_a_key_without_the_scope_is_refused(
    store: Store, keys: Path, client: TestClient, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"version": "1"} if path == ACTIONS[0] else {}
    alice = headers_of(keys, "alice")
    fresh = opened(store, api_keys_file=keys)
    for headers, expected in (
        ({}, (401, "missing_key")),
        ({"X-API-Key": "wrong"}, (403, "wrong_key")),
        (HEADERS, (403, "insufficient_scope")),  # the plain key
        (alice, (403, "insufficient_scope")),
        ({"Authorization": f"Bearer {alice['X-API-Key']}"}, (403, "insufficient_scope")),
    ):
        assert problem_of(fresh.post(path, json=body, headers=headers)) == expected
    assert served(store) == 3
    assert {vars(record)["key"] for record in caplog.records if record.name == "iris_api.audit"} == {"API_KEY", "alice"}


@pytest.mark.parametrize("path", ACTIONS)
def test_where_no_key_is_configured_no_client_may(store: Store, path: str) -> None:
    client = opened(store, api_key=None)
    assert client.post("/predict", json=A_FLOWER).status_code == 200
    assert problem_of(client.post(path, json={"version": "1"}, headers={"X-API-Key": "any"})) == (403, "insufficient_scope")
    assert "no API key" in actions_of(client, {})["why"]


def test_a_key_loses_the_scope_while_requests_run(store: Store, keys: Path, manager: Headers) -> None:
    from serve_app.http.auth import Keys

    known = Keys(None, keys)
    entries = [{**entry, "scopes": ["predict"]} for entry in json.loads(keys.read_text())]
    keys.write_text(json.dumps(entries))
    known.refresh()
    found = known.check(manager["X-API-Key"].encode(), None)
    assert not isinstance(found, str)
    assert "manage" not in found.scopes


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_that_a_form_could_send_is_refused(
    store: Store, client: TestClient, manager: Headers, path: str, content_type: str | None
) -> None:
    headers = {**manager, **({"Content-Type": content_type} if content_type else {})}
    content = b'{"version": "1"}' if path == ACTIONS[0] else b"{}"
    assert problem_of(client.post(path, content=content, headers=headers)) == (415, "unsupported_media_type")
    assert problem_of(client.post(path, headers=headers)) == (415, "unsupported_media_type")
    assert served(store) == 3


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)])
def test_a_page_of_another_site_is_refused_with_a_right_key(client: TestClient, manager: Headers, site: str, status: int) -> None:
    response = client.post("/ui/rollback", json={}, headers={**manager, "Sec-Fetch-Site": site, "Origin": "https://example.org"})
    assert response.status_code == status
    assert status == 200 or problem_of(response) == (403, "cross_site")


@pytest.mark.parametrize("path", ACTIONS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_other_methods_change_nothing(store: Store, client: TestClient, manager: Headers, path: str, method: str) -> None:
    assert client.request(method, path, headers=manager).status_code == 405
    assert served(store) == 3


# --- what cannot be done


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/ui/promote", b"", (400, "malformed")),
        ("/ui/promote", b"[", (400, "malformed")),
        ("/ui/promote", b'["1"]', (400, "malformed")),
        ("/ui/promote", b"{}", (422, "invalid_input")),
        ("/ui/promote", b'{"version": 1}', (422, "invalid_input")),
        ("/ui/promote", b'{"version": "0"}', (422, "invalid_input")),
        ("/ui/promote", b'{"version": "-1"}', (422, "invalid_input")),
        ("/ui/promote", b'{"version": "../1"}', (422, "invalid_input")),
        ("/ui/promote", b'{"version": "\xd9\xa1"}', (422, "invalid_input")),
        ("/ui/promote", b'{"version": "1' + b"0" * 18 + b'"}', (422, "invalid_input")),
        ("/ui/promote", b'{"version": "1", "force": true}', (422, "invalid_input")),
        ("/ui/promote", b'{"version": "1", "served": 3}', (422, "invalid_input")),
        ("/ui/rollback", b'{"version": "1"}', (422, "invalid_input")),
        ("/ui/promote", b'{"version": "9"}', (409, "not_promoted")),
        ("/ui/promote", b'{"version": "1", "served": "2"}', (409, "pointer_moved")),
        ("/ui/rollback", b'{"served": "2"}', (409, "pointer_moved")),
    ],
)
def test_a_wrong_body_changes_nothing(
    store: Store, client: TestClient, manager: Headers, path: str, body: bytes, expected: tuple[int, str]
) -> None:
    headers = {**manager, "Content-Type": "application/json; charset=utf-8"}
    assert problem_of(client.post(path, content=body, headers=headers)) == expected
    assert served(store) == 3


def test_rolling_back_twice_from_the_same_page_goes_back_once(store: Store, client: TestClient, manager: Headers) -> None:
    first, second = (client.post("/ui/rollback", json={"served": "3"}, headers=manager) for _ in range(2))
    assert (first.status_code, problem_of(second)) == (200, (409, "pointer_moved"))
    assert served(store) == 2


def test_a_damaged_version_is_not_promoted(store: Store, client: TestClient, manager: Headers) -> None:
    (store.entries()[0].folder / JOBLIB).unlink()
    response = client.post("/ui/promote", json={"version": "1"}, headers=manager)
    assert problem_of(response) == (409, "not_promoted")
    assert "damaged" in response.json()["detail"]
    assert served(store) == 3


def test_the_oldest_version_and_an_empty_store_have_nothing_to_roll_back_to(
    tmp_path: Path, store: Store, keys: Path, client: TestClient, manager: Headers
) -> None:
    client.post("/ui/promote", json={"version": "1"}, headers=manager)
    assert problem_of(client.post("/ui/rollback", json={}, headers=manager)) == (409, "not_promoted")
    empty = opened(Store(tmp_path / "empty"), api_keys_file=keys)
    for path, body in (("/ui/promote", {"version": "1"}), ("/ui/rollback", {})):
        assert problem_of(empty.post(path, json=body, headers=manager)) == (409, "not_promoted")
    assert not (tmp_path / "empty").exists()


def test_a_version_that_the_replicas_would_refuse_is_not_promoted(tmp_path: Path, keys: Path, manager: Headers) -> None:
    from serve_app.inference.policy import LoadPolicy

    store = Store(tmp_path / "mixed")
    publish_iris(store, logistic())
    publish_iris(store, logistic(), onnx=True)
    client = opened(store, api_keys_file=keys, policy=LoadPolicy(allow_joblib=False, backend="auto", verify=None, trial=None))
    response = client.post("/ui/promote", json={"version": "1"}, headers=manager)
    assert problem_of(response) == (409, "not_promoted")
    assert "IRIS_ALLOW_JOBLIB" in response.json()["detail"]
    assert served(store) == 2


def test_a_store_that_cannot_be_written_is_503(store: Store, client: TestClient, manager: Headers) -> None:
    (store.root / LOCK).unlink()
    (store.root / LOCK).mkdir()
    for path, body in (("/ui/promote", {"version": "1"}), ("/ui/rollback", {})):
        assert problem_of(client.post(path, json=body, headers=manager)) == (503, "store_not_writable")
    assert served(store) == 3


def test_a_change_that_waits_too_long_for_the_lock_is_503_and_never_happens(
    store: Store, client: TestClient, manager: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pointer_moves, "MOVE_SECONDS", 0.2)
    with client:
        with (store.root / LOCK).open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert problem_of(client.post("/ui/promote", json={"version": "1"}, headers=manager)) == (503, "store_busy")
            assert client.post("/predict", json=A_FLOWER, headers=manager).status_code == 200
        monkeypatch.undo()
        assert client.post("/ui/promote", json={"version": "2", "served": "3"}, headers=manager).status_code == 200
    assert served(store) == 2


def test_where_the_alias_in_mlflow_decides_the_store_is_left_alone(
    store: Store, client: TestClient, manager: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slot, "model_source", "mlflow")
    assert problem_of(client.post("/ui/promote", json={"version": "1"}, headers=manager)) == (409, "alias_decides")
    assert "alias" in actions_of(client, manager)["why"]
    assert served(store) == 3


# --- what the page shows


def buttons(client: TestClient, headers: Headers) -> list[str]:
    text = client.get("/ui/view", headers=headers).text
    return re.findall(r'data-move="(\w+)"', text)


def test_the_page_has_buttons_only_for_a_key_that_may(store: Store, keys: Path, manager: Headers) -> None:
    alice = headers_of(keys, "alice")
    client = opened(store, api_keys_file=keys)
    assert actions_of(client, manager) == {"allowed": True, "why": None, "back": 2}
    assert buttons(client, manager) == ["2", "1", "back"]
    assert "make promote" not in client.get("/ui/view", headers=manager).text
    for headers in (alice, HEADERS):
        assert actions_of(client, headers)["why"] == "this key does not have the scope manage"
        assert buttons(client, headers) == []
        shown = html.unescape(client.get("/ui/view", headers=headers).text)
        assert "because this key does not have the scope manage" in shown
        assert "make promote VERSION=1" in shown
        assert "make rollback" in shown


def test_the_page_says_that_the_setting_or_the_store_allows_nothing(
    store: Store, keys: Path, manager: Headers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "IRIS_CONSOLE_ACTIONS" in actions_of(opened(store, api_keys_file=keys, console_actions=False), manager)["why"]
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != store.root and access(path, mode))
    client = opened(store, api_keys_file=keys)
    assert actions_of(client, manager)["why"] == "this replica cannot write to the store"
    assert buttons(client, manager) == []


def test_a_damaged_version_and_the_served_one_have_no_button(store: Store, client: TestClient, manager: Headers) -> None:
    damaged = store.entries()[1].folder / "metadata.json"
    damaged.chmod(0o644)
    damaged.write_bytes(b"{}")
    assert buttons(client, manager) == ["1", "back"]
    assert actions_of(client, manager)["back"] == 1
    store.promote(1)
    fresh = client_of(store, policy=ALLOW_ALL, model_dir=store.root, console_actions=True, api_keys_file=None)
    assert buttons(fresh, HEADERS) == []


def test_the_oldest_version_has_no_button_to_roll_back(store: Store, client: TestClient, manager: Headers) -> None:
    store.promote(1)
    assert buttons(client, manager) == ["3", "2"]
    assert "no older version" in client.get("/ui/view", headers=manager).text
