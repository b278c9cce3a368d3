"""Limits for Serve's Python proxies, which forward requests to replicas and have no limits themselves.

These proxies answer where HAProxy does not run, and behind HAProxy while no replica is ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve_app.http.problems import HttpProblem

PROXY_BYTES = 128 * 1024 * 1024
"""Most bytes in the bodies of all active requests of this process; a request that exceeds them gets 429."""
SERVE_HEADERS = frozenset(
    {b"serve_multiplexed_model_id", b"x_request_timeout_seconds", b"x_request_disconnect_disabled", b"x_session_id"}
)
"""Headers with which Serve lets a client choose a replica, a time limit and the way to read a body; with `_` in place of `-`."""


class ProxyBounds:
    """ASGI middleware: removes Serve's control headers and headers that Serve cannot decode, and limits the bytes of bodies."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._bytes = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Imported late: other processes of Ray Serve import this module as well.
        from serve_app.http.headers import are_utf8
        from serve_app.http.problems import INVALID_HEADER, TOO_BUSY

        scope["headers"] = [header for header in scope["headers"] if header[0].replace(b"-", b"_") not in SERVE_HEADERS]
        if not are_utf8(scope["headers"]):
            await _refuse(send, INVALID_HEADER)
            return
        request = _BoundedRequest(self, receive, send)
        try:
            await self._app(scope, request.receive, request.send)
            if request.exceeded and not request.started:
                await _refuse(send, TOO_BUSY)
        finally:
            self._bytes -= request.bytes

    def exceeds(self, count: int) -> bool:
        """Count bytes of a body, and return whether all bodies together exceed the limit."""
        self._bytes += count
        return self._bytes > PROXY_BYTES


class _BoundedRequest:
    """`receive` and `send` of one request: beyond the limit, the application sees a disconnected client."""

    def __init__(self, bounds: ProxyBounds, receive: Any, send: Any) -> None:
        self._bounds = bounds
        self._receive = receive
        self._send = send
        self.bytes = 0
        self.exceeded = self.started = False

    async def receive(self) -> Any:
        """Return the next message of the client."""
        if self.exceeded:
            return {"type": "http.disconnect"}
        message = await self._receive()
        count = len(message.get("body", b""))
        self.bytes += count
        self.exceeded = self._bounds.exceeds(count)
        return {"type": "http.disconnect"} if self.exceeded else message

    async def send(self, message: Any) -> None:
        """Send a message of the response, unless the request exceeded the limit."""
        if not self.exceeded or self.started:
            self.started = True
            await self._send(message)


async def _refuse(send: Any, problem: HttpProblem) -> None:
    from serve_app.http.responses import problem_response, send_response

    response = problem_response(problem)
    response = response._replace(headers=(*response.headers, (b"connection", b"close")))
    await send_response(response, send, request_id=None, must_close=False)
