"""The table of routes: which codec answers which path. A further protocol is one line here."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.protocols.codec import Codec
from serve_app.protocols.native import NativeBatchCodec, NativeRowCodec

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
