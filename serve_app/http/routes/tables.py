"""The addresses of MLflow, SageMaker, Vertex AI and KServe v1: predictions, pings, and the list of models."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from fastapi import APIRouter, Request, Response

from serve_app import __version__
from serve_app.http.headers import HeaderValues
from serve_app.http.options import HttpOptions
from serve_app.http.prediction_service import PredictionService
from serve_app.http.problems import HttpProblem, problem
from serve_app.http.responses import HttpResponse, problem_response, to_starlette
from serve_app.http.routes.predictions import INVOCATIONS
from serve_app.protocols.codec import Codec
from serve_app.protocols.instances import KServeV1Codec, VertexCodec
from serve_app.protocols.mlflow import MlflowCodec

PING = "/ping"
MODELS = "/v1/models"

_JSON = ((b"content-type", b"application/json"),)
_UNKNOWN = problem(404, "unknown_model", "No served model has this name; GET /v1/models returns the name of the served model.")
_NO_EXPLANATIONS = problem(501, "not_implemented", "This server does not support explanations; use :predict.")


def table_routes(options: HttpOptions) -> Mapping[str, type[Codec]]:
    """The paths that take tables in the protocols of other servers, by POST only."""
    routes: dict[str, type[Codec]] = {INVOCATIONS: MlflowCodec, f"{MODELS}/{options.model_name}:predict": KServeV1Codec}
    if options.predict_route:
        routes[options.predict_route] = VertexCodec
    return routes


def ping_router(service: PredictionService, health_route: str = "") -> APIRouter:
    """`/ping` and `/version` for MLflow and SageMaker, without a key; `health_route` answers like `/ping`."""
    router = APIRouter(include_in_schema=False)

    @router.get(PING)
    async def ping() -> Response:
        if service.slot.predictor is None:
            return to_starlette(problem_response(service.no_model(), MlflowCodec))
        return to_starlette(HttpResponse(200, _JSON, b"\n"))

    @router.get("/version")
    async def version() -> Response:
        return to_starlette(HttpResponse(200, ((b"content-type", b"text/plain; charset=utf-8"),), __version__.encode()))

    if health_route and health_route != PING:
        router.add_api_route(health_route, ping, methods=["GET"])
    return router


def kserve_router(service: PredictionService, model_name: str) -> APIRouter:
    """`/v1/models` and the paths below it, except predictions of the served model; all of them require a key."""
    slot = service.slot
    router = APIRouter(include_in_schema=False)

    def refused(refusal: HttpProblem) -> Response:
        return to_starlette(problem_response(refusal, KServeV1Codec))

    def refusal_of(request: Request, name: str) -> HttpProblem | None:
        values: HeaderValues = dict(request.scope["headers"])
        refusal = service.refuse_key(values.get(b"x-api-key"), values.get(b"authorization"))
        return refusal or (None if name == model_name else _UNKNOWN)

    @router.get(MODELS)
    async def models(request: Request) -> Response:
        refusal = refusal_of(request, model_name)
        names = [] if slot.predictor is None else [model_name]
        return refused(refusal) if refusal else to_starlette(HttpResponse(200, _JSON, orjson.dumps({"models": names})))

    @router.get(MODELS + "/{name}")
    async def model(request: Request, name: str) -> Response:
        refusal = refusal_of(request, name)
        if refusal is None and slot.predictor is None:
            refusal = service.no_model()
        document = orjson.dumps({"name": model_name, "ready": True})
        return refused(refusal) if refusal else to_starlette(HttpResponse(200, _JSON, document))

    @router.post(MODELS + "/{name}:predict")
    async def predict(request: Request, name: str) -> Response:
        return refused(refusal_of(request, name) or _UNKNOWN)  # the gateway answers predictions of the served model

    @router.post(MODELS + "/{name}:explain")
    async def explain(request: Request, name: str) -> Response:
        return refused(refusal_of(request, name) or _NO_EXPLANATIONS)

    return router
