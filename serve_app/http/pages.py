"""The pages that describe the application. They are public; with IRIS_PUBLIC_PAGES=false they require a key."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from serve_app.http.problems import HttpProblem
from serve_app.http.responses import ASGIApp, Receive, Scope, Send, problem_response, to_starlette
from serve_app.protocols.codec import Codec
from serve_app.protocols.native import NativeRowCodec

METRICS = "/metrics"
CONSOLE = "/ui"
DOCS = frozenset({"/docs", "/redoc", "/openapi.json", CONSOLE})

RefuseKey = Callable[[bytes | None, bytes | None], HttpProblem | None]
"""From the values of `X-API-Key` and `Authorization` to the problem of a request without a valid key."""


def refuse(headers: Iterable[tuple[bytes, bytes]], refuse_key: RefuseKey, codec: type[Codec] = NativeRowCodec) -> Response | None:
    """The response to a request without a valid key, written by `codec`; None for a valid key."""
    values = dict(headers)
    problem = refuse_key(values.get(b"x-api-key"), values.get(b"authorization"))
    return None if problem is None else to_starlette(problem_response(problem, codec))


def require_key(routes: Iterable[BaseRoute], refuse_key: RefuseKey) -> None:
    """Wrap FastAPI's own pages in the check of the key. The check is part of the routes, so no spelling of a path bypasses it."""
    for route in routes:
        if isinstance(route, Route) and route.path in DOCS:
            route.app = _keyed(route.app, refuse_key)


def _keyed(app: ASGIApp, refuse_key: RefuseKey) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await (refuse(scope["headers"], refuse_key) or app)(scope, receive, send)

    return answer
