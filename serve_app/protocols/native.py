"""The native JSON protocol: one object for a row, `{"instances": [...]}` for many rows."""

from __future__ import annotations

import orjson

from serve_app.artifacts.fields import UnknownFields
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Signature
from serve_app.protocols import native_schema
from serve_app.protocols.codec import Batch, Buffer, Codec, CodecContext, Headers, Operation
from serve_app.protocols.decode import row_decoder, rows_decoder
from serve_app.protocols.encode import row_encoder, rows_encoder
from serve_app.protocols.limits import least_row_bytes, rows_within


class NativeRowCodec(Codec):
    """A JSON object with the features of one row; the response is the prediction of that row."""

    single_row = True

    def __init__(self, context: CodecContext) -> None:
        """Compile decoder and encoder for the signature."""
        self._decode = row_decoder(context.signature, unknown=context.unknown, unknown_fields=context.unknown_fields)
        self._encode = row_encoder(context.signature)

    def decode(self, body: Buffer, headers: Headers) -> Batch:
        """One row, shape (1, features). Raises InvalidInput and Malformed."""
        return Batch(self._decode(body))

    def encode(self, batch: Batch, scores: Scores) -> bytes:
        """`{"prediction": …, "confidence": …, "probabilities": {…}}`; a regression has the prediction alone."""
        return self._encode(scores)

    def rows_in(self, body_bytes: int) -> float:
        """One row, whatever the size of the body."""
        return 1.0

    @classmethod
    def operation(cls, signature: Signature | None, *, max_rows: int, unknown_fields: UnknownFields = "ignore") -> Operation:
        """`Row` and `Prediction`, after the signature of the served model."""
        return Operation(
            operation_id="predict",
            summary="Predict one row",
            request="Row",
            response="Prediction",
            schemas={"Row": native_schema.row(signature, unknown_fields), "Prediction": native_schema.prediction(signature)},
        )


class NativeBatchCodec(Codec):
    """`{"instances": [row, …]}`; the response is `{"predictions": [prediction, …]}` in the same order."""

    single_row = False

    def __init__(self, context: CodecContext) -> None:
        """Compile decoder and encoder for the signature."""
        self._decode = rows_decoder(
            context.signature,
            max_rows=context.max_rows,
            max_row_bytes=context.max_row_bytes,
            unknown=context.unknown,
            unknown_fields=context.unknown_fields,
        )
        self._encode = rows_encoder(context.signature)
        self._row_bytes = len(orjson.dumps(context.signature.example())) + 1  # of a row as JSON, about
        self._least_row_bytes = least_row_bytes(context.signature)

    def decode(self, body: Buffer, headers: Headers) -> Batch:
        """All rows, shape (rows, features). Raises InvalidInput, Malformed, TooManyRows and TooLarge."""
        return Batch(self._decode(body))

    def encode(self, batch: Batch, scores: Scores) -> Buffer:
        """The predictions of all rows, order kept."""
        return self._encode(scores)

    def rows_in(self, body_bytes: int) -> float:
        """Estimated from the size of the signature's example."""
        return body_bytes / self._row_bytes

    def most_rows_in(self, body_bytes: int) -> float:
        """So many rows as short as they can be."""
        return body_bytes / self._least_row_bytes

    @classmethod
    def operation(cls, signature: Signature | None, *, max_rows: int, unknown_fields: UnknownFields = "ignore") -> Operation:
        """`Rows` and `Predictions`; `maxItems` is the limit that the decoder enforces."""
        most_rows = max_rows if signature is None else rows_within(signature, max_rows)
        return Operation(
            operation_id="predictBatch",
            summary="Predict many rows, order kept",
            request="Rows",
            response="Predictions",
            schemas={
                "Row": native_schema.row(signature, unknown_fields),
                "Rows": native_schema.rows(signature, unknown_fields, max_rows=most_rows),
                "Prediction": native_schema.prediction(signature),
                "Predictions": native_schema.predictions(),
            },
        )
