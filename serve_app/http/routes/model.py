"""`/model/info`, in the format of the plain-Kubernetes system, and `/model`: all data about the served model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve_app.http.pages import refuse
from serve_app.http.prediction_service import PredictionService
from serve_app.http.problems import problem
from serve_app.http.responses import problem_response, to_starlette
from serve_app.inference.predictor import Predictor
from serve_app.telemetry.collector import age_seconds

INFO_KEYS = ("model_type", "n_features", "n_samples", "feature_names", "target_names")
METRIC_KEYS = ("accuracy", "precision", "recall", "f1_score")
_RECORD_KEYS = (
    "trained_at",
    "mlflow_run_id",
    "mlflow_model_name",
    "mlflow_model_version",
    "tracking",
    "data",
    "code",
    "libraries",
    "verdict",
    "forced",
    "tags",
)


def model_router(service: PredictionService, *, model_name: str) -> APIRouter:
    """The routes that describe the served model; both require a key."""
    slot = service.slot
    router = APIRouter(tags=["model"])

    def refusal_of(request: Request) -> Response | None:
        refusal = refuse(request.scope["headers"], service.refuse_key)
        if refusal is None and slot.predictor is None:
            return to_starlette(problem_response(problem(404, "no_model", f"No model is loaded: {slot.problem}.")))
        return refusal

    @router.get("/model/info", operation_id="modelInfo", summary="The served model in brief")
    async def info(request: Request) -> Response:
        refusal, predictor = refusal_of(request), slot.predictor
        if refusal is not None or predictor is None:
            return refusal or Response(status_code=404)
        return JSONResponse(_info(predictor), headers=_headers(predictor))

    @router.get("/model", operation_id="model", summary="The served model in full, and why a newer model is not served")
    async def model(request: Request) -> Response:
        response, predictor = refusal_of(request), slot.predictor
        if response is not None or predictor is None:
            return response or Response(status_code=404)
        etag = predictor.bundle.etag
        known = request.headers.get("if-none-match", "")
        if slot.refusal is None and {etag, "*"} & {tag.strip().removeprefix("W/") for tag in known.split(",")}:
            return Response(status_code=304, headers={"etag": etag})
        refusal = slot.refusal
        manifest = predictor.bundle.manifest.to_dict()
        document = {
            "name": model_name,
            "version": predictor.version,
            "digest": predictor.digest,
            "source": predictor.bundle.source,
            "model_source": slot.model_source,
            "registry_problem": slot.registry_problem,
            "predictor": predictor.kind,
            "loaded_at": slot.loaded_at,
            "load_seconds": round(slot.load_seconds, 4),
            "age_seconds": age_seconds(predictor.bundle),
            **{key: manifest[key] for key in _RECORD_KEYS},
            "info": _info(predictor),
            "metrics": dict(predictor.bundle.metrics),
            "signature": predictor.signature.to_dict(),
            "refused": None
            if refusal is None
            else {"candidate": refusal.candidate, "reason": refusal.reason, "message": refusal.message, "at": refusal.at},
        }
        return JSONResponse(document, headers={**_headers(predictor), "etag": etag})

    def _headers(predictor: Predictor) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in service.model_headers(predictor)}

    return router


def _info(predictor: Predictor) -> dict[str, Any]:
    manifest, metrics, signature = predictor.bundle.manifest.to_dict(), predictor.bundle.metrics, predictor.signature
    derived = {
        "model_type": "unknown",
        "n_features": len(signature.features),
        "n_samples": None,
        "feature_names": list(signature.names),
        "target_names": list(signature.class_names),
    }
    info = {key: derived[key] if manifest[key] is None else manifest[key] for key in INFO_KEYS}
    keys = METRIC_KEYS if signature.task == "classification" and not signature.outputs else tuple(metrics)
    return {**info, **{key: metrics.get(key) for key in keys}}
