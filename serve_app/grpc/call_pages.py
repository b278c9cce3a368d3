"""The calls that are not predictions: health, metadata and the index of the repository.

Each function takes a message and returns a message or an HttpProblem, or raises an error of `serve_app.errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from serve_app import __version__
from serve_app.errors import InvalidInput
from serve_app.http.prediction_service import PredictionService
from serve_app.http.problems import HttpProblem, problem, problem_of
from serve_app.http.responses import HttpResponse, problem_response
from serve_app.http.routes.open_inference import NO_LOADING
from serve_app.protocols.codec import Buffer
from serve_app.protocols.codec import Headers as RequestHeaders
from serve_app.protocols.grpc import health_pb2
from serve_app.protocols.grpc import open_inference_pb2 as oip
from serve_app.protocols.grpc.message_codec import InferMessageCodec
from serve_app.protocols.grpc.wire import malformed
from serve_app.protocols.oip_metadata import index_document, model_document, server_document

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

UNKNOWN_SERVICE = problem(
    404, "unknown_service", f"No service has this name; use {INFERENCE}, {HEALTH}, or the empty name for all services."
)
READY_ONLY = b'{"ready":true}'


class InferencePages:
    """The calls of the Open Inference Protocol that are not predictions, and the health check."""

    def __init__(self, service: PredictionService, model_name: str) -> None:
        self._service = service
        self._slot = service.slot
        self._model_name = model_name

    def server_live(self, _: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
        """True while the process runs."""
        return oip.ServerLiveResponse(live=True)

    def server_ready(self, _: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
        """Whether a model is loaded."""
        return oip.ServerReadyResponse(ready=self._slot.predictor is not None)

    def model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse | HttpProblem:
        """Whether the model is loaded; NOT_FOUND for a model or version that is not served."""
        predictor = self._service.served(request.name, request.version or None)
        if isinstance(predictor, HttpProblem) and predictor.details.status == 404:
            return predictor
        return oip.ModelReadyResponse(ready=not isinstance(predictor, HttpProblem))

    def server_metadata(self, _: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return oip.ServerMetadataResponse(**server_document(__version__))

    def model_metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse | HttpProblem:
        """Inputs and outputs of the model."""
        predictor = self._service.served(request.name, request.version or None)
        if isinstance(predictor, HttpProblem):
            return predictor
        document = model_document(predictor.signature, name=self._model_name, version=predictor.version, platform=predictor.kind)
        return oip.ModelMetadataResponse(**document)

    def repository_index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        """The models of the repository and their states."""
        predictor = self._slot.predictor
        version = None if predictor is None else predictor.version
        models = index_document(self._model_name, version, self._slot.problem, READY_ONLY if request.ready else b"")
        return oip.RepositoryIndexResponse(models=[oip.RepositoryIndexResponse.ModelIndex(**each) for each in models])

    def load(self, _: Any) -> HttpProblem:
        """The refusal of every call: clients cannot load or unload models."""
        return NO_LOADING

    def check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse | HttpProblem:
        """SERVING once a model is loaded."""
        if request.service not in ("", INFERENCE, HEALTH):
            return UNKNOWN_SERVICE
        statuses = health_pb2.HealthCheckResponse
        return statuses(status=statuses.NOT_SERVING if self._slot.predictor is None else statuses.SERVING)


class Page:
    """A call that a function answers; its message has the type `request`. The gateway calls it in place of a prediction."""

    def __init__(self, request: Any, answer: Callable[[Any], Any]) -> None:
        self._request = request
        self._answer = answer

    async def __call__(self, body: Buffer, headers: RequestHeaders) -> HttpResponse:
        """The response; its body is a message, or one sentence for an error."""
        try:
            reply = self._answer(self._request.FromString(bytes(body)))
        except (DecodeError, UnicodeDecodeError):
            reply = problem_of(malformed())
        except InvalidInput as error:
            reply = problem_of(error)
        if isinstance(reply, HttpProblem):
            return problem_response(reply, InferMessageCodec)
        return HttpResponse(200, (), reply.SerializeToString())
