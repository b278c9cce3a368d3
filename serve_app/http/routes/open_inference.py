"""The routes of the Open Inference Protocol that are not predictions: health, metadata and the repository index.

The routes for liveness and readiness need no key, like `/livez` and `/readyz`. The routes that describe the model require a key.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from serve_app import __version__
from serve_app.errors import InvalidInput
from serve_app.http.pages import refuse
from serve_app.http.prediction_service import PredictionService
from serve_app.http.problems import UNKNOWN_MODEL, HttpProblem, problem, problem_of
from serve_app.http.responses import HttpResponse, problem_response, to_starlette
from serve_app.http.routes.predictions import OPEN_INFERENCE
from serve_app.protocols.oip import OpenInferenceCodec
from serve_app.protocols.oip_metadata import INDEX_BYTES, index_document, model_document, server_document
from serve_app.protocols.oip_openapi import open_inference_document

NO_LOADING = problem(400, "not_supported", "Requests cannot load or unload models; publish or promote a version in the store.")
TOO_LONG = problem(413, "body_too_large", f"The body must not be larger than {INDEX_BYTES} bytes.")
_JSON = ((b"content-type", b"application/json"),)


def open_inference_router(service: PredictionService, *, model_name: str, public_pages: bool) -> APIRouter:
    """The routes below `/v2`. Without `public_pages` the description of the server requires a key, too."""
    pages = OpenInferencePages(service, model_name, public_pages=public_pages)
    router = APIRouter(prefix=OPEN_INFERENCE, include_in_schema=False)
    for path in ("", "/"):
        router.get(path)(pages.server)
    router.get("/openapi.json")(pages.openapi)
    router.get("/health/live")(pages.live)
    router.get("/health/ready")(pages.ready)
    router.get("/models")(pages.models)
    for model in ("/models/{model}", "/models/{model}/versions/{version}"):
        router.get(model)(pages.metadata)
        router.get(f"{model}/ready")(pages.model_ready)
        router.post(f"{model}/infer")(pages.infer_with_another)
    router.post("/repository/index")(pages.index)
    for action in ("load", "unload"):
        router.post(f"/repository/models/{{model}}/{action}")(pages.load)
    return router


class OpenInferencePages:
    """The handlers of the paths."""

    def __init__(self, service: PredictionService, model_name: str, *, public_pages: bool) -> None:
        self._service = service
        self._slot = service.slot
        self._model_name = model_name
        self._public_pages = public_pages

    async def server(self, request: Request) -> Response:
        """Name, version and extensions of the server."""
        refusal = None if self._public_pages else self._refuse_key(request)
        return refusal or _answer(server_document(__version__))

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI description of these routes, with the names and an example of the served model."""
        predictor = self._slot.predictor
        refusal = None if self._public_pages else self._refuse_key(request)
        document = open_inference_document(
            None if predictor is None else predictor.signature,
            model_name=self._model_name,
            model_version=None if predictor is None else predictor.version,
            version=__version__,
            public_pages=self._public_pages,
        )
        return refusal or _answer(document)

    async def live(self) -> Response:
        """200 while the process runs."""
        return _answer({"live": True})

    async def ready(self) -> Response:
        """200 once a model is loaded, else 503."""
        if self._slot.predictor is None:
            return _unready(self._service.no_model(), {"ready": False, "live": True})
        return _answer({"ready": True, "live": True})

    async def models(self, request: Request) -> Response:
        """The names of the served models."""
        names = [] if self._slot.predictor is None else [self._model_name]
        return self._refuse_key(request) or _answer({"models": names})

    async def model_ready(self, model: str, version: str | None = None) -> Response:
        """200 once the model is loaded, in the version that the path names, if any."""
        predictor = self._service.served(model, version)
        if isinstance(predictor, HttpProblem):
            return _unready(predictor, {"ready": False})
        return _answer({"name": self._model_name, "ready": True})

    async def metadata(self, request: Request, model: str, version: str | None = None) -> Response:
        """Inputs and outputs of the model."""
        refusal, predictor = self._refuse_key(request), self._service.served(model, version)
        if refusal is not None:
            return refusal
        if isinstance(predictor, HttpProblem):
            return _refused(predictor)
        document = model_document(predictor.signature, name=self._model_name, version=predictor.version, platform=predictor.kind)
        return _answer(document, self._service.model_headers(predictor))

    async def infer_with_another(self, request: Request) -> Response:
        """404. The gateway answers requests for the served model, so this request names another model."""
        return self._refuse_key(request) or _refused(UNKNOWN_MODEL)

    async def index(self, request: Request) -> Response:
        """The models in the repository and their states."""
        refusal = self._refuse_key(request)
        if refusal is not None:
            return refusal
        body, predictor = await request.body(), self._slot.predictor
        if len(body) > INDEX_BYTES:
            return _refused(TOO_LONG)
        version = None if predictor is None else predictor.version
        try:
            return _answer(index_document(self._model_name, version, self._slot.problem, body))
        except InvalidInput as error:
            return _refused(problem_of(error))

    async def load(self, request: Request) -> Response:
        """The refusal of every request: clients cannot load or unload models."""
        return self._refuse_key(request) or _refused(NO_LOADING)

    def _refuse_key(self, request: Request) -> Response | None:
        return refuse(request.scope["headers"], self._service.refuse_key, OpenInferenceCodec)


def _answer(document: Any, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    return to_starlette(HttpResponse(200, (*_JSON, *headers), orjson.dumps(document)))


def _refused(refusal: HttpProblem) -> Response:
    return to_starlette(problem_response(refusal, OpenInferenceCodec))


def _unready(refusal: HttpProblem, members: dict[str, Any]) -> Response:
    """An error that also has the members of a ready answer, which clients read."""
    response = problem_response(refusal, OpenInferenceCodec)
    return to_starlette(response._replace(body=orjson.dumps({**members, **orjson.loads(response.body)})))
