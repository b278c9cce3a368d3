"""Rate limits as clients meet them, and which forwarded address is believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.artifacts.store import Store
from serve_app.http.rate_limit import COMPAT_RATES, _client_of, _peer, parse_proxies
from serve_app.http.rate_window import Rate
from tests.support.apps import HEADERS, KEY, client_of, rate_limits
from tests.support.keys import add_key
from tests.support.models import A_FLOWER, logistic_store

HOUR = 3600.0
"""A window that does not end while a busy machine runs a test."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


def from_address(client: TestClient, forwarded: str = "") -> int:
    headers = {**HEADERS, **({"X-Forwarded-For": forwarded} if forwarded else {})}
    return client.post("/predict", json=A_FLOWER, headers=headers).status_code


def test_a_key_over_its_limit_is_told_when_to_come_back_and_others_are_not_touched(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    alice = add_key(file, "alice")
    client = client_of(store, rate_limits=rate_limits(per_key=Rate(3, HOUR)), api_keys_file=file)
    calls = (("POST", "/predict"), ("GET", "/model"), ("POST", "/predict/batch"))
    bodies = {"/predict": json.dumps(A_FLOWER), "/predict/batch": json.dumps({"instances": [A_FLOWER]})}
    for method, path in calls:
        assert client.request(method, path, content=bodies.get(path), headers=HEADERS).status_code == 200
    for method, path in calls:
        refused = client.request(method, path, content=bodies.get(path), headers=HEADERS)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 3600
        assert refused.headers["ratelimit-policy"] == '"per-key";q=3;w=3600'
        assert refused.headers["ratelimit"] == f'"per-key";r=0;t={refused.headers["retry-after"]}'
        assert refused.headers["x-content-type-options"] == "nosniff"
        assert KEY not in refused.text
    assert client.post("/predict", json=A_FLOWER, headers={"X-API-Key": alice}).status_code == 200
    assert client.post("/predict", json=A_FLOWER).status_code == 401
    assert client.get("/readyz").status_code == client.get("/metrics").status_code == 200


def test_a_client_that_guesses_keys_is_stopped(store: Store) -> None:
    client = client_of(store, rate_limits=rate_limits(per_client=Rate(5, HOUR)))
    statuses = [client.post("/predict", json=A_FLOWER, headers={"X-API-Key": f"guess-{n}"}).status_code for n in range(10)]
    assert statuses == [403] * 5 + [429] * 5
    assert {client.get(path).status_code for path in ("/livez", "/readyz", "/metrics", "/health")} == {200}


def test_the_compatible_limits_are_per_client_and_route(store: Store) -> None:
    client = client_of(
        store, rate_limits=rate_limits(per_route={path: Rate(rate.count, HOUR) for path, rate in COMPAT_RATES.items()})
    )
    assert {rate.seconds for rate in COMPAT_RATES.values()} == {60}
    assert [from_address(client) for _ in range(12)] == [200] * 10 + [429] * 2
    assert [client.get("/model/info", headers=HEADERS).status_code for _ in range(21)] == [200] * 20 + [429]
    assert [client.get("/health").status_code for _ in range(31)] == [200] * 30 + [429]
    assert client.get("/model", headers=HEADERS).status_code == 200


def test_without_limits_nothing_is_counted(store: Store) -> None:
    client = client_of(store)
    assert {from_address(client) for _ in range(50)} == {200}


def test_a_forwarded_address_is_believed_only_from_a_configured_proxy(store: Store) -> None:
    limits = rate_limits(per_client=Rate(1, HOUR))
    stranger = client_of(store, rate_limits=limits)
    assert [from_address(stranger, f"203.0.113.{n}") for n in range(3)] == [200, 429, 429]
    trusted = rate_limits(per_client=Rate(1, HOUR), proxies=parse_proxies(("10.0.0.0/8",)))
    app = client_of(store, rate_limits=trusted).app
    behind = TestClient(app, client=("10.1.2.3", 5000))
    assert [from_address(behind, f"203.0.113.{n}") for n in range(3)] == [200, 200, 200]
    assert [from_address(behind, f"192.0.2.{n}, 203.0.113.9, 10.9.9.9") for n in range(3)] == [200, 429, 429]


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.1", "198.51.100.7", "203.0.113.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7:4711", "198.51.100.7"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.1"),
        ("10.0.0.1", "not an address", "unknown"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::/64"),
        ("2001:db8::2", "", "2001:db8::/64"),
        ("", "198.51.100.7", "unknown"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy(peer: str, forwarded: str, client: str) -> None:
    assert _client_of(parse_proxies(("10.0.0.0/8",)))(peer, forwarded.encode()) == client


def test_whatever_connects_is_the_proxy_where_the_settings_say_so() -> None:
    client = _client_of(parse_proxies(("peer", "10.0.0.0/8")))
    assert client("172.16.0.1", b"1.1.1.1, 198.51.100.7, 10.0.0.2") == "198.51.100.7"
    assert client("172.16.0.1", b"") == "172.16.0.1"
    assert client("172.16.0.1", b"172.16.0.2") == "172.16.0.2"


def test_what_the_server_made_of_a_forwarded_address_is_taken_back() -> None:
    assert _peer({"client": ("198.51.100.7", 0)}) == "127.0.0.1"
    assert _peer({"client": ("198.51.100.7", 4711)}) == "198.51.100.7"
    assert _peer({"client": None}) == ""
