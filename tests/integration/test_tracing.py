"""Spans of a running application at a collector: through HAProxy, from the edge and from the routes, also at the end."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2

from serve_app.artifacts.store import Store
from tests.support.models import A_FLOWER, publish_iris
from tests.support.otlp import Collector, ReceivedSpan, run_collector
from tests.support.server import HEADERS, serving, stop
from tests.support.waiting import until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "rojo=1"}


def test_requests_are_spans_at_a_collector_and_go_on_without_one(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    publish_iris(store, onnx=True)
    with (
        run_collector() as collector,
        serving(
            store.root,
            tmp_path,
            IRIS_OTLP_ENDPOINT=collector.address,
            IRIS_TRACE_RATIO="0",
            IRIS_ACCESS_LOG_EVERY="1",
            OTEL_BSP_SCHEDULE_DELAY="200",
        ) as server,
    ):
        edge = httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers={**HEADERS, **SAMPLED, "x-request-id": "the-edge"})
        # A browser's request is left to FastAPI's route.
        routed = httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers={**HEADERS, **SAMPLED, "origin": "http://x.example"})
        wrong = httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers={**HEADERS, "traceparent": f"00-{TRACE}-{SPAN}-zz"})
        assert (edge.status_code, routed.status_code, wrong.status_code) == (200, 200, 200)
        assert not any("trace" in name for reply in (edge, routed) for name in reply.headers)
        spans = until(lambda: of_predictions(collector, 2), seconds=30, what="both spans")
        for span in spans:
            assert (span.name, span.trace_id, span.parent_id, span.state) == ("POST /predict", TRACE, SPAN, "rojo=1")
            assert span.attributes["http.response.status_code"] == "200"
            assert span.attributes["iris.model.version"] == "1"
            assert span.resource["service.name"] == "iris-api"
            assert 0 < span.seconds < 30
        lines = [line for line in logged(server.output) if line.get("request_id") == "the-edge"]
        assert [line["trace_id"] for line in lines] == [TRACE]

        collector.fails = True
        before = collector.exports
        for _ in range(20):
            assert httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers={**HEADERS, **SAMPLED}).status_code == 200
        until(lambda: collector.exports > before, seconds=30, what="an export that fails")
        until(lambda: lost(server.output), seconds=30, what="a line about the lost spans")
        collector.fails = False
        httpx2.post(f"{server.url}/predict/batch", json={"instances": [A_FLOWER]}, headers={**HEADERS, **SAMPLED})
        stop(server.process)  # what was not sent yet is sent before the end
        assert any(span.name == "POST /predict/batch" for span in collector.spans)
        assert "Traceback" not in server.output.read_text()


def of_predictions(collector: Collector, count: int) -> list[ReceivedSpan]:
    spans = list(collector.spans)
    return spans if len(spans) >= count else []


def lost(output: Path) -> list[dict[str, object]]:
    return [line for line in logged(output) if "Failed to export" in str(line.get("message"))]


def logged(output: Path) -> list[dict[str, object]]:
    """The JSON lines of a replica, which Ray puts its own prefix before."""
    lines = []
    for line in output.read_text().splitlines():
        start = line.find("{")
        if start >= 0 and line.endswith("}"):
            lines.append(json.loads(line[start:]))
    return lines
