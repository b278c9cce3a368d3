"""Responses of the native protocol, computed without a server."""

from __future__ import annotations

from serve_app.artifacts.fields import Unknown
from serve_app.inference.predictor import Predictor
from serve_app.protocols.codec import Buffer, CodecContext
from serve_app.protocols.native import NativeBatchCodec, NativeRowCodec
from tests.support.apps import DEFAULTS


def context_of(
    predictor: Predictor, *, max_rows: int = DEFAULTS.iris_max_rows, unknown: Unknown = DEFAULTS.iris_unknown_category
) -> CodecContext:
    return CodecContext(
        signature=predictor.signature,
        model_name=DEFAULTS.iris_model_name,
        model_version=predictor.version,
        max_rows=max_rows,
        max_row_bytes=DEFAULTS.iris_max_row_bytes,
        max_body_bytes=16 * 1024 * 1024,
        unknown=unknown,
        unknown_fields="ignore",
    )


def answer_row(predictor: Predictor, body: Buffer, *, unknown: Unknown = DEFAULTS.iris_unknown_category) -> bytes:
    """The body of the response to one row."""
    codec = NativeRowCodec(context_of(predictor, unknown=unknown))
    batch = codec.decode(body, ())
    return codec.encode(batch, predictor.row_scores(batch.matrix))


def answer_rows(predictor: Predictor, body: Buffer, *, max_rows: int = DEFAULTS.iris_max_rows) -> Buffer:
    """The body of the response to many rows."""
    codec = NativeBatchCodec(context_of(predictor, max_rows=max_rows))
    batch = codec.decode(body, ())
    return codec.encode(batch, predictor.scores(batch.matrix))
