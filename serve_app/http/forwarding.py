"""A request that the gateway forwards to the app. Limits bound its body; its response gets the headers of every response."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from serve_app.http.body import Body
from serve_app.http.lingering import Lingering
from serve_app.http.responses import CLOSE, REQUEST_ID, SECURITY_HEADERS, HttpResponse, Message, Send, send_response
from serve_app.protocols.codec import Headers
from serve_app.telemetry.collector import MetricsCollector


class ForwardedRequest:
    """`receive` and `send` for the app, and the outcome of the response.

    A request is in flight only while the app computes. It is not in flight while the client sends its body or reads the response;
    that time is added to `waited_seconds`.
    """

    def __init__(self, headers: Headers, body: Body, send: Send, collector: MetricsCollector, *, request_id: bytes | None) -> None:
        self._headers = headers
        self._body = body
        self._send = send
        self._collector = collector
        self._request_id = request_id
        self._status = 0
        self._version = self._error = ""
        self._must_close = False
        self.waited_seconds = 0.0

    async def receive(self) -> Message:
        """The next message of the client; the budget counts its bytes. Raises the errors of `Body.receive` and `Body.hold`."""
        with self._waiting():
            message = await self._body.receive()
        self._body.hold(len(message.get("body", b"")))
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the app; the head of its response gets the headers of every response."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [*message.get("headers", ()), *SECURITY_HEADERS]
            self._version = next((value.decode() for name, value in headers if name == b"x-model-version"), "")
            if self._request_id is not None:
                headers.append((REQUEST_ID, self._request_id))
            await self._drain()
            if self._must_close:
                headers.append(CLOSE)
            message = {**message, "headers": headers}
        elif self._must_close:
            message = {**message, "more_body": True}
        with self._waiting():
            await self._send(message)

    async def respond(self, response: HttpResponse) -> None:
        """Send a response in place of the app, unless the app has begun its own."""
        if self._status:
            return
        self._status, self._error = response.status, response.error
        await self._drain()
        with self._waiting():
            await send_response(response, self._send, request_id=self._request_id, must_close=self._must_close)

    def disconnected(self) -> None:
        """Record that the client closed the connection."""
        self._status, self._error = self._status or 499, "disconnected"

    def response(self) -> HttpResponse:
        """The response for the metrics: without headers and body."""
        error = self._error or (f"http_{self._status}" if self._status >= 400 else "")
        return HttpResponse(self._status, (), b"", self._version, error)

    async def close(self, lingering: Lingering) -> None:
        """End a response with `Connection: close` whose client was still sending."""
        if self._must_close:
            await lingering.end(self._body, self._send)

    async def _drain(self) -> None:
        with self._waiting():
            self._must_close = await self._body.drain(self._headers)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Take the request out of flight while the block waits for the client."""
        started = time.perf_counter()
        self._collector.in_flight -= 1
        try:
            yield
        finally:
            self._collector.in_flight += 1
            self.waited_seconds += time.perf_counter() - started
