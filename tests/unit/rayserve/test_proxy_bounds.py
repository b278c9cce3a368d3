"""What the ingress hook bounds in one of Serve's Python proxies."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from serve_app.rayserve import proxy_bounds
from serve_app.rayserve.ingress_hook import IngressHook
from tests.support.asgi import ask

PIECE = b" " * 1000


class Proxy:
    """Reads a whole body and keeps it, as Serve's proxy does; it answers nothing to a client that is gone."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.received = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.headers = scope["headers"]
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            self.received += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    "name",
    [b"serve_multiplexed_model_id", b"serve-multiplexed-model-id", b"x-request-timeout-seconds", b"x-request-disconnect-disabled"],
)
async def test_control_headers_of_a_client_do_not_reach_serve(name: bytes) -> None:
    proxy = Proxy()
    reply = await ask(IngressHook(proxy), "GET", "/health", [(name, b"\xff"), (b"accept", b"*/*"), (b"x-session-id", b"1")])
    assert (reply.status, proxy.headers) == (200, [(b"accept", b"*/*")])


async def test_a_header_that_serve_cannot_decode_is_a_problem() -> None:
    proxy = Proxy()
    reply = await ask(IngressHook(proxy), "POST", "/health", [(b"x-request-id", b"\xff")])
    assert (reply.status, orjson.loads(reply.body)["code"], proxy.received) == (400, "invalid_header", 0)


async def test_bodies_beyond_the_bound_are_refused_and_give_their_bytes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_bounds, "PROXY_BYTES", 5 * len(PIECE))
    proxy = Proxy()
    hook = IngressHook(proxy)
    for _ in range(3):
        reply = await ask(hook, "POST", "/predict", (), [PIECE] * 6)
        assert (reply.status, reply.ends, orjson.loads(reply.body)["code"]) == (429, 1, "too_busy")
        assert (await ask(hook, "POST", "/predict", (), [PIECE] * 5)).status == 200
    assert proxy.received == 3 * 10 * len(PIECE)
