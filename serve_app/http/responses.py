"""Whole responses and how they are sent, with the headers of every response of the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

from starlette.responses import Response

from serve_app.http.problems import Headers, HttpProblem
from serve_app.protocols.codec import Buffer, Codec
from serve_app.protocols.native import NativeRowCodec

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"x-xss-protection", b"1; mode=block"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
    (b"referrer-policy", b"strict-origin-when-cross-origin"),
)
REQUEST_ID = b"x-request-id"
CLOSE = (b"connection", b"close")
SEND_BYTES = 256 * 1024
"""A longer body is sent in pieces, because other requests wait while the process copies a piece to the system."""


class HttpResponse(NamedTuple):
    """A whole response: status, headers except the common ones, body, and the version that computed it.

    `error` is the code under which a failed request is counted; empty for a success.
    """

    status: int
    headers: Headers
    body: Buffer
    version: str = ""
    error: str = ""


DISCONNECTED = HttpResponse(499, (), b"", error="disconnected")
"""The client closed the connection before its request was complete; no client receives this response."""


def problem_response(problem: HttpProblem, codec: type[Codec] = NativeRowCodec) -> HttpResponse:
    """The response to a failed request; the codec of the route writes its body."""
    headers = ((b"content-type", codec.problem_type), *problem.headers)
    details = problem.details
    return HttpResponse(codec.status(details), headers, codec.problem(details), error=details.code)


def to_starlette(response: HttpResponse) -> Response:
    """The same response as a Starlette response, for a FastAPI handler."""
    answer = Response(bytes(response.body), response.status)
    answer.raw_headers = [*response.headers, (b"content-length", b"%d" % len(response.body))]
    return answer


async def send_without_body(send: Send, message: Message) -> None:
    """Send a message of the response to HEAD: the head unchanged, and an empty body."""
    await send({**message, "body": b""} if message["type"] == "http.response.body" else message)


async def send_response(response: HttpResponse, send: Send, *, request_id: bytes | None, must_close: bool) -> None:
    """Send a whole response. With `must_close` the caller sends its end, after the client has stopped sending."""
    headers = [*response.headers, *SECURITY_HEADERS, (b"content-length", b"%d" % len(response.body))]
    if request_id is not None:
        headers.append((REQUEST_ID, request_id))
    if must_close:
        headers.append(CLOSE)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    body = response.body
    if len(body) > SEND_BYTES:
        view, start = memoryview(body), 0
        while len(view) - start > SEND_BYTES:  # the server waits between two pieces until the client has read
            # Bytes: Serve's own proxy must pickle them. It forwards requests until HAProxy knows the replica.
            await send({"type": "http.response.body", "body": bytes(view[start : start + SEND_BYTES]), "more_body": True})
            start += SEND_BYTES
        body = bytes(view[start:])
    await send({"type": "http.response.body", "body": body, "more_body": must_close})
