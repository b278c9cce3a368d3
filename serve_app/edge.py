"""The edge: a middleware of the replica's own HTTP server that answers predictions before Serve's request wrapper.

Serve takes it from `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.edge:middlewares`. It is also put around Serve's Python
proxies; there, and wherever no replica has set `answer`, it passes everything on. Kept small: those processes import it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.middleware import Middleware

answer: Callable[[Any, Any, Any], Awaitable[bool]] | None = None
"""Set by the replica in this process: answers a request and is true, or leaves it untouched and is false."""


class Edge:
    """ASGI middleware: the replica's own answer, or the wrapped app's."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if answer is None or not await answer(scope, receive, send):
            await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    return [Middleware(Edge)]
