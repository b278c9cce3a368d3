"""The metadata documents of the Open Inference Protocol for the server and for a model."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from serve_app.artifacts.signature import Feature, Signature, json_label
from serve_app.errors import InvalidInput, Problem
from serve_app.protocols.oip import EXTENSIONS
from serve_app.protocols.tensor_outputs import outputs_of
from serve_app.protocols.tensors import BYTES

INDEX_BYTES = 64 * 1024
"""A larger request for the repository index is refused."""


class IndexDocument(msgspec.Struct):
    """A request for the repository index."""

    ready: bool = False


def server_document(version: str) -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": "iris-api", "version": version, "extensions": list(EXTENSIONS)}


def model_document(signature: Signature, *, name: str, version: str, platform: str) -> dict[str, Any]:
    """Name, version, inputs and outputs of a model; each of its `properties` is JSON text.

    The inputs are in column form, which every model accepts.
    """
    properties = {"nullable": [feature.name for feature in signature.features if feature.nullable]}
    if signature.outputs:
        classes: Any = {part.target: list(map(json_label, part.classes)) for _, part in signature.parts if part.classes}
    else:
        classes = list(map(json_label, signature.classes))
    named: dict[str, Any] = {"classes": classes, "quantiles": list(signature.quantiles), **properties}
    return {
        "name": name,
        "versions": [version],
        "platform": f"iris-api_{platform}",
        "inputs": [{"name": each.name, "datatype": input_datatype(each), "shape": [-1, 1]} for each in signature.features],
        "outputs": [{"name": each.name, "datatype": each.datatype, "shape": [-1, each.width]} for each in outputs_of(signature)],
        "properties": {key: orjson.dumps(value).decode() for key, value in named.items() if value},
    }


def input_datatype(feature: Feature) -> str:
    """The datatype of a feature in the metadata; requests may use other datatypes, too."""
    if feature.kind == "boolean":
        return "BOOL"
    takes_numbers = feature.kind == "number" or (feature.date is not None and feature.date.epoch is not None)
    return "FP64" if takes_numbers else BYTES


def index_document(name: str, version: str | None, reason: str | None, body: bytes) -> list[dict[str, str]]:
    """The models in the repository: the served model, or why no model is served. Raises InvalidInput for an invalid body."""
    try:
        asked = msgspec.json.decode(body, type=IndexDocument) if body.strip() else IndexDocument()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInput([Problem("ready", "type", "must be true or false, in a JSON object")]) from None
    if version is None:
        unavailable = {"name": name, "version": "", "state": "UNAVAILABLE", "reason": reason or ""}
        return [] if asked.ready else [unavailable]
    return [{"name": name, "version": version, "state": "READY", "reason": ""}]
