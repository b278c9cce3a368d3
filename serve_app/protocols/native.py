"""The native JSON protocol: one object for a row, `{"instances": [...]}` for many rows."""

from __future__ import annotations

from collections.abc import Callable

from serve_app.artifacts.fields import UnknownFields
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import Signature
from serve_app.protocols import native_schema
from serve_app.protocols.codec import Batch, Buffer, Codec, CodecContext, Headers, Operation
from serve_app.protocols.decode import row_decoder, rows_decoder
from serve_app.protocols.encode import row_encoder, rows_encoder
from serve_app.protocols.limits import least_row_bytes, rows_within
from serve_app.protocols.media_types import ANSWER_TYPES
from serve_app.protocols.table_codec import TableCodec


class NativeRowCodec(Codec):
    """A JSON object with the features of one row; the response is the prediction for this row."""

    protocol = "native"
    single_row = True

    def __init__(self, context: CodecContext) -> None:
        """Compile decoder and encoder for the signature."""
        self._decode = row_decoder(context.signature, unknown=context.unknown, unknown_fields=context.unknown_fields)
        self._encode = row_encoder(context.signature)

    def decode(self, body: Buffer, headers: Headers) -> Batch:
        """One row, shape (1, features). Raises InvalidInput and Malformed."""
        return Batch(self._decode(body))

    def encode(self, batch: Batch, scores: Scores) -> bytes:
        """`{"prediction": …, "confidence": …, "probabilities": {…}}`; the members depend on the signature."""
        return self._encode(scores)

    def rows_in(self, body_bytes: int) -> float:
        """One row, whatever the size of the body."""
        return 1.0

    @classmethod
    def operation(cls, signature: Signature | None, *, max_rows: int, unknown_fields: UnknownFields = "ignore") -> Operation:
        """`Row` and `Prediction` for the signature of the served model."""
        return Operation(
            operation_id="predict",
            summary="Predict one row",
            request="Row",
            response="Prediction",
            schemas={"Row": native_schema.row(signature, unknown_fields), "Prediction": native_schema.prediction(signature)},
        )


class NativeBatchCodec(TableCodec):
    """`{"instances": [row, …]}`; the response is `{"predictions": [prediction, …]}` in the same order.

    Rows and predictions may also be CSV text with a header line, lines of JSON, or Arrow; rows also Parquet, predictions also
    columns of JSON.
    """

    protocol = "native"
    response_types = tuple(ANSWER_TYPES.values())
    writers = tuple(ANSWER_TYPES)

    def json_decoder(self, context: CodecContext) -> Callable[[Buffer], Matrix]:
        """Rows as objects."""
        return rows_decoder(
            context.signature,
            max_rows=context.max_rows,
            max_row_bytes=context.max_row_bytes,
            unknown=context.unknown,
            unknown_fields=context.unknown_fields,
        )

    def json_encoder(self, signature: Signature) -> Callable[[Scores], Buffer]:
        """Predictions as objects."""
        return rows_encoder(signature)

    def least_json_row_bytes(self, signature: Signature) -> int:
        """The size of an object without its optional columns, in bytes."""
        return least_row_bytes(signature)

    @classmethod
    def operation(cls, signature: Signature | None, *, max_rows: int, unknown_fields: UnknownFields = "ignore") -> Operation:
        """`Rows` and `Predictions`; `maxItems` is the limit that the decoder enforces."""
        most_rows = max_rows if signature is None else rows_within(signature, max_rows)
        return Operation(
            operation_id="predictBatch",
            summary="Predict many rows, in their order",
            request="Rows",
            response="Predictions",
            other_responses={ANSWER_TYPES["columns"]: "PredictionColumns"},
            schemas={
                "Row": native_schema.row(signature, unknown_fields),
                "Rows": native_schema.rows(signature, unknown_fields, max_rows=most_rows),
                "Prediction": native_schema.prediction(signature),
                "Predictions": native_schema.predictions(),
                "PredictionColumns": native_schema.prediction_columns(signature),
            },
        )
