"""The ingress hook in uvicorn's own protocol, with a transport that keeps what is written to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serve_app.fast_path import JOINED_BYTES
from serve_app.rayserve import ingress_hook

HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"


class Transport(asyncio.Transport):
    """What uvicorn writes, and whether it closed."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.gathered: list[list[int]] = []
        self.closed = asyncio.Event()

    def write(self, data: Any) -> None:
        assert not self.closed.is_set()
        self.writes.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.gathered.append([len(data) for data in list_of_data])
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def close(self) -> None:
        self.closed.set()

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def wrapped(scope: Any, receive: Any, send: Any) -> None:
    await reply(scope, receive, send, b"from the app")


async def answered(scope: Any, receive: Any, send: Any) -> bool:
    await reply(scope, receive, send, b"from the hook")
    return True


async def in_pieces(scope: Any, receive: Any, send: Any) -> bool:
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"13"), (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b"from the hook", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return True


async def at_length(scope: Any, receive: Any, send: Any) -> bool:
    await reply(scope, receive, send, b"from the hook" + b" " * JOINED_BYTES)
    return True


async def adorned(scope: Any, receive: Any, send: Any) -> bool:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13"), (b"x-model-version", b"7")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"from the hook"})
    return True


async def split(scope: Any, receive: Any, send: Any) -> bool:
    headers = [(b"content-length", b"13"), (b"x-model-version", b"7\r\nset-cookie: from the hook")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    return True


async def left(scope: Any, receive: Any, send: Any) -> bool:
    return False


async def reply(scope: Any, receive: Any, send: Any, body: bytes) -> None:
    assert (await receive())["body"] == b"{}"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(autouse=True)
def no_replica() -> Iterator[None]:
    yield
    ingress_hook.answer = None


async def ask(transport: Transport, head: bytes = HEAD, times: int = 1) -> bytes:
    protocol = HttpToolsProtocol(Config(ingress_hook.IngressHook(wrapped), log_config=None), ServerState(), {})
    protocol.connection_made(transport)
    for number in range(1, times + 1):
        protocol.data_received(head + b"\r\n{}")
        async with asyncio.timeout(10):
            while b"".join(transport.writes).count(b"from the") < number:
                await asyncio.sleep(0)
    protocol.connection_lost(None)
    return b"".join(transport.writes)


async def test_an_answer_of_the_hook_leaves_in_one_write() -> None:
    ingress_hook.answer = answered
    transport = Transport()
    text = await ask(transport)
    assert len(transport.writes) == 1
    assert text.startswith(b"HTTP/1.1 200 OK\r\n")
    assert text.endswith(b"content-length: 13\r\n\r\nfrom the hook")


async def test_every_header_is_sent_once() -> None:
    ingress_hook.answer = adorned
    head, _, body = (await ask(Transport())).partition(b"\r\n\r\n")
    names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:]]
    assert sorted(names) == [b"content-length", b"content-type", b"x-model-version"]
    assert b"\r\nx-model-version: 7" in head
    assert body == b"from the hook"


async def test_a_header_with_a_line_break_is_not_sent() -> None:
    ingress_hook.answer = split
    transport = Transport()
    protocol = HttpToolsProtocol(Config(ingress_hook.IngressHook(wrapped), log_config=None), ServerState(), {})
    protocol.connection_made(transport)
    protocol.data_received(HEAD + b"\r\n{}")
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert b"set-cookie" not in b"".join(transport.writes)
    assert b"".join(transport.writes).startswith(b"HTTP/1.1 500 ")


async def test_a_connection_that_is_kept_gets_one_write_for_each_answer() -> None:
    ingress_hook.answer = answered
    transport = Transport()
    await ask(transport, times=3)
    assert [write.endswith(b"\r\n\r\nfrom the hook") for write in transport.writes] == [True, True, True]


async def test_a_connection_that_the_client_wants_closed_is_closed_after_the_answer() -> None:
    ingress_hook.answer = answered
    transport = Transport()
    text = await ask(transport, HEAD + b"connection: close\r\n")
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert text.endswith(b"from the hook")


async def test_an_answer_that_ends_later_is_written_once_and_closed() -> None:
    ingress_hook.answer = in_pieces
    transport = Transport()
    text = await ask(transport)
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert text.count(b"HTTP/1.1 413") == 1
    assert text.endswith(b"\r\n\r\nfrom the hook")


async def test_a_long_body_leaves_with_its_head_in_one_call_and_is_not_copied() -> None:
    ingress_hook.answer = at_length
    transport = Transport()
    text = await ask(transport)
    assert [[size > JOINED_BYTES for size in sizes] for sizes in transport.gathered] == [[False, True]]
    assert transport.writes == [text]


@pytest.mark.parametrize("answer", [left, None], ids=["which the hook leaves", "where no replica is"])
async def test_a_request_goes_on_to_the_app_unchanged(answer: Any) -> None:
    ingress_hook.answer = answer
    assert (await ask(Transport())).endswith(b"from the app")


async def test_the_send_of_another_server_is_used_as_it_is() -> None:
    async def send(_: Any) -> None: ...

    assert ingress_hook.in_one_write(send) is send


async def test_the_response_to_head_leaves_at_once() -> None:
    async def bodiless(scope: Any, receive: Any, send: Any) -> bool:
        await send(
            {"type": "http.response.start", "status": 405, "headers": [(b"content-length", b"9"), (b"x-from", b"from the hook")]}
        )
        await send({"type": "http.response.body", "body": b"not a get"})
        return True

    ingress_hook.answer = bodiless
    text = await ask(Transport(), b"HEAD /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n")
    assert text.startswith(b"HTTP/1.1 405 ")
    assert text.endswith(b"\r\n\r\n")
