"""`/model/info` as the system of old answers it, and `/model`: everything that is known of the model in use."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from serve_app.http.problems import problem
from serve_app.http.routes.predict import PredictionService, to_response
from serve_app.inference.predictor import Predictor
from serve_app.telemetry.collector import age_seconds

INFO_KEYS = ("model_type", "n_features", "n_samples", "feature_names", "target_names")
METRIC_KEYS = ("accuracy", "precision", "recall", "f1_score")
_TOLD = (
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


def model_router(answers: PredictionService, *, model_name: str) -> APIRouter:
    slot = answers.slot
    router = APIRouter(tags=["model"])

    def refuse(request: Request) -> Response | None:
        headers = dict(request.scope["headers"])
        refused = answers.refuse(headers.get(b"x-api-key"), headers.get(b"authorization"), None)
        if refused is None and slot.predictor is None:
            refused = problem(404, "no_model", f"No model is loaded: {slot.problem}.")
        return to_response(refused) if refused else None

    @router.get("/model/info", operation_id="modelInfo", summary="The model in brief")
    async def info(request: Request) -> Response:
        refused = refuse(request)
        if refused is not None or slot.predictor is None:
            return refused or Response(status_code=404)
        return JSONResponse(_info(slot.predictor), headers=_headers(slot.predictor))

    @router.get("/model", operation_id="model", summary="The model in full, and why a newer one is not served")
    async def model(request: Request) -> Response:
        refused = refuse(request)
        predictor = slot.predictor
        if refused is not None or predictor is None:
            return refused or Response(status_code=404)
        etag = predictor.bundle.etag
        seen = request.headers.get("if-none-match", "")
        if slot.refusal is None and {etag, "*"} & {tag.strip().removeprefix("W/") for tag in seen.split(",")}:
            return Response(status_code=304, headers={"etag": etag})
        refusal = slot.refusal
        manifest = predictor.bundle.manifest.to_dict()
        document = {
            "name": model_name,
            "version": predictor.version,
            "digest": predictor.digest,
            "source": predictor.bundle.source,
            "predictor": predictor.kind,
            "loaded_at": slot.loaded_at,
            "load_seconds": round(slot.load_seconds, 4),
            "age_seconds": age_seconds(predictor.bundle),
            **{key: manifest[key] for key in _TOLD},
            "info": _info(predictor),
            "metrics": dict(predictor.bundle.metrics),
            "signature": predictor.signature.to_dict(),
            "refused": None
            if refusal is None
            else {"candidate": refusal.candidate, "reason": refusal.reason, "message": refusal.message, "at": refusal.at},
        }
        return JSONResponse(document, headers={**_headers(predictor), "etag": etag})

    def _headers(predictor: Predictor) -> dict[str, str]:
        pairs = answers.prepared(predictor).headers
        return {name.decode(): value.decode() for name, value in pairs if name != b"content-type"}

    return router


def _info(predictor: Predictor) -> dict[str, Any]:
    manifest, metrics, signature = predictor.bundle.manifest.to_dict(), predictor.bundle.metrics, predictor.signature
    derived = {
        "model_type": "unknown",
        "n_features": len(signature.features),
        "n_samples": None,
        "feature_names": list(signature.names),
        "target_names": [str(label) for label in signature.classes],
    }
    found = {key: derived[key] if manifest[key] is None else manifest[key] for key in INFO_KEYS}
    keys = METRIC_KEYS if signature.task == "classification" else tuple(metrics)
    return {**found, **{key: metrics.get(key) for key in keys}}
