"""Bounds of one of Serve's Python proxies, which passes requests on to replicas without a limit of its own.

Such a proxy answers where HAProxy does not run, and behind HAProxy while no replica is ready.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve_app.http.problems import HttpProblem

PROXY_BYTES = 128 * 1024 * 1024
"""Bytes of bodies that all requests under way in this process may have sent; a request that exceeds them gets 429."""
SERVE_HEADERS = frozenset(
    {b"serve_multiplexed_model_id", b"x_request_timeout_seconds", b"x_request_disconnect_disabled", b"x_session_id"}
)
"""Headers by which Serve lets a client choose a replica, a time limit and how a body is read; with `_` in place of `-`."""


class ProxyBounds:
    """ASGI middleware: no control headers of Serve, no header that Serve cannot decode, and a bound on the bytes of bodies."""

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
        """Count bytes of a body; whether all bodies together are over the bound now."""
        self._bytes += count
        return self._bytes > PROXY_BYTES


class _BoundedRequest:
    """`receive` and `send` of one request: beyond the bound its client is treated as gone."""

    def __init__(self, bounds: ProxyBounds, receive: Any, send: Any) -> None:
        self._bounds = bounds
        self._receive = receive
        self._send = send
        self.bytes = 0
        self.exceeded = self.started = False

    async def receive(self) -> Any:
        """The next message of the client."""
        if self.exceeded:
            return {"type": "http.disconnect"}
        message = await self._receive()
        count = len(message.get("body", b""))
        self.bytes += count
        self.exceeded = self._bounds.exceeds(count)
        return {"type": "http.disconnect"} if self.exceeded else message

    async def send(self, message: Any) -> None:
        """Send a message of the response; none of a client that is treated as gone."""
        if not self.exceeded or self.started:
            self.started = True
            await self._send(message)


async def _refuse(send: Any, problem: HttpProblem) -> None:
    from serve_app.http.responses import problem_response, send_response

    response = problem_response(problem)
    response = response._replace(headers=(*response.headers, (b"connection", b"close")))
    await send_response(response, send, request_id=None, must_close=False)
