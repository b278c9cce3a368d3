"""Whole responses, and how they are sent: what every response of the application carries."""

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
"""A longer body is sent in pieces: other requests would wait while one of many megabytes is copied to the system."""


class HttpResponse(NamedTuple):
    """A whole response: status, headers without those that every response gets, body, and the version that computed it.

    `error` is the code under which a failed request is counted; it is empty for one that succeeded.
    """

    status: int
    headers: Headers
    body: Buffer
    version: str = ""
    error: str = ""


DISCONNECTED = HttpResponse(499, (), b"", error="disconnected")
"""The client closed the connection before its request was complete; no client receives this response."""


def problem_response(problem: HttpProblem, codec: type[Codec] = NativeRowCodec) -> HttpResponse:
    """The response to a failed request, its body written by the codec of the route."""
    headers = ((b"content-type", codec.problem_type), *problem.headers)
    details = problem.details
    return HttpResponse(codec.status(details), headers, codec.problem(details), error=details.code)


def to_starlette(response: HttpResponse) -> Response:
    """The same response for a FastAPI handler to return."""
    answer = Response(bytes(response.body), response.status)
    answer.raw_headers = [*response.headers, (b"content-length", b"%d" % len(response.body))]
    return answer


async def send_without_body(send: Send, message: Message) -> None:
    """Send a message of the response to HEAD: the head as it is, of the body nothing."""
    await send({**message, "body": b""} if message["type"] == "http.response.body" else message)


async def send_response(response: HttpResponse, send: Send, *, request_id: bytes | None, must_close: bool) -> None:
    """Send a whole response. With `must_close` its end is left open, for the caller to send once the client has stopped."""
    headers = [*response.headers, *SECURITY_HEADERS, (b"content-length", b"%d" % len(response.body))]
    if request_id is not None:
        headers.append((REQUEST_ID, request_id))
    if must_close:
        headers.append(CLOSE)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    body = response.body
    if len(body) > SEND_BYTES:
        view, start = memoryview(body), 0
        while len(view) - start > SEND_BYTES:  # the server waits between them until the client has read
            # Bytes, which Serve's own proxy can pickle: it answers while HAProxy does not know the replica yet.
            await send({"type": "http.response.body", "body": bytes(view[start : start + SEND_BYTES]), "more_body": True})
            start += SEND_BYTES
        body = bytes(view[start:])
    await send({"type": "http.response.body", "body": body, "more_body": must_close})
