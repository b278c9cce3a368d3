"""The ingress hook: a middleware of the replica's own HTTP server that answers every request before Serve's request wrapper.

Serve's wrapper copies the body of a request into a queue without a limit, and keeps one of the replica's slots for a client that
sends slowly. So only Serve's own control paths, without a body, go on to it. Serve takes `middlewares` from the flag
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH (`serve.env`). Serve's Python proxies take it too; there, and in every process in which
no replica has set `answer` and `app`, it bounds what it passes on. Those processes import this module, so it stays small.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from serve_app.fast_path import joined_writes
from serve_app.rayserve import http_protocol
from serve_app.rayserve.call_host import bind_calls
from serve_app.rayserve.proxy_bounds import ProxyBounds

answer: Callable[[Any, Any, Any], Awaitable[bool]] | None = None
"""Set by the replica in this process: answers a prediction and is true, or leaves the request untouched and is false."""
app: Callable[[Any, Any, Any], Awaitable[None]] | None = None
"""Set by the replica in this process: its application, which answers everything else."""

CONTROL_PATHS = frozenset({"/-/healthz", "/-/routes"})
"""Paths that Serve answers itself, before it reads a header or a body: HAProxy's health checks."""

_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})


class IngressHook:
    """ASGI middleware: the replica's own response, or the wrapped app's."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._bounds = ProxyBounds(app)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI connection."""
        if answer is None or not await answer(scope, receive, in_one_write(send)):
            await self._answer_other(scope, receive, send)

    async def _answer_other(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle what is no prediction."""
        if app is None:
            await self._bounds(scope, receive, send)
        elif _is_control(scope):
            scope["headers"] = []
            await self._app(scope, _no_body, send)
        else:
            prefix = _route_prefix(self._app)
            if prefix != "/":
                scope["root_path"] = scope.get("root_path", "") + prefix
            await app(scope, receive, send)


def in_one_write(send: Any) -> Any:
    """A `send` whose response leaves in one system call; with any other server than uvicorn it is `send` itself."""
    cycle: Any = getattr(send, "__self__", None)
    return joined_writes(send, cycle) if type(cycle) is RequestResponseCycle else send


def middlewares() -> list[Middleware]:
    """What Serve puts around the app of its HTTP server. Serve calls this right before it starts that server."""
    http_protocol.install()
    bind_calls()
    return [Middleware(IngressHook)]


def _is_control(scope: MutableMapping[str, Any]) -> bool:
    """Whether Serve answers this request: a control path, asked without a body."""
    if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) not in CONTROL_PATHS:
        return False
    return scope["method"] in ("GET", "HEAD") and _BODY_HEADERS.isdisjoint(name for name, _ in scope["headers"])


async def _no_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def _route_prefix(wrapper: Any) -> str:
    """Where Serve has mounted the application. Serve has no public name for it in a replica; `/` when it cannot be read."""
    replica = getattr(getattr(wrapper, "_app", None), "__self__", None)
    return getattr(replica, "_route_prefix", None) or "/"
