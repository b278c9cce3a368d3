"""One OpenTelemetry span per request, sent over OTLP/HTTP to a collector.

Imported only when `IRIS_OTLP_ENDPOINT` is set. It goes around what answers instead of into it: without it a request takes
the same way as if it did not exist. The answer carries no trace: a client knows its own, and ours are nobody's business.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    format_trace_id,
    set_span_in_context,
)

from serve_app import __version__
from serve_app.telemetry import trace_context as traces

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

PATH = "/v1/traces"
EXPORT_SECONDS = 3.0
"""A batch is given up after so long, retries included; a replica that stops waits as long for its last one."""
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"})
_ROOT = Context()


def open_tracing(endpoint: str, ratio: float) -> Tracing:
    """Spans to the collector at this address, e.g. `http://collector:4318`, in batches and from a thread of their own.

    A request never waits for the collector: while it is away spans are dropped, with a line in the log per lost batch.
    """
    quieten()
    address = endpoint.rstrip("/")
    exporter = OTLPSpanExporter(endpoint=address if address.endswith(PATH) else address + PATH, timeout=EXPORT_SECONDS)
    return Tracing(BatchSpanProcessor(exporter), ratio)


def quieten() -> None:
    """Only what was lost is logged. The library's warnings would repeat whatever a client wrote into `tracestate`."""
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)


class Tracing:
    """Makes the spans. The caller's decision to sample is kept; of requests without one the share `ratio` is sampled."""

    def __init__(self, processor: SpanProcessor, ratio: float) -> None:
        resource = Resource.create(
            {
                "service.name": "iris-api",
                "service.version": __version__,
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )
        # A provider of our own: the process-wide one is Ray's and MLflow's to set.
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("iris_api", __version__)
        self._ratio = ratio

    def around(self, answer: Callable[..., Awaitable[bool]], route_of: Callable[[Scope], Any]) -> Callable[..., Awaitable[bool]]:
        """`Gateway.answer` with a span per request that it answers: those for which `route_of` gives a route, with its `path`."""

        async def traced(scope: Scope, receive: Receive, send: Send, **more: Any) -> bool:
            route = route_of(scope)
            span = self._start(scope) if route is not None else None
            if span is None:
                return await answer(scope, receive, send, **more)
            seen = _Seen(send)
            try:
                return await answer(scope, receive, seen, **more)
            finally:
                _end(span, scope, route.path, seen)

        return traced

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """The app with a span per request, whatever its route."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await app(scope, receive, self._closing(send))
                return
            span = self._start(scope) if scope["type"] == "http" else None
            if span is None:
                await app(scope, receive, send)
                return
            seen = _Seen(send)
            try:
                await app(scope, receive, seen)
            finally:
                _end(span, scope, getattr(scope.get("route"), "path", ""), seen)

        return traced

    def _start(self, scope: Scope) -> Span | None:
        """The span of a request; None when it is not sampled. That is decided here: the library takes much longer to say no."""
        parent = traces.parent(scope["headers"])
        if not (parent.flags & TraceFlags.SAMPLED if parent is not None else random.random() < self._ratio):  # noqa: S311
            return None
        name = scope["method"] if scope["method"] in _METHODS else "HTTP"
        context = _ROOT if parent is None else _context(parent, scope["headers"])
        span = self._tracer.start_span(name, context, SpanKind.SERVER, record_exception=False)
        scope[traces.SCOPE] = format_trace_id(span.get_span_context().trace_id)
        return span

    def _closing(self, send: Send) -> Send:
        """Sends what is left before the application says that it has stopped."""

        async def closing(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                await asyncio.to_thread(self._provider.shutdown)
            await send(message)

        return closing


class _Seen:
    """`send`, which remembers what the answer was."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.version = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.version = next((value.decode() for name, value in message.get("headers", ()) if name == b"x-model-version"), "")
        await self._send(message)


def _context(parent: traces.Parent, headers: list[tuple[bytes, bytes]]) -> Context:
    """The caller's span as the parent, never what happens to be current in this process."""
    state = TraceState.from_header([value.decode("latin-1") for name, value in headers if name == b"tracestate"])
    context = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, TraceFlags(parent.flags), state)
    return set_span_in_context(NonRecordingSpan(context), _ROOT)


def _end(span: Span, scope: Scope, route: str, seen: _Seen) -> None:
    method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
    attributes: dict[str, str | int] = {"http.request.method": method, "url.scheme": scope.get("scheme", "http")}
    if route:
        attributes["http.route"] = route
        span.update_name(f"{method} {route}")
    if seen.status:
        attributes["http.response.status_code"] = seen.status
    if seen.version:
        attributes["iris.model.version"] = seen.version
    if seen.status >= 500:
        attributes["error.type"] = str(seen.status)
        span.set_status(Status(StatusCode.ERROR))
    span.set_attributes(attributes)
    span.end()
