"""The calls: from the name, the metadata and the message of a call to the status and the message of the answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote

from grpc import StatusCode

from serve_app.grpc.call_pages import HEALTH, INFERENCE, InferencePages, Page
from serve_app.grpc.handlers import REQUEST_ID, Answer, Metadata, Read
from serve_app.grpc.statuses import details, status_code
from serve_app.http.gateway import CallRoute, Gateway
from serve_app.http.options import HttpOptions
from serve_app.http.prediction_service import PredictionService
from serve_app.http.problems import INTERNAL_ERROR
from serve_app.http.responses import HttpResponse, problem_response
from serve_app.protocols.grpc import health_pb2
from serve_app.protocols.grpc import open_inference_pb2 as oip
from serve_app.protocols.grpc.message_codec import PROTOBUF, InferMessageCodec
from serve_app.telemetry.state import RequestLabels

log = logging.getLogger("iris_api.grpc")

MAX_PAGE_BYTES = 64 * 1024
"""The largest message of a call that is not a prediction."""


class Calls:
    """Answers the calls of both services, through the gateway of the application."""

    def __init__(self, gateway: Gateway, service: PredictionService, options: HttpOptions) -> None:
        self._gateway = gateway
        self._routes = _routes(service, options)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every call as `/SERVICE/METHOD`."""
        return tuple(self._routes)

    async def answer(self, path: str, metadata: Metadata, peer: str, read: Read) -> Answer:
        """The answer to the call `path`. This method never raises, so a client never gets a traceback."""
        request_id = b""
        try:
            scope = {"type": "grpc", "path": path, "headers": _headers(metadata), "client": _client(peer)}
            response, request_id = await self._gateway.answer_call(self._routes[path], scope, partial(_receive, read))
            return _answer(response, request_id)
        except Exception:
            log.exception("call failed", extra={"route": path, "request_id": request_id.decode()})
            return _answer(problem_response(INTERNAL_ERROR, InferMessageCodec), request_id)


def _routes(service: PredictionService, options: HttpOptions) -> Mapping[str, CallRoute]:
    pages = InferencePages(service, options.model_name)
    infer = partial(service.predict, InferMessageCodec)
    routes = {
        "ModelInfer": CallRoute("", InferMessageCodec, infer, options.max_body_bytes, {}),
        "ServerLive": _page(oip.ServerLiveRequest, pages.server_live, needs_key=False, is_probe=True),
        "ServerReady": _page(oip.ServerReadyRequest, pages.server_ready, needs_key=False, is_probe=True),
        "ModelReady": _page(oip.ModelReadyRequest, pages.model_ready, needs_key=False),
        "ServerMetadata": _page(oip.ServerMetadataRequest, pages.server_metadata, needs_key=not options.public_pages),
        "ModelMetadata": _page(oip.ModelMetadataRequest, pages.model_metadata),
        "RepositoryIndex": _page(oip.RepositoryIndexRequest, pages.repository_index),
        "RepositoryModelLoad": _page(oip.RepositoryModelLoadRequest, pages.load),
        "RepositoryModelUnload": _page(oip.RepositoryModelUnloadRequest, pages.load),
    }
    checks = {"Check": _page(health_pb2.HealthCheckRequest, pages.check, needs_key=False, is_probe=True)}
    services = {INFERENCE: routes, HEALTH: checks}
    return {
        (path := f"/{name}/{method}"): replace(route, path=path, labels=_labels(path, is_page=isinstance(route.predict, Page)))
        for name, methods in services.items()
        for method, route in methods.items()
    }


def _labels(path: str, *, is_page: bool) -> Mapping[str, RequestLabels]:
    """The metric labels of a call; calls without rows have no format."""
    return {PROTOBUF: RequestLabels(path, InferMessageCodec.protocol, "" if is_page else PROTOBUF)}


def _page(request: Any, answer: Callable[[Any], Any], *, needs_key: bool = True, is_probe: bool = False) -> CallRoute:
    return CallRoute("", InferMessageCodec, Page(request, answer), MAX_PAGE_BYTES, {}, needs_key=needs_key, is_probe=is_probe)


async def _receive(read: Read) -> dict[str, Any]:
    """The message of a call in the form that the gateway reads: the body of a request."""
    message = await read()
    if message is None:
        return {"type": "http.disconnect"}
    return {"type": "http.request", "body": message, "more_body": False}


def _headers(metadata: Metadata) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in metadata]


def _client(peer: str) -> tuple[str, int] | None:
    """The address in `ipv4:10.0.0.1:5000` or `ipv6:%5B::1%5D:5000`; None for another kind of address."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]"), int(port)


def _answer(response: HttpResponse, request_id: bytes) -> Answer:
    metadata = [(REQUEST_ID, request_id.decode())] if request_id else []
    metadata += [(name.decode(), value.decode()) for name, value in response.headers if name != b"content-type"]
    if response.error:
        metadata.append(("x-error-code", response.error))
    code = status_code(response)
    return Answer(code, details(response), tuple(metadata), bytes(response.body) if code is StatusCode.OK else b"")
