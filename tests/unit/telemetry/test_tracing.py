"""Spans of requests that the ingress hook answers, and of those that reach the app."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from serve_app.artifacts.store import Store
from serve_app.telemetry import tracing
from serve_app.telemetry.tracing import Tracing
from tests.support.apps import HEADERS, KEY, client_of
from tests.support.asgi import Reply, ask
from tests.support.models import A_FLOWER, publish_iris

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
NOT_SAMPLED = f"00-{TRACE}-{SPAN}-00"
BODY = json.dumps(A_FLOWER).encode()

ENTRY_POINTS = ["ingress hook", "app"]


class Traced:
    """An application that answers in one of the ways, and its spans."""

    def __init__(self, folder: Path, way: str, *, ratio: float = 1.0, model: bool = True, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        tracing = Tracing(SimpleSpanProcessor(self.exporter), ratio)
        store = Store(folder)
        if model and not (folder / "model.joblib").exists():
            publish_iris(store, onnx=True)
        application: Any = client_of(store, around=tracing.middleware, **options).app
        self.app = application
        if way == "ingress hook":
            gateway = application.state.gateway
            answer, app = tracing.around(gateway.answer, gateway.route_of), application

            async def edge(scope: Any, receive: Any, send: Any) -> None:
                if not await answer(scope, receive, send):
                    await app(scope, receive, send)

            self.app = edge

    def ask(self, path: str, body: bytes = BODY, method: str = "POST", **headers: str) -> Reply:
        sent = {**HEADERS, "content-type": "application/json", **headers}
        pairs = [(name.lower().encode(), value.encode()) for name, value in sent.items()]
        return asyncio.run(ask(self.app, method, path, pairs, [body]))

    def span(self) -> ReadableSpan:
        (span,) = self.exporter.get_finished_spans()
        self.exporter.clear()
        return span


@pytest.fixture(params=ENTRY_POINTS)
def traced(request: pytest.FixtureRequest, tmp_path: Path) -> Traced:
    return Traced(tmp_path, request.param)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/predict", BODY, 200),
        ("/predict/batch", json.dumps({"instances": [A_FLOWER]}).encode(), 200),
        ("/predict", b"{}", 422),
        ("/predict", b"no", 400),
    ],
)
def test_a_prediction_is_one_span_with_route_status_and_version(traced: Traced, path: str, body: bytes, status: int) -> None:
    assert traced.ask(path, body).status == status
    span = traced.span()
    assert span.name == f"POST {path}"
    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": path,
        "http.response.status_code": status,
        **({"iris.model.version": "1"} if status == 200 else {}),
    }
    assert span.resource.attributes["service.name"] == "iris-api"


def test_other_routes_have_spans_and_no_span_holds_what_a_client_invents(traced: Traced) -> None:
    assert traced.ask("/model/info", b"", "GET").status == 200
    assert traced.span().name == "GET /model/info"
    assert traced.ask("/nowhere/4711", b"", "GET").status == 404
    span = traced.span()
    assert span.name == "GET"
    assert "4711" not in span.to_json()
    assert traced.ask("/predict", b"", "BREW").status == 405
    assert "BREW" not in traced.span().to_json()


def test_a_span_continues_the_callers_trace_and_keeps_its_state(traced: Traced) -> None:
    traced.ask("/predict", traceparent=SAMPLED, tracestate="rojo=1,congo=t61")
    span = traced.span()
    assert span.parent is not None
    assert format_trace_id(span.context.trace_id) == TRACE
    assert format_span_id(span.parent.span_id) == SPAN
    assert span.parent.is_remote
    assert span.context.trace_state.to_header() == "rojo=1,congo=t61"


@pytest.mark.parametrize("value", ["", "00-short", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", SAMPLED.upper()])
def test_a_malformed_traceparent_begins_a_trace_of_its_own(traced: Traced, value: str) -> None:
    traced.ask("/predict", traceparent=value, tracestate="rojo=1")
    span = traced.span()
    assert span.parent is None
    assert format_trace_id(span.context.trace_id) != TRACE
    assert len(span.context.trace_state) == 0


def test_a_malformed_tracestate_is_dropped_and_never_repeated_in_the_log(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    tracing.silence_library_warnings()
    traced.ask("/predict", traceparent=SAMPLED, tracestate="what a client wrote")
    assert len(traced.span().context.trace_state) == 0
    assert "client" not in caplog.text


@pytest.mark.parametrize("way", ENTRY_POINTS)
def test_the_callers_flag_decides_and_without_one_the_ratio(tmp_path: Path, way: str) -> None:
    never, always = Traced(tmp_path, way, ratio=0.0), Traced(tmp_path, way, ratio=1.0)
    never.ask("/predict")
    assert never.exporter.get_finished_spans() == ()
    never.ask("/predict", traceparent=SAMPLED)
    assert never.span().parent is not None
    always.ask("/predict", traceparent=NOT_SAMPLED)
    assert always.exporter.get_finished_spans() == ()


def test_a_response_has_no_trace_header(traced: Traced) -> None:
    reply = traced.ask("/predict", traceparent=SAMPLED, tracestate="rojo=1")
    text = repr(reply.headers).encode() + reply.body
    span = traced.span()
    for secret in (b"trace", TRACE.encode(), format_span_id(span.context.span_id).encode(), b"rojo"):
        assert secret not in text


@pytest.mark.parametrize("way", ENTRY_POINTS)
def test_a_log_line_holds_the_trace_id_and_the_request_id(tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    traced = Traced(tmp_path, way, log_every=1)
    with caplog.at_level(logging.INFO, "iris_api.request"):
        traced.ask("/predict", BODY, "POST", **{"x-request-id": "mine"})
        traced.ask("/predict", traceparent=SAMPLED)
    own, theirs = (vars(record) for record in caplog.records)
    first, _ = traced.exporter.get_finished_spans()
    assert own["request_id"] == "mine"
    assert own["trace_id"] == format_trace_id(first.context.trace_id)
    assert theirs["trace_id"] == TRACE


def test_without_tracing_a_line_still_holds_the_callers_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path)
    publish_iris(store, onnx=True)
    client = client_of(store, log_every=1)
    with caplog.at_level(logging.INFO, "iris_api.request"):
        for headers in ({"traceparent": SAMPLED}, {"traceparent": "no"}, {}):
            client.post("/predict", json=A_FLOWER, headers={**HEADERS, **headers})
    assert [getattr(record, "trace_id", None) for record in caplog.records] == [TRACE, None, None]


@pytest.mark.parametrize("way", ENTRY_POINTS)
def test_a_server_error_is_an_error_of_the_span_and_a_disconnect_is_not(tmp_path: Path, way: str) -> None:
    empty = Traced(tmp_path, way, model=False)
    assert empty.ask("/predict").status == 503
    span = empty.span()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})["error.type"] == "503"
    asyncio.run(ask(empty.app, "POST", "/predict", [(b"x-api-key", KEY.encode())], [b"{"], leaves=True))
    span = empty.span()
    assert span.name == "POST /predict"
    assert span.status.status_code is StatusCode.UNSET


def test_without_an_endpoint_the_exporter_is_not_imported() -> None:
    program = (
        "import sys; from serve_app.settings import load_settings; from serve_app import deployment\n"
        "import serve_app.http.app\n"
        "assert deployment.make_tracing(load_settings()) is None\n"
        "print([name for name in sys.modules if name.startswith(('serve_app.telemetry.tracing', 'opentelemetry.exporter.otlp'))])"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [("HEAD", "/health", "/health"), ("POST", "/api/predict", "/predict"), ("GET", "/api/health", "/health")],
)
def test_the_route_is_known_below_a_prefix_and_for_head(traced: Traced, method: str, path: str, route: str) -> None:
    headers = {"x-forwarded-prefix": "/api"} if path.startswith("/api") else {}
    assert traced.ask(path, BODY if method == "POST" else b"", method, **headers).status == 200
    span = traced.span()
    assert (span.name, dict(span.attributes or {})["http.route"]) == (f"{method} {route}", route)
