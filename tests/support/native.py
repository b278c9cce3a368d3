"""Responses of the native protocol, computed without a server."""

from __future__ import annotations

from serve_app.artifacts.fields import Unknown
from serve_app.inference.predictor import Predictor
from serve_app.protocols.decode import Buffer
from serve_app.protocols.native import NativeCodec


def codec_of(predictor: Predictor, *, max_rows: int = 100_000, unknown: Unknown = "refuse") -> NativeCodec:
    return NativeCodec(predictor.signature, max_rows=max_rows, unknown=unknown)


def answer_row(predictor: Predictor, body: Buffer, *, unknown: Unknown = "refuse") -> bytes:
    """The body of the response to one row."""
    codec = codec_of(predictor, unknown=unknown)
    return codec.encode_row(predictor.row_scores(codec.decode_row(body)))


def answer_rows(predictor: Predictor, body: Buffer, *, max_rows: int = 100_000) -> Buffer:
    """The body of the response to many rows."""
    codec = codec_of(predictor, max_rows=max_rows)
    return codec.encode_rows(predictor.scores(codec.decode_rows(body)))
