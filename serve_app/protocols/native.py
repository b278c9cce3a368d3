"""The native JSON protocol: one object for a row, `{"instances": [...]}` for many, compiled once for a signature."""

from __future__ import annotations

import orjson

from serve_app.artifacts.fields import Unknown
from serve_app.artifacts.signature import Signature
from serve_app.protocols import decode, encode


class NativeCodec:
    """Decoders and encoders of one signature; they raise InvalidInput. It holds nothing of the model."""

    def __init__(self, signature: Signature, *, max_rows: int, unknown: Unknown) -> None:
        self.decode_row = decode.row_decoder(signature, unknown=unknown)
        self.decode_rows = decode.rows_decoder(signature, max_rows=max_rows, unknown=unknown)
        self.encode_row = encode.row_encoder(signature)
        self.encode_rows = encode.rows_encoder(signature)
        self.row_bytes = len(orjson.dumps(signature.example())) + 1  # of a row as JSON, about
