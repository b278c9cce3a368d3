"""Bodies without end, too large, too slow or unwanted: answered at once, bounded in bytes, time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
import pytest

from serve_app.artifacts.store import Store
from serve_app.http import body as bodies
from tests.support.apps import KEY, client_of
from tests.support.listening import listening
from tests.support.models import A_FLOWER, logistic_store
from tests.support.waiting import eventually

MAX_BODY = 20_000
PIECE = b" " * 65536
RIGHT = (b"x-api-key", KEY.encode())
CHUNKED = (b"transfer-encoding", b"chunked")
DEADLINE = 30.0
"""No test waits longer for what must come to an end."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def make(store: Store) -> Callable[..., Any]:
    def app(**options: Any) -> Any:
        return client_of(store, **{"max_body_bytes": MAX_BODY, **options}).app

    return app


class Client:
    """A client that never ends by itself: `piece` again and again, after `pause` seconds each; what it got, and when."""

    def __init__(self, piece: bytes, *, pause: float = 0.0) -> None:
        self.piece = piece
        self.pause = pause
        self.given = 0
        self.given_before_the_answer = 0
        self.sent: list[dict[str, Any]] = []

    async def ask(self, app: Any, path: str, *headers: tuple[bytes, bytes]) -> int:
        scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "query_string": b"", "scheme": "http"}
        async with asyncio.timeout(DEADLINE):
            await app({**scope, "http_version": "1.1", "headers": list(headers)}, self._receive, self._send)
        assert [message["type"] for message in self.sent].count("http.response.start") == 1
        assert not self.sent[-1].get("more_body")
        status: int = self.sent[0]["status"]
        return status

    def code(self) -> str:
        body = b"".join(message.get("body", b"") for message in self.sent)
        code: str = orjson.loads(body)["code"]
        return code

    def closes(self) -> bool:
        return (b"connection", b"close") in self.sent[0]["headers"]

    async def _receive(self) -> dict[str, Any]:
        if self.pause:
            await asyncio.sleep(self.pause)  # a slow client is what is tested
        self.given += len(self.piece)
        return {"type": "http.request", "body": self.piece, "more_body": True}

    async def _send(self, message: dict[str, Any]) -> None:
        if not self.sent:
            self.given_before_the_answer = self.given
        self.sent.append(message)


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
@pytest.mark.parametrize("length", [CHUNKED, (b"content-length", b"9000000000")], ids=["chunked", "content-length"])
async def test_a_body_without_end_is_refused_at_the_limit_and_read_on_for_a_bounded_while(
    make: Callable[..., Any], path: str, length: tuple[bytes, bytes]
) -> None:
    app, client = make(), Client(PIECE)
    tracemalloc.start()
    try:
        status = await client.ask(app, path, RIGHT, length)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (status, client.code(), client.closes()) == (413, "body_too_large", True)
    assert client.given_before_the_answer <= MAX_BODY + len(PIECE)
    assert client.given <= MAX_BODY + bodies.LINGER_BYTES + 2 * len(PIECE)
    assert peak < 1_000_000  # of 64 MB that were read


