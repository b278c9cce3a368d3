"""`/`, `/health`, `/livez`, `/readyz` and `/metrics`: the routes without a key. `/metrics` can be set to require a key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from serve_app.http.pages import METRICS, RefuseKey, refuse
from serve_app.http.problems import problem
from serve_app.http.responses import problem_response, to_starlette
from serve_app.inference.slot import Slot
from serve_app.telemetry.collector import MetricsCollector, PublicMetrics

VERSION = "1.0.0"
"""The `version` in the answer of `/health`: the version of the HTTP contract, not of the model."""


def health_router(slot: Slot, collector: MetricsCollector, refuse_key: RefuseKey | None = None) -> APIRouter:
    """The routes for users, probes and scrapers. With `refuse_key`, `/metrics` checks the key of each request."""
    router = APIRouter(tags=["health"])
    registry = CollectorRegistry()
    registry.register(PublicMetrics(collector))

    @router.get("/", operation_id="root", summary="The addresses of the documentation and of the health check")
    async def root(request: Request) -> dict[str, str]:
        prefix = request.scope.get("root_path", "")
        return {
            "message": "Iris API",
            "status": "alive",  # KServe v1 clients use this path as their liveness check
            "docs": f"{prefix}/docs",
            "health": f"{prefix}/health",
            "security": "Send the API key in the X-API-Key header.",
        }

    @router.get("/health", operation_id="health", summary="Always 200; the body says whether a model is loaded")
    async def health() -> dict[str, Any]:
        loaded = slot.predictor is not None
        return {"status": "healthy" if loaded else "unhealthy", "model_loaded": loaded, "version": VERSION}

    @router.get("/livez", operation_id="livez", summary="The process runs")
    async def livez() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/readyz", operation_id="readyz", summary="200 once a model is loaded and warm, else 503 with the reason")
    async def readyz() -> Response:
        predictor = slot.predictor
        if predictor is None:
            return to_starlette(problem_response(problem(503, "not_ready", f"No model is loaded: {slot.problem}.")))
        return JSONResponse(
            {
                "status": "ready",
                "model_version": predictor.version,
                "digest": predictor.digest,
                "model_source": slot.model_source,
            }
        )

    @router.get(METRICS, operation_id="metrics", summary="The metrics of the replica that answers, as Prometheus text")
    async def metrics(request: Request) -> Response:
        refusal = refuse(request.scope["headers"], refuse_key) if refuse_key else None
        if refusal is not None:
            return refusal
        response = Response(generate_latest(registry))
        response.headers["content-type"] = CONTENT_TYPE_LATEST
        return response

    return router
