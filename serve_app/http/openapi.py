"""The OpenAPI document: FastAPI's, with the schema of the rows written after the signature of the model in use."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve_app.artifacts.signature import Feature, Signature
from serve_app.inference.slot import Slot

_PROBLEMS = {
    "400": "The body is not JSON",
    "401": "No API key",
    "403": "Wrong API key",
    "408": "The body did not arrive in time",
    "413": "Body or rows over the limit",
    "415": "Not sent as JSON",
    "422": "A value does not fit the signature",
    "429": "Too many requests; try again after Retry-After seconds",
    "500": "The server failed",
    "503": "No model is loaded",
}
_KEYED = {"401", "403"}
_PREDICT = set(_PROBLEMS)
_PATHS = {
    "/predict": _PREDICT,
    "/predict/batch": _PREDICT,
    "/model/info": {"401", "403", "404", "429"},
    "/model": {"401", "403", "404", "429"},
    "/readyz": {"503"},
    "/": {"429"},
    "/health": {"429"},
}


def install_openapi(app: FastAPI, slot: Slot, *, max_rows: int) -> None:
    """Replace `app.openapi`; the document is made anew when another model is served."""
    made: tuple[str | None, dict[str, Any]] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal made
        predictor = slot.predictor
        digest = predictor.digest if predictor else None
        if made is None or made[0] != digest:
            made = (digest, _document(app, predictor.signature if predictor else None, max_rows))
        return made[1]

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, signature: Signature | None, max_rows: int) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(_schemas(signature, max_rows))
    components["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    }
    paths = document["paths"]
    for path, statuses in _PATHS.items():
        operation = next(iter(paths[path].values()))
        operation["responses"].pop("422", None)
        for status in sorted(statuses):
            operation["responses"][status] = {
                "description": _PROBLEMS.get(status, "No model is loaded"),
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            }
        if statuses >= _KEYED:
            operation["security"] = [{"ApiKey": []}, {"Bearer": []}]
    for path, row, answer in (("/predict", "Row", "Prediction"), ("/predict/batch", "Rows", "Predictions")):
        operation = paths[path]["post"]
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{row}"}}},
        }
        operation["responses"]["200"] = {
            "description": "The prediction",
            "headers": {
                name: {"schema": {"type": "string"}}
                for name in ("X-Model-Name", "X-Model-Version", "X-Model-Digest", "X-Request-ID")
            },
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}},
        }
    paths["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    paths["/model"]["get"]["responses"]["304"] = {"description": "The client has this version already"}
    return document


def _schemas(signature: Signature | None, max_rows: int) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "object", "description": "Features of one row; further fields are ignored."}
    answer: dict[str, Any] = {"type": "object", "required": ["prediction"]}
    if signature is not None:
        row["properties"] = {feature.name: _feature(feature) for feature in signature.features}
        row["required"] = [feature.name for feature in signature.features if not feature.nullable]
        row["example"] = signature.example()
        answer = _prediction(signature)
    rows = {
        "type": "object",
        "required": ["instances"],
        "properties": {
            "instances": {"type": "array", "minItems": 1, "maxItems": max_rows, "items": {"$ref": "#/components/schemas/Row"}}
        },
    }
    if signature is not None:
        rows["example"] = {"instances": [signature.example()]}
    predictions = {
        "type": "object",
        "required": ["predictions"],
        "properties": {"predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}},
    }
    return {"Row": row, "Rows": rows, "Prediction": answer, "Predictions": predictions, "Problem": _problem()}


def _feature(feature: Feature) -> dict[str, Any]:
    if feature.kind == "category":
        schema: dict[str, Any] = {"type": "string", "enum": list(feature.categories)}
    elif feature.kind == "boolean":
        schema = {"type": "boolean"}
    else:
        schema = {"type": "number"}
        if feature.minimum is not None:
            schema["minimum"] = feature.minimum
        if feature.maximum is not None:
            schema["maximum"] = feature.maximum
        if feature.low is not None and feature.high is not None:
            schema["description"] = f"Training saw {feature.low:g} to {feature.high:g}."
    if feature.nullable:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema


def _prediction(signature: Signature) -> dict[str, Any]:
    if signature.task == "regression":
        return {"type": "object", "required": ["prediction"], "properties": {"prediction": {"type": "number"}}}
    names = [str(label) for label in signature.classes]
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    return {
        "type": "object",
        "required": ["prediction", "confidence", "probabilities"],
        "properties": {
            "prediction": {"enum": list(signature.classes)},
            "confidence": probability if signature.probabilistic else {"type": "null"},
            "probabilities": {"type": "object", "required": names, "properties": dict.fromkeys(names, probability)}
            if signature.probabilistic
            else {"type": "null"},
        },
    }


def _problem() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": text,
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "code": text,
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["field", "code", "message"],
                    "properties": {"field": text, "code": text, "message": text},
                },
            },
        },
    }
