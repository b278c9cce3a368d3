"""The OpenAPI document of FastAPI, with the prediction routes for the signature of the served model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve_app.artifacts.fields import UnknownFields
from serve_app.artifacts.signature import Signature
from serve_app.inference.slot import Slot
from serve_app.protocols.codec import Codec, Operation
from serve_app.protocols.media_types import ARROW_TYPES
from serve_app.protocols.problem_json import PROBLEM_SCHEMA

_PROBLEMS = {
    "400": "The body is malformed, or a header is repeated or not UTF-8",
    "401": "The API key is missing",
    "403": "The API key is not valid",
    "408": "The body did not arrive in time",
    "413": "The body, a row or the number of rows is over the limit",
    "415": "The content type or the content coding is not supported",
    "422": "A value does not fit the signature",
    "429": "Too many requests; try again after Retry-After seconds",
    "500": "The server failed, or the model computed NaN or infinity",
    "503": "No model is loaded",
}
_KEYED = {"401", "403"}
_SECURITY: list[dict[str, list[str]]] = [{"ApiKey": []}, {"Bearer": []}]
_PATHS = {
    "/model/info": {"400", "401", "403", "404", "429"},
    "/model": {"400", "401", "403", "404", "429"},
    "/livez": {"400"},
    "/readyz": {"400", "503"},
    "/metrics": {"400"},
    "/": {"400", "429"},
    "/health": {"400", "429"},
}
_MODEL_HEADERS = ("X-Model-Name", "X-Model-Version", "X-Model-Digest", "X-Request-ID")


def install_openapi(
    app: FastAPI,
    slot: Slot,
    routes: Mapping[str, type[Codec]],
    *,
    max_rows: int,
    unknown_fields: UnknownFields,
    public_pages: bool = True,
) -> None:
    """Replace `app.openapi`. The document is built again after a swap.

    Without `public_pages`, the document describes `/metrics` as a route that needs a key.
    """
    paths = _PATHS if public_pages else {**_PATHS, "/metrics": _KEYED}
    cached: tuple[str | None, dict[str, Any]] | None = None

    def operations(signature: Signature | None) -> dict[str, tuple[type[Codec], Operation]]:
        limits: Any = {"max_rows": max_rows, "unknown_fields": unknown_fields}
        described = {path: (codec, codec.operation(signature, **limits)) for path, codec in routes.items()}
        return {path: (codec, operation) for path, (codec, operation) in described.items() if operation is not None}

    def openapi() -> dict[str, Any]:
        nonlocal cached
        predictor = slot.predictor
        digest = predictor.digest if predictor else None
        if cached is None or cached[0] != digest:
            cached = (digest, _document(app, operations(predictor.signature if predictor else None), paths))
        return cached[1]

    app.openapi = openapi  # type: ignore[method-assign]


def _document(
    app: FastAPI,
    operations: Mapping[str, tuple[type[Codec], Operation]],
    statuses_of: Mapping[str, set[str]],
) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        servers=app.servers,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = PROBLEM_SCHEMA
    document["components"]["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    }
    paths = document["paths"]
    for path, statuses in statuses_of.items():
        operation = next(iter(paths[path].values()))
        operation["responses"].pop("422", None)
        operation["responses"].update(_problems(statuses, "application/problem+json"))
        if statuses >= _KEYED:
            operation["security"] = _SECURITY
    paths["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    paths["/model"]["get"]["responses"]["304"] = {"description": "The client already has this version"}
    predictions = {}
    for path, (codec, description) in operations.items():
        schemas.update(description.schemas)
        predictions[path] = {"post": _prediction_operation(codec, description)}
    document["paths"] = {**predictions, **paths}
    return document


def _problems(statuses: set[str], content_type: str) -> dict[str, Any]:
    content = {content_type: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    others = {"404": "No model is loaded", "406": "`Accept` names no supported content type"}
    named = {**_PROBLEMS, **others}
    return {status: {"description": named[status], "content": content} for status in sorted(statuses)}


def _text_or_bytes(media_type: str) -> dict[str, str]:
    return {"type": "string", "format": "binary"} if media_type in ARROW_TYPES.values() else {"type": "string"}


def _prediction_operation(codec: type[Codec], description: Operation) -> dict[str, Any]:
    def content(schemas: Mapping[str, str], media_types: Sequence[str]) -> dict[str, Any]:
        """The content by media type; a type without a schema is text."""
        references = {media_type: {"$ref": f"#/components/schemas/{schema}"} for media_type, schema in schemas.items()}
        described = dict.fromkeys([codec.content_type.decode(), *media_types])
        return {media_type: {"schema": references.get(media_type, _text_or_bytes(media_type))} for media_type in described}

    statuses = set(_PROBLEMS) | ({"406"} if codec.response_types else set())
    formats = codec.media_types if codec.response_types else ()
    default = codec.content_type.decode()

    return {
        "tags": ["prediction"],
        "summary": description.summary,
        "operationId": description.operation_id,
        "requestBody": {"required": True, "content": content({default: description.request}, formats)},
        "responses": {
            "200": {
                "description": "The prediction",
                "headers": {name: {"schema": {"type": "string"}} for name in _MODEL_HEADERS},
                "content": content({default: description.response, **description.other_responses}, codec.response_types),
            },
            **_problems(statuses, codec.problem_type.decode()),
        },
        "security": _SECURITY,
    }
