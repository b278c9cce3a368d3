"""The ingress hook: a middleware of the replica's own HTTP server that answers every request before Serve's request wrapper.

Serve's wrapper copies the body of a request into a queue without a limit, and a client that sends slowly occupies one of the
replica's slots. So the hook forwards only requests without a body for Serve's own control paths. Serve takes `middlewares` from the
flag RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH (`serve.env`). Serve's Python proxies take it, too. There, and in every process in
which no replica has set `answer` and `app`, it limits the requests that it forwards. These processes import this module, so keep it
small.
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
"""The function that answers predictions, set by the replica in this process; it returns False for a request that it left alone."""
app: Callable[[Any, Any, Any], Awaitable[None]] | None = None
"""The application that answers all other requests; the replica in this process sets it."""

CONTROL_PATHS = frozenset({"/-/healthz", "/-/routes"})
"""Paths that Serve answers before it reads headers or a body: HAProxy's health checks."""

_BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})


class IngressHook:
    """ASGI middleware that answers in place of the wrapped app, except on control paths."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._bounds = ProxyBounds(app)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI connection."""
        if answer is None or not await answer(scope, receive, in_one_write(send)):
            await self._answer_other(scope, receive, send)

    async def _answer_other(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request that is not a prediction."""
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
    """A `send` that writes the response in one system call; `send` itself when the server is not uvicorn."""
    cycle: Any = getattr(send, "__self__", None)
    return joined_writes(send, cycle) if type(cycle) is RequestResponseCycle else send


def middlewares() -> list[Middleware]:
    """The middlewares for Serve's HTTP server. Serve calls this function right before it starts that server."""
    http_protocol.install()
    bind_calls()
    return [Middleware(IngressHook)]


def _is_control(scope: MutableMapping[str, Any]) -> bool:
    """Whether Serve answers this request: a control path without a body."""
    if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) not in CONTROL_PATHS:
        return False
    return scope["method"] in ("GET", "HEAD") and _BODY_HEADERS.isdisjoint(name for name, _ in scope["headers"])


async def _no_body() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def _route_prefix(wrapper: Any) -> str:
    """The prefix under which Serve mounts the application, `/` when it cannot be read: replicas have no public name for it."""
    replica = getattr(getattr(wrapper, "_app", None), "__self__", None)
    return getattr(replica, "_route_prefix", None) or "/"
