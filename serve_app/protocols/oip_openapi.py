"""The OpenAPI description of the Open Inference Protocol in this server.

The protocol is the same for every model, so the schemas do not depend on a model. The names in the paths and the example of a
request come from the served model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from serve_app.artifacts.signature import Signature
from serve_app.protocols.native_schema import example
from serve_app.protocols.oip_metadata import input_datatype
from serve_app.protocols.tensors import BYTES, NUMBERS

ERRORS = {
    400: "The request is malformed or does not fit the model, or a header is repeated or not UTF-8",
    401: "The API key is missing",
    403: "The API key is not valid",
    404: "The model or the version is not served",
    408: "The body did not arrive in time",
    413: "The body, a row or the number of rows is over the limit",
    415: "The content coding is not supported",
    429: "Too many requests; try again after Retry-After seconds",
    500: "The server failed, or the model computed NaN or infinity",
    503: "No model is loaded",
}
"""The statuses of errors. All errors have the same format."""
DATATYPES = [*NUMBERS, BYTES]

_KEYED = (401, 403)
_READ = (408, 413)
_SECURITY: list[dict[str, list[str]]] = [{"ApiKey": []}, {"Bearer": []}]
_HEADER_LENGTH = "Inference-Header-Content-Length"
_TEXT = {"type": "string"}
_SHAPE = {"type": "array", "items": {"type": "integer"}, "description": "The length of each dimension."}
_DATA = {"type": "array", "description": "The values row by row, in one list or in one list for each row."}
_SIZE = {"type": "integer", "minimum": 0, "description": "The number of bytes of this tensor after the JSON."}
_FREE = {"type": "object", "description": "Other parameters are ignored."}


def open_inference_document(
    signature: Signature | None, *, model_name: str, model_version: str | None, version: str, public_pages: bool
) -> dict[str, Any]:
    """The description of a server of this `version`; `signature` and `model_version` are None while no model is loaded."""
    names = {"model_name": model_name, "model_version": model_version}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Open Inference Protocol v2",
            "version": version,
            "description": "Predictions as tensors, in JSON or as little-endian bytes after it. Content types are ignored.",
        },
        "servers": [{"url": ".."}],
        "paths": {**_server_paths(public_pages), **_model_paths(names, signature), **_repository_paths(names)},
        "components": {
            "schemas": _schemas(signature),
            "securitySchemes": {
                "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "Bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _server_paths(public_pages: bool) -> dict[str, Any]:
    keyed = () if public_pages else _KEYED
    return {
        "/v2": {"get": _operation("server", "Name, version and extensions of the server", "Server", (400, 429, *keyed))},
        "/v2/health/live": {"get": _operation("live", "Whether the process runs", "Live", (400,))},
        "/v2/health/ready": {"get": _operation("ready", "Whether a model is loaded", "Ready", (400, 503))},
        "/v2/models": {"get": _operation("models", "The names of the models", "Models", (400, 429, *_KEYED))},
    }


def _model_paths(names: Mapping[str, str | None], signature: Signature | None) -> dict[str, Any]:
    """The paths of a model, without and with a version."""
    paths: dict[str, Any] = {}
    for path, suffix in (("/v2/models/{model_name}", ""), ("/v2/models/{model_name}/versions/{model_version}", "_of_version")):
        parameters = _parameters(path, names)
        infer = _operation(f"infer{suffix}", "Predict the rows of the tensors", "Response", (*ERRORS,))
        infer["requestBody"] = _infer_body(signature)
        infer["parameters"] = [_header_length("The length of the JSON, when binary values follow it.")]
        infer["responses"]["200"] |= {"headers": _infer_headers()}
        infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        paths[path] = {
            "parameters": parameters,
            "get": _operation(f"metadata{suffix}", "Inputs and outputs of the model", "Model", (400, 404, 429, 503, *_KEYED)),
        }
        paths[f"{path}/ready"] = {
            "parameters": parameters,
            "get": _operation(f"model_ready{suffix}", "Whether the model is loaded", "ModelReady", (400, 404, 429, 503)),
        }
        paths[f"{path}/infer"] = {"parameters": parameters, "post": infer}
    return paths


def _repository_paths(names: Mapping[str, str | None]) -> dict[str, Any]:
    errors = (400, 429, *_READ, *_KEYED)
    index = _operation("index", "The models of the repository and their states", "Index", errors)
    index["requestBody"] = {"required": False, "content": _json("IndexRequest")}
    paths: dict[str, Any] = {"/v2/repository/index": {"post": index}}
    for action in ("load", "unload"):
        path = f"/v2/repository/models/{{model_name}}/{action}"
        operation = _operation(f"{action}_model", "Always refused: the server follows its store", None, errors)
        paths[path] = {"parameters": _parameters(path, names), "post": operation}
    return paths


def _operation(name: str, summary: str, schema: str | None, errors: Iterable[int]) -> dict[str, Any]:
    """An operation that returns a document of `schema`, or an error."""
    statuses = sorted(set(errors))
    responses: dict[str, Any] = {} if schema is None else {"200": {"description": summary, "content": _json(schema)}}
    responses |= {
        str(status): {"description": ERRORS[status], "content": _json(_error_schema(name, status))} for status in statuses
    }
    operation = {"operationId": name, "summary": summary, "tags": ["Open Inference Protocol"], "responses": responses}
    return operation | ({"security": _SECURITY} if set(_KEYED) <= set(statuses) else {})


def _error_schema(name: str, status: int) -> str:
    return "NotReady" if "ready" in name and status in (404, 503) else "Error"


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _parameters(path: str, names: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """The parameters of a path: the names of the served model and its version; any version while no model is loaded."""
    return [
        {"name": name, "in": "path", "required": True, "schema": _TEXT if value is None else {**_TEXT, "enum": [value]}}
        for name, value in names.items()
        if f"{{{name}}}" in path
    ]


def _header_length(description: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1}
    return {"name": _HEADER_LENGTH, "in": "header", "required": False, "schema": schema, "description": description}


def _infer_headers() -> dict[str, Any]:
    length = {"schema": {"type": "integer"}, "description": "The length of the JSON, when binary values follow it."}
    return {**{name: {"schema": _TEXT} for name in ("X-Model-Name", "X-Model-Version", "X-Model-Digest")}, _HEADER_LENGTH: length}


def _infer_body(signature: Signature | None) -> dict[str, Any]:
    content = _json("Request")
    if signature is not None:
        content["application/json"]["example"] = example_request(signature)
    return {
        "required": True,
        "content": {**content, "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }


def example_request(signature: Signature) -> dict[str, Any]:
    """A valid request for one row, with one input for each feature."""
    row = example(signature)
    return {
        "inputs": [
            {"name": feature.name, "shape": [1], "datatype": input_datatype(feature), "data": [row[feature.name]]}
            for feature in signature.features
        ]
    }


def _object(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": [name for name in properties if name not in optional], "properties": properties, **more}


def _list_of(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _schemas(signature: Signature | None) -> dict[str, Any]:
    datatype = {"enum": DATATYPES}
    tensor = _object({"name": _TEXT, "datatype": _TEXT, "shape": {**_SHAPE, "description": "-1 stands for any number of rows."}})
    problem = _object({"field": _TEXT, "code": _TEXT, "message": _TEXT})
    error = {"error": {"type": "string", "description": "One sentence; it never repeats the input."}, "code": _TEXT}
    errors = {"errors": _list_of(problem, description="The fields at fault and the rules that they break.")}
    ready, flag = {"ready": {"type": "boolean"}}, {"type": "boolean"}
    request = _object(
        {
            "id": {"type": ["string", "null"], "description": "Repeated in the response."},
            "parameters": {
                **_FREE,
                "type": ["object", "null"],
                "properties": {"binary_data_output": {"type": ["boolean", "null"]}},
            },
            "inputs": _list_of({"$ref": "#/components/schemas/InputTensor"}, minItems=1),
            "outputs": {"type": ["array", "null"], "items": {"$ref": "#/components/schemas/RequestedOutput"}},
        },
        *("id", "parameters", "outputs"),
    )
    if signature is not None:
        request["example"] = example_request(signature)
    return {
        "Server": _object({"name": _TEXT, "version": _TEXT, "extensions": _list_of(_TEXT)}),
        "Live": _object({"live": flag}),
        "Ready": _object({"ready": flag, "live": flag}),
        "Models": _object({"models": _list_of(_TEXT)}),
        "ModelReady": _object({"name": _TEXT, "ready": flag}),
        "Model": _object(
            {
                "name": _TEXT,
                "versions": _list_of(_TEXT),
                "platform": _TEXT,
                "inputs": _list_of(tensor),
                "outputs": _list_of(tensor),
                "properties": {"type": "object", "additionalProperties": _TEXT, "description": "Each value is JSON text."},
            }
        ),
        "InputTensor": _object(
            {
                "name": _TEXT,
                "shape": {**_SHAPE, "items": {"type": "integer", "minimum": 1}},
                "datatype": datatype,
                "parameters": {**_FREE, "type": ["object", "null"], "properties": {"binary_data_size": _SIZE}},
                "data": _DATA,
            },
            *("parameters", "data"),
            description="All features, or one feature, of all rows. It has either `data` or the parameter `binary_data_size`.",
        ),
        "RequestedOutput": _object(
            {
                "name": _TEXT,
                "parameters": {
                    **_FREE,
                    "type": ["object", "null"],
                    "properties": {"binary_data": {"type": "boolean"}, "classification": {"type": "integer", "minimum": 1}},
                },
            },
            "parameters",
        ),
        "Request": request,
        "OutputTensor": _object(
            {
                "name": _TEXT,
                "shape": _SHAPE,
                "datatype": datatype,
                "parameters": {"type": "object", "properties": {"binary_data_size": _SIZE}},
                "data": _DATA,
            },
            *("parameters", "data"),
        ),
        "Response": _object(
            {
                "model_name": _TEXT,
                "model_version": _TEXT,
                "id": _TEXT,
                "outputs": _list_of({"$ref": "#/components/schemas/OutputTensor"}),
            },
            "id",
        ),
        "IndexRequest": {
            "type": "object",
            "properties": {"ready": {"type": "boolean", "description": "Return only models that are ready."}},
        },
        "Index": _list_of(
            _object({"name": _TEXT, "version": _TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": _TEXT}),
        ),
        "Error": _object({**error, **errors}, "errors"),
        "NotReady": _object({**ready, **error, **errors}, "errors"),
    }
