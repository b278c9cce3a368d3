"""The table of routes: the codec of each path. A new protocol is one line here."""

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
"""The paths of the native protocol that take predictions, by POST only."""

OWN_PATHS = frozenset({*PREDICTION_ROUTES, INVOCATIONS})
"""Prediction paths that no setting may assign to another protocol."""

OPEN_INFERENCE = "/v2"
"""All responses below this path are those of the Open Inference Protocol, including errors."""

MODEL_ROUTES: Mapping[str, type[Codec]] = {
    f"{OPEN_INFERENCE}/models/{{model}}/infer": OpenInferenceCodec,
    f"{OPEN_INFERENCE}/models/{{model}}/versions/{{version}}/infer": OpenInferenceCodec,
}
"""Prediction paths that name the model and optionally a version. The OpenAPI document contains only the native protocol."""

_PAGES: Mapping[str, ProtocolName] = {
    OPEN_INFERENCE: "open_inference",
    "/v1/models": "kserve_v1",
    "/ping": "mlflow",
    "/version": "mlflow",
}


def problem_codec(path: str) -> type[Codec]:
    """The codec that writes the errors of a path outside the prediction routes."""
    is_open_inference = path == OPEN_INFERENCE or path.startswith(f"{OPEN_INFERENCE}/")
    return OpenInferenceCodec if is_open_inference else NativeRowCodec


def protocol_of(route: str) -> ProtocolName:
    """The protocol under which requests of a route of the app are counted, such as health, metadata, or another model."""
    for below, protocol in _PAGES.items():
        if route == below or route.startswith(f"{below}/"):
            return protocol
    return "native"
