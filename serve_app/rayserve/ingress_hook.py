"""The ingress hook: a middleware of the replica's own HTTP server that answers predictions before Serve's request wrapper.

Serve takes `middlewares` from the flag RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH (`serve.env`). Serve's Python proxies take it
too; there, and in every process in which no replica has set `answer`, it passes all requests on. Those processes import this
module, so it stays small.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

answer: Callable[[Any, Any, Any], Awaitable[bool]] | None = None
"""Set by the replica in this process: answers a request and is true, or leaves it untouched and is false."""


FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})

JOINED_BYTES = 64 * 1024
"""A longer body is not copied behind its head."""


class IngressHook:
    """ASGI middleware: the replica's own answer, or the wrapped app's."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if answer is None or not await answer(scope, receive, in_one_write(send)):
            await self._app(scope, receive, send)


def in_one_write(send: Any) -> Any:
    """A `send` for an answer, whose head and first piece of body leave in one system call.

    Uvicorn writes each by itself, and a write costs as much as a prediction. It looks at every header of every answer with two
    regular expressions as well; it gets only those here that tell it where the answer ends. With any other server this is `send`.
    """
    cycle: Any = getattr(send, "__self__", None)
    is_uvicorn = type(cycle) is RequestResponseCycle
    if not is_uvicorn:
        return send

    async def send_joined(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            others = [b"%b: %b\r\n" % header for header in headers if header[0] not in FRAMING]
            more = b"".join(others)
            if more.count(b"\n") != len(others) or more.count(b"\r") != len(others):
                raise ValueError("a header of the answer has a line break in it")
            cycle.transport = _Joined(cycle.transport, more)
            message = {**message, "headers": [header for header in headers if header[0] in FRAMING]}
        await send(message)

    return send_joined


class _Joined:
    """Stands in for the transport of one answer: keeps the head until the body comes; what follows goes through."""

    __slots__ = ("_head", "_more", "_transport")

    def __init__(self, transport: Any, more: bytes) -> None:
        self._transport = transport
        self._head: bytes | None = b""
        self._more = more  # headers that the server does not know of

    def write(self, data: bytes) -> None:
        if self._head == b"":
            self._head = b"%b%b\r\n" % (data[:-2], self._more)
            return
        if self._head is not None and len(data) <= JOINED_BYTES:
            data = self._head + data
        elif self._head is not None:
            self._transport.write(self._head)
        self._head = None
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def middlewares() -> list[Middleware]:
    return [Middleware(IngressHook)]