@pytest.mark.parametrize("headers", [(RIGHT, CHUNKED), (RIGHT, (b"content-length", b"19000"))], ids=["chunked", "content-length"])
async def test_a_body_that_trickles_is_refused_when_its_time_is_up(
    make: Callable[..., Any], headers: tuple[tuple[bytes, bytes], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.3)
    client = Client(b" ", pause=0.01)
    assert await client.ask(make(max_body_seconds=0.5), "/predict", *headers) == 408
    assert (client.code(), client.closes()) == ("body_too_slow", True)
    assert client.given < 100  # not a byte more than fit into that time


async def test_one_that_never_sends_a_byte_is_refused_too(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.3)
    client = Client(b"", pause=3600)
    assert await client.ask(make(max_body_seconds=0.5), "/predict", RIGHT, (b"content-length", b"10")) == 408


@pytest.mark.parametrize("path", ["/predict", "/model", "/nothing"])
@pytest.mark.parametrize(("piece", "pause"), [(PIECE, 0.0), (b" ", 0.01)], ids=["fast", "trickling"])
async def test_who_shows_no_key_cannot_keep_the_connection_either(
    make: Callable[..., Any], path: str, piece: bytes, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.3)
    client = Client(piece, pause=pause)
    assert await client.ask(make(), path, CHUNKED) in (401, 404, 405)
    assert client.closes()
    assert client.given_before_the_answer == 0
    assert client.given <= bodies.LINGER_BYTES + 2 * len(piece)


async def test_a_body_that_asks_before_it_comes_is_not_invited_when_it_is_refused(make: Callable[..., Any]) -> None:
    for headers in ((RIGHT, (b"content-length", b"9000000")), ((b"content-length", b"100"),)):
        client = Client(PIECE)
        assert await client.ask(make(), "/predict", *headers, (b"expect", b"100-continue")) in (401, 413)
        assert client.given_before_the_answer == 0


async def test_a_body_that_is_there_costs_no_timer(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def timer(*_: object) -> None:
        raise AssertionError("a timer was made")

    monkeypatch.setattr(asyncio, "timeout_at", timer)
    monkeypatch.setattr(asyncio, "timeout", timer)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": orjson.dumps(A_FLOWER), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "root_path": "", "query_string": b"", "scheme": "http"}
    await make()({**scope, "http_version": "1.1", "headers": [RIGHT]}, receive, send)
    assert sent[0]["status"] == 200


# --- over sockets, through a real server


def head(*lines: str, path: str = "/predict", key: str = KEY) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"X-API-Key: {key}", *lines, "", ""]).encode()


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status of the next answer, which is read to its end."""
    async with asyncio.timeout(DEADLINE):
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "content-length"])
async def test_a_client_that_sends_it_all_before_it_reads_gets_the_refusal_and_no_reset(
    make: Callable[..., Any], chunked: bool
) -> None:
    pieces = 20_000_000 // len(PIECE)
    async with listening(make()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head("Transfer-Encoding: chunked" if chunked else f"Content-Length: {pieces * len(PIECE)}"))
        for _ in range(pieces):
            writer.write(b"10000\r\n%b\r\n" % PIECE if chunked else PIECE)
            await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        assert await status_of(reader) == 413
        assert await reader.read() == b""  # and the connection ends
        writer.close()


async def test_one_that_sends_for_ever_loses_its_connection(make: Callable[..., Any]) -> None:
    async with listening(make()) as server, asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        answered = asyncio.create_task(status_of(reader))  # it can be read while the body is still being sent
        writer.write(head("Transfer-Encoding: chunked"))
        written = 0
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"10000\r\n%b\r\n" % PIECE)
                await writer.drain()
                written += len(PIECE)
        assert written < bodies.LINGER_BYTES * 2
        assert await answered == 413
        writer.close()


async def test_a_refused_request_whose_body_is_in_a_second_packet_keeps_its_connection(make: Callable[..., Any]) -> None:
    flower = orjson.dumps(A_FLOWER)
    async with listening(make()) as server:

        def has_begun(requests: int) -> bool:
            return server.begun == requests

        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for number, (key, status) in enumerate((("wrong", 403), (KEY, 200), ("wrong", 403), (KEY, 200)), start=1):
            writer.write(head(f"Content-Length: {len(flower)}", key=key))
            await eventually(partial(has_begun, number), what="the app's look at the head alone")
            writer.write(flower)
            assert await status_of(reader) == status
        writer.close()


async def test_who_sends_slowly_takes_no_place_from_others(make: Callable[..., Any]) -> None:
    flower = orjson.dumps(A_FLOWER)
    async with listening(make(max_in_flight=1)) as server:
        slow = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(20)]
        for _, writer in slow:
            writer.write(head("Content-Length: 1000") + b"{")
            await writer.drain()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(20):
            writer.write(head(f"Content-Length: {len(flower)}") + flower)
            assert await status_of(reader) == 200
        for _, other in (*slow, (reader, writer)):
            other.close()


async def test_bodies_that_arrive_at_once_have_a_bounded_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BUDGET_BODIES", 2)
    async with listening(client_of(store, max_body_bytes=MAX_BODY).app) as server:

        def has_read(size: int) -> bool:
            return server.read >= size

        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
        for number, (_, writer) in enumerate(opened, start=1):
            writer.write(head("Transfer-Encoding: chunked") + b"2710\r\n" + b" " * 10_000 + b"\r\n")
            await eventually(partial(has_read, number * 10_000), what=f"the piece of body {number}")
        assert await status_of(opened[-1][0]) == 429
        for _, writer in opened[1:]:
            writer.close()
        await eventually(lambda: server.ended == len(opened) - 1, what="the end of the other requests")
        reader, writer = opened[0]
        rest = orjson.dumps(A_FLOWER)
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))
        assert await status_of(reader) == 200
        writer.close()
