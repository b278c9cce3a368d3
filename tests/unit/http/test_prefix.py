"""The whole service works below a path, whether a proxy strips the path or not, and whether it tells it or not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_app.artifacts.store import Store
from serve_app.http.prefix import add_prefix
from serve_app.http.responses import ASGIApp, Receive, Scope, Send
from tests.support.apps import HEADERS, client_of
from tests.support.models import A_FLOWER, logistic_store

PREFIX = "/api/v1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


def stripping(app: ASGIApp) -> ASGIApp:
    """A proxy that answers below PREFIX and takes it off the path."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith(PREFIX)
            scope = {**scope, "path": scope["path"].removeprefix(PREFIX) or "/"}
        await app(scope, receive, send)

    return proxy


def mounting(app: ASGIApp) -> ASGIApp:
    """A server that has mounted the app below PREFIX, as Ray Serve does with a route prefix."""

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "root_path": PREFIX} if scope["type"] == "http" else scope, receive, send)

    return server


def unchanged(app: ASGIApp) -> ASGIApp:
    return app


@pytest.mark.parametrize(
    ("proxy", "headers", "options"),
    [
        (stripping, {}, {}),
        (stripping, {"X-Forwarded-Prefix": PREFIX}, {}),
        (stripping, {"X-Forwarded-Prefix": f"{PREFIX}/"}, {}),
        (stripping, {}, {"root_path": PREFIX}),
        (unchanged, {"X-Forwarded-Prefix": PREFIX}, {}),
        (unchanged, {}, {"root_path": PREFIX}),
        (unchanged, {"X-Forwarded-Prefix": PREFIX}, {"root_path": PREFIX}),
        (mounting, {}, {}),
    ],
    ids=["strips", "strips and tells", "tells with a slash", "strips, setting", "does not strip", "setting", "both", "mounted"],
)
def test_every_page_is_found_by_following_the_addresses_of_the_pages(
    store: Store, proxy: Callable[[ASGIApp], ASGIApp], headers: dict[str, str], options: dict[str, Any]
) -> None:
    client = TestClient(proxy(client_of(store, **options).app), raise_server_exceptions=False)
    base = f"http://testserver{PREFIX}"
    for page in ("/docs", "/redoc", "/ui"):
        text = client.get(f"{base}{page}", headers=headers).text
        assets = re.findall(r"""(?:src|href|url)[=:] ?["']([^"']+)["']""", text)
        assert len(assets) >= 3
        for asset in assets:
            address = urljoin(f"{base}{page}", asset)
            assert urlsplit(address).path.startswith(PREFIX)
            assert client.get(address, headers=headers).status_code == 200
    document = client.get(f"{base}/openapi.json", headers=headers).json()
    for server in document["servers"]:
        address = urljoin(f"{base}/openapi.json", server["url"]).rstrip("/")
        assert address == base
        assert client.post(f"{address}/predict", json=A_FLOWER, headers={**headers, **HEADERS}).status_code == 200
    answers = [client.get(f"{base}{path}", headers={**headers, **HEADERS}) for path in ("/health", "/model/info", "/metrics", "/")]
    assert [answer.status_code for answer in answers] == [200] * 4
    known = bool(headers or options or proxy is mounting)
    assert answers[-1].json()["docs"] == (f"{PREFIX}/docs" if known else "/docs")
    batch = client.post(f"{base}/predict/batch", json={"instances": [A_FLOWER]}, headers={**headers, **HEADERS})
    assert batch.status_code == 200
    assert client.get(f"{base}/nothing", headers=headers).status_code == 404


@pytest.mark.parametrize(
    "value",
    [
        "//evil.example",
        "http://evil.example",
        "/a/../b",
        "/..",
        "/.",
        "/a//b",
        "/<script>",
        '/a"b',
        "/a'b",
        "/a b",
        "/a%2fb",
        "/a?b",
        "/a#b",
        "/a\\b",
        "a",
        "/" + "x" * 99,
        "/a" * 9,
    ],
)
def test_a_prefix_that_is_more_than_a_path_is_ignored(store: Store, value: str) -> None:
    client, plain = client_of(store), client_of(store)
    for path in ("/", "/docs", "/openapi.json"):
        answer = client.get(path, headers={"X-Forwarded-Prefix": value})
        assert (answer.status_code, answer.text) == (200, plain.get(path).text)


@given(st.text(max_size=20))
def test_whatever_the_header_holds_only_a_plain_path_gets_into_the_request(value: str) -> None:
    scope: Scope = {"type": "http", "path": "/docs", "headers": [(b"x-forwarded-prefix", value.encode(errors="replace"))]}
    added = add_prefix(scope, "", frozenset({"/docs"}))
    assert re.fullmatch(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*", scope.get("root_path", ""))
    assert scope["path"] == scope.get("root_path", "") + "/docs"
    assert added is (scope["path"] != "/docs")


def test_a_prefix_with_the_name_of_a_page_hides_no_page(store: Store) -> None:
    client = client_of(store)
    headers = {"X-Forwarded-Prefix": "/model", **HEADERS}
    for path in ("/model", "/model/info", "/model/model/info", "/model/health", "/health"):
        assert client.get(path, headers=headers).status_code == 200, path


def test_the_outermost_of_several_proxies_tells_the_prefix(store: Store) -> None:
    answer = client_of(store).get("/", headers={"X-Forwarded-Prefix": "/outer/x, /inner"})
    assert answer.json()["docs"] == "/outer/x/docs"


def test_a_prefix_does_not_open_what_needs_a_key(store: Store) -> None:
    client = client_of(store, public_pages=False)
    for prefix in ("/docs", "/api", "/predict", "/openapi.json"):
        for path in ("/docs", "/openapi.json", "/metrics", "/model"):
            headers = {"X-Forwarded-Prefix": prefix}
            assert client.get(f"{prefix}{path}", headers=headers).status_code in (401, 404, 405)
            assert client.get(path, headers=headers).status_code == 401
    assert client.post("/api/predict", json=A_FLOWER, headers={"X-Forwarded-Prefix": "/api"}).status_code == 401
