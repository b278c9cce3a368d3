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

from serve_app.fast_path import joined_writes

answer: Callable[[Any, Any, Any], Awaitable[bool]] | None = None
"""Set by the replica in this process: answers a request and is true, or leaves it untouched and is false."""


class IngressHook:
    """ASGI middleware: the replica's own response, or the wrapped app's."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI connection."""
        if answer is None or not await answer(scope, receive, in_one_write(send)):
            await self._app(scope, receive, send)


def in_one_write(send: Any) -> Any:
    """A `send` whose response leaves in one system call; with any other server than uvicorn it is `send` itself."""
    cycle: Any = getattr(send, "__self__", None)
    return joined_writes(send, cycle) if type(cycle) is RequestResponseCycle else send


def middlewares() -> list[Middleware]:
    """What Serve puts around the app of its HTTP server."""
    return [Middleware(IngressHook)]
