"""Headers that lie, over sockets: the HTTP side of a replica, with the ingress hook and the protocol that Serve's server gets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from serve_app.artifacts.store import Store
from serve_app.http.gateway import sending_request_ids
from serve_app.http.rate_limit import parse_proxies
from serve_app.http.rate_window import Rate
from serve_app.rayserve import ingress_hook
from serve_app.rayserve.ingress_hook import IngressHook, middlewares
from tests.support.apps import KEY, client_of, rate_limits
from tests.support.figures import note
from tests.support.listening import Server, listening
from tests.support.models import A_FLOWER, logistic_store

FLOWER = orjson.dumps(A_FLOWER)
PATHS = ("/predict", "/predict/batch", "/health", "/nothing", "/model", "/docs", "/metrics", "/-/healthz")
DECODED = (
    "X-Request-ID",
    "serve_multiplexed_model_id",
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "x-session-id",
)
"""Headers that Serve or the application decodes."""
LIMIT = 20


async def serve(scope: Any, receive: Any, send: Any) -> None:
    """What Serve's request wrapper may see: control paths, without headers and bodies."""
    assert (scope["headers"], scope["path"]) in (([], "/-/healthz"), ([], "/-/routes"))
    assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
    await send({"type": "http.response.body", "body": b"success"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
async def replica(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    limits = rate_limits(per_client=Rate(LIMIT, 3600.0), proxies=parse_proxies(("127.0.0.1",)))
    app: Any = client_of(store, sends_request_id=False, rate_limits=limits).app
    monkeypatch.setattr(ingress_hook, "answer", app.state.gateway.answer)
    monkeypatch.setattr(ingress_hook, "app", sending_request_ids(app))
    assert len(middlewares()) == 1  # installs the protocol, as Serve does before it starts its server
    async with listening(IngressHook(serve), http="auto") as server:
        yield server


addresses = (f"X-Forwarded-For: 203.0.113.{number}" for number in itertools.cycle(range(1, 250)))
"""A client address for each request, so that the limit does not end a test that is about something else."""


async def ask(
    server: Server, method: str, path: str, *lines: str, body: bytes = b"", trailers: bytes | None = None
) -> tuple[int, str]:
    """Status, and head with body of the response to one request in one packet; chunked, when there are trailers."""
    framing = f"Content-Length: {len(body)}" if trailers is None else "Transfer-Encoding: chunked"
    start = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", framing, *lines, "", ""])
    if trailers is not None:
        body = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(20):
        writer.write(start.encode("latin-1") + body)
        response = (await reader.read()).decode("latin-1")
    writer.close()
    return int(response[9:12]), response


async def test_a_trailer_is_no_header(replica: Server) -> None:
    right = f"X-API-Key: {KEY}\r\n".encode()
    assert (await ask(replica, "POST", "/predict", next(addresses), body=FLOWER, trailers=right))[0] == 401
    wrong = await ask(replica, "POST", "/predict", "X-API-Key: wrong", next(addresses), body=FLOWER, trailers=right)
    assert wrong[0] == 403
    key = f"X-API-Key: {KEY}"
    trailers = b"X-API-Key: wrong\r\nX-Request-ID: from-a-trailer\r\nContent-Encoding: gzip\r\nContent-Type: text/plain\r\n"
    for path in ("/predict", "/health"):
        _, response = await ask(replica, "POST", path, key, next(addresses), body=FLOWER, trailers=trailers)
        assert "from-a-trailer" not in response
    assert (await ask(replica, "POST", "/predict", key, next(addresses), body=FLOWER, trailers=trailers))[0] == 200


async def test_the_limit_of_a_client_is_not_evaded_by_trailers(replica: Server) -> None:
    statuses = []
    for number in range(2 * LIMIT):
        trailer = f"X-Forwarded-For: 198.51.100.{number}\r\n".encode()
        statuses.append((await ask(replica, "POST", "/predict", f"X-API-Key: {KEY}", body=FLOWER, trailers=trailer))[0])
    note(f"{statuses.count(200)} of {len(statuses)} requests of one client admitted, limit {LIMIT}")
    assert statuses == [200] * LIMIT + [429] * LIMIT


async def test_bytes_that_are_no_utf_8_in_a_header_are_a_problem_and_never_a_server_error(replica: Server) -> None:
    count = 0
    for path, name, value in itertools.product(PATHS, DECODED, ("\xff", "\xc3(", "a\xf8b", "\xed\xa0\x80")):
        body = FLOWER if path.startswith("/predict") else b""
        method = "POST" if body else "GET"
        status, response = await ask(replica, method, path, f"X-API-Key: {KEY}", f"{name}: {value}", next(addresses), body=body)
        count += 1
        if path.startswith("/predict") and name != "X-Request-ID":
            assert status in (200, 422)  # nothing decodes it
            continue
        assert (status, '"code":"invalid_header"' in response) == (400, True), (path, name, response)
        assert "application/problem+json" in response
    note(f"{count} requests, none answered with 5xx")


@pytest.mark.parametrize("path", ["/predict", "/predict/batch", "/model", "/health"])
async def test_a_key_that_comes_twice_is_refused_whichever_is_right(replica: Server, path: str) -> None:
    right, wrong = f"X-API-Key: {KEY}", "X-API-Key: wrong"
    method = "POST" if path.startswith("/predict") else "GET"
    for lines in ((right, wrong), (wrong, right), (right, right)):
        status, response = await ask(replica, method, path, *lines, next(addresses), body=FLOWER)
        assert (status, '"code":"invalid_header"' in response) == (400, True), lines


async def test_serves_control_paths_are_reached_without_a_body_only(replica: Server) -> None:
    status, response = await ask_bare(replica, "GET /-/healthz HTTP/1.1\r\nX-Request-ID: \xff\r\nx-request-timeout-seconds: 1")
    assert (status, response.endswith("success")) == (200, True)
    assert (await ask_bare(replica, "GET /-/route%73 HTTP/1.1"))[0] == 200
    for method, path in (("POST", "/-/healthz"), ("GET", "/-/healthz/"), ("GET", "/-/other"), ("GET", "/-/healthz?x")):
        status, response = await ask(replica, method, path, next(addresses), body=b"x")
        assert (status, '"code":"not_found"' in response) == (404, True)


async def ask_bare(server: Server, head: str) -> tuple[int, str]:
    """The same for a request without a body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(20):
        writer.write(f"{head}\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
        response = (await reader.read()).decode("latin-1")
    writer.close()
    return int(response[9:12]), response


@pytest.mark.parametrize("path", ["/predict", "/health", "/nothing", "/docs"])
async def test_every_method_and_upgrade_gets_an_answer(replica: Server, path: str) -> None:
    methods = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "SEARCH", "NOTIFY")
    for method, upgrade in itertools.product(methods, ("", "\r\nUpgrade: h2c", "\r\nUpgrade: websocket")):
        head = f"{method} {path} HTTP/1.1\r\n{next(addresses)}{upgrade}"
        status, _ = await ask_bare(replica, head)
        assert status < 500, head


async def test_a_websocket_is_refused(replica: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", replica.port)
    lines = ("GET /predict HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    writer.write("\r\n".join([*lines, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]).encode())
    async with asyncio.timeout(20):
        assert (await reader.readline())[9:12] == b"403"
    writer.close()
