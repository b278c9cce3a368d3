"""The table of routes: which codec answers which path. A further protocol is one line here."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.protocols.codec import Codec, ProtocolName
from serve_app.protocols.native import NativeBatchCodec, NativeRowCodec
from serve_app.protocols.oip import OpenInferenceCodec

PREDICT = "/predict"
PREDICT_BATCH = "/predict/batch"
INVOCATIONS = "/invocations"

PREDICTION_ROUTES: Mapping[str, type[Codec]] = {
    PREDICT: NativeRowCodec,
    PREDICT_BATCH: NativeBatchCodec,
}
"""Every path that takes predictions, by POST only."""

OWN_PATHS = frozenset({*PREDICTION_ROUTES, INVOCATIONS})
"""Paths of predictions that no setting may give another protocol."""

OPEN_INFERENCE = "/v2"
"""Below it all responses are those of the Open Inference Protocol, errors too."""

MODEL_ROUTES: Mapping[str, type[Codec]] = {
    f"{OPEN_INFERENCE}/models/{{model}}/infer": OpenInferenceCodec,
    f"{OPEN_INFERENCE}/models/{{model}}/versions/{{version}}/infer": OpenInferenceCodec,
}
"""The same for paths that name the model, and perhaps a version of it. The OpenAPI document has the native protocol alone."""

_PAGES: Mapping[str, ProtocolName] = {
    OPEN_INFERENCE: "open_inference",
    "/v1/models": "kserve_v1",
    "/ping": "mlflow",
    "/version": "mlflow",
}


def problem_codec(path: str) -> type[Codec]:
    """The codec that writes the errors of any path."""
    is_open_inference = path == OPEN_INFERENCE or path.startswith(f"{OPEN_INFERENCE}/")
    return OpenInferenceCodec if is_open_inference else NativeRowCodec


def protocol_of(route: str) -> ProtocolName:
    """The protocol under which requests of a route of the app are counted: health, metadata, and requests for another model."""
    for below, protocol in _PAGES.items():
        if route == below or route.startswith(f"{below}/"):
            return protocol
    return "native"
