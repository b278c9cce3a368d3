"""HEAD is answered wherever GET is, as GET is, without a body."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serve_app.artifacts.store import Store
from tests.support.apps import HEADERS, KEY, client_of
from tests.support.asgi import ask
from tests.support.models import logistic_store

READ = (
    *("/", "/health", "/livez", "/readyz", "/metrics", "/docs", "/redoc", "/ui"),
    *("/openapi.json", "/model", "/model/info", "/ui/view"),
)
ASSET = "/static-offline-docs/favicon.png"
OWN = {"x-request-id", "date", "etag", "last-modified"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


def compare(client: TestClient, path: str, headers: dict[str, str]) -> int:
    """The status of both; fails unless HEAD has status and headers of GET and no body."""
    get, head = client.get(path, headers=headers), client.head(path, headers=headers)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert len(get.content) > 0
    assert {name: value for name, value in head.headers.items() if name not in OWN} == {
        name: value for name, value in get.headers.items() if name not in OWN and name != "content-length"
    } | {"content-length": head.headers["content-length"]}
    if path != "/metrics":  # whose counts grow
        assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))
    return head.status_code


@pytest.mark.parametrize("path", [*READ, ASSET])
def test_head_has_status_and_headers_of_get(store: Store, path: str) -> None:
    assert compare(client_of(store), path, HEADERS) == 200


def test_head_is_refused_as_get_is(store: Store, tmp_path: Path) -> None:
    closed = client_of(store, public_pages=False)
    assert {path: compare(closed, path, {}) for path in READ} == {
        path: 200 if path in ("/", "/health", "/livez", "/readyz") else 401 for path in READ
    }
    assert compare(closed, "/nothing", {}) == 404
    empty = client_of(Store(tmp_path))
    assert [compare(empty, path, HEADERS) for path in ("/health", "/readyz", "/model")] == [200, 503, 404]


async def test_head_sends_no_byte_of_a_body_to_any_server(store: Store) -> None:
    app = client_of(store).app
    for path in ("/health", "/nothing", "/docs"):
        reply = await ask(app, "HEAD", path, [(b"x-api-key", KEY.encode())])
        assert (reply.body, reply.starts, reply.ends) == (b"", 1, 1)


def test_what_takes_get_names_head_as_allowed_and_predictions_do_not(store: Store) -> None:
    client = client_of(store, cors_origins=("http://page.example",))
    for path in ("/health", "/docs", "/openapi.json"):
        refusal = client.put(path)
        assert (refusal.status_code, set(refusal.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert client.head("/predict").status_code == 405
    asks = {"Origin": "http://page.example", "Access-Control-Request-Method": "HEAD"}
    assert client.options("/health", headers=asks).status_code == 200
