"""One OpenTelemetry span per request, sent over OTLP/HTTP to a collector.

The application imports this module only when `IRIS_OTLP_ENDPOINT` is set. It wraps the functions that answer requests, so a request
has no additional cost when tracing is off. A response has no trace header, because a client knows its own trace id.
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
"""Seconds for the export of a batch, retries included. A replica that stops waits this long for its last batch."""
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT"})
_ROOT = Context()


def open_tracing(endpoint: str, ratio: float) -> Tracing:
    """A Tracing that sends its spans to the collector at `endpoint`, like `http://collector:4318`.

    `ratio` is the share of sampled requests, 0 to 1, when the caller has not decided. A thread sends the spans in batches, so a
    request never waits for the collector. While the collector does not answer, spans are dropped, with one log line per lost batch.
    """
    silence_library_warnings()
    address = endpoint.rstrip("/")
    exporter = OTLPSpanExporter(endpoint=address if address.endswith(PATH) else address + PATH, timeout=EXPORT_SECONDS)
    return Tracing(BatchSpanProcessor(exporter), ratio)


def silence_library_warnings() -> None:
    """Log only errors of the library, such as lost spans, because its warnings repeat client text from `tracestate`."""
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)


class Tracing:
    """The tracer of a replica. It keeps the caller's sampling decision, and samples a share of `ratio` of the other requests."""

    def __init__(self, processor: SpanProcessor, ratio: float) -> None:
        resource = Resource.create(
            {
                "service.name": "iris-api",
                "service.version": __version__,
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )
        # A separate provider, because Ray and MLflow may set the global one.
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("iris_api", __version__)
        self._ratio = ratio

    def around(self, answer: Callable[..., Awaitable[bool]], route_of: Callable[[Scope], Any]) -> Callable[..., Awaitable[bool]]:
        """`Gateway.answer` with one span for each answered request; `route_of` returns the route of such a request."""

        async def traced(scope: Scope, receive: Receive, send: Send, **more: Any) -> bool:
            route = route_of(scope)
            span = self._start(scope) if route is not None else None
            if span is None:
                return await answer(scope, receive, send, **more)
            response = _ResponseRecorder(send)
            try:
                return await answer(scope, receive, response, **more)
            finally:
                _end(span, scope, route.path, response)

        return traced

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """The app with one span for each request on every route."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await app(scope, receive, self._closing(send))
                return
            span = self._start(scope) if scope["type"] == "http" else None
            if span is None:
                await app(scope, receive, send)
                return
            response = _ResponseRecorder(send)
            try:
                await app(scope, receive, response)
            finally:
                _end(span, scope, getattr(scope.get("route"), "path", ""), response)

        return traced

    def _start(self, scope: Scope) -> Span | None:
        """Start the span of a request; return None when the request is not sampled.

        This method makes the decision, because the sampler of the library is much slower.
        """
        parent = traces.parent(scope["headers"])
        if not (parent.flags & TraceFlags.SAMPLED if parent is not None else random.random() < self._ratio):  # noqa: S311
            return None
        name = scope["method"] if scope["method"] in _METHODS else "HTTP"
        context = _ROOT if parent is None else _context(parent, scope["headers"])
        span = self._tracer.start_span(name, context, SpanKind.SERVER, record_exception=False)
        scope[traces.SCOPE] = format_trace_id(span.get_span_context().trace_id)
        return span

    def _closing(self, send: Send) -> Send:
        """A `send` that exports the remaining spans before the application reports its stop."""

        async def closing(message: Message) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                await asyncio.to_thread(self._provider.shutdown)
            await send(message)

        return closing


class _ResponseRecorder:
    """A `send` that records the status code and the model version of the response."""

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
    """A context whose parent is the caller's span, not the current span of this process."""
    state = TraceState.from_header([value.decode("latin-1") for name, value in headers if name == b"tracestate"])
    context = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, TraceFlags(parent.flags), state)
    return set_span_in_context(NonRecordingSpan(context), _ROOT)


def _end(span: Span, scope: Scope, route: str, response: _ResponseRecorder) -> None:
    method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
    attributes: dict[str, str | int] = {"http.request.method": method, "url.scheme": scope.get("scheme", "http")}
    if route:
        attributes["http.route"] = route
        span.update_name(f"{method} {route}")
    if response.status:
        attributes["http.response.status_code"] = response.status
    if response.version:
        attributes["iris.model.version"] = response.version
    if response.status >= 500:
        attributes["error.type"] = str(response.status)
        span.set_status(Status(StatusCode.ERROR))
    span.set_attributes(attributes)
    span.end()
