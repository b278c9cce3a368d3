"""A small OpenTelemetry collector that keeps the spans it receives over OTLP/HTTP, as protobuf."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span; ids as hexadecimal digits, attributes of the span and of its resource as text."""

    name: str
    trace_id: str
    parent_id: str
    state: str
    seconds: float
    attributes: dict[str, str]
    resource: dict[str, str]


@dataclass(slots=True)
class Collector:
    """The state of the collector. While `fails` is true, it answers every export with 503, as an overloaded collector does."""

    address: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    exports: int = 0
    fails: bool = False


@contextlib.contextmanager
def run_collector() -> Iterator[Collector]:
    """A collector on a free port of 127.0.0.1 for as long as the block lasts."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            status = 503 if collector.fails else 200 if self.path == "/v1/traces" else 404
            collector.exports += 1
            if status == 200:
                collector.spans.extend(_read(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _read(body: bytes) -> Iterator[ReceivedSpan]:
    request = ExportTraceServiceRequest.FromString(body)
    for resource in request.resource_spans:
        about = {item.key: _text(item.value) for item in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    span.name,
                    span.trace_id.hex(),
                    span.parent_span_id.hex(),
                    span.trace_state,
                    (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                    {item.key: _text(item.value) for item in span.attributes},
                    about,
                )


def _text(value: object) -> str:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    return str(getattr(value, kind))
