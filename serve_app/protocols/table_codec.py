"""The base of the codecs of tables. `Content-Type` and `Accept` select the format of the request and of the response.

The first request or response that needs pyarrow imports it, in the thread that answers. The import takes tenths of a second.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import orjson

from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import Signature
from serve_app.protocols.codec import Batch, Buffer, Codec, CodecContext, Headers
from serve_app.protocols.columns_encoder import columns_encoder
from serve_app.protocols.csv_rows import csv_decoder
from serve_app.protocols.limits import least_list_bytes, least_row_bytes
from serve_app.protocols.media_types import (
    ANSWER_TYPES,
    ARROW_TYPES,
    MEDIA_TYPES,
    TABLE_ANSWERS,
    AnswerFormat,
    Format,
    answer_format,
    format_of,
    missing_extra,
)
from serve_app.protocols.ndjson_rows import LineDecoder, LineReader
from serve_app.protocols.table_answers import csv_encoder, lines_encoder

_NUMBER_BYTES = 8
"""The size of a number in Arrow and Parquet."""


class TableCodec(Codec):
    """Many rows in the JSON of one protocol or in another table format. The class itself reads and writes JSON."""

    single_row = False
    media_types: ClassVar[tuple[str, ...]] = tuple(MEDIA_TYPES.values())
    response_types: ClassVar[tuple[str, ...]] = tuple(ANSWER_TYPES[form] for form in TABLE_ANSWERS)
    writers: ClassVar[tuple[AnswerFormat, ...]] = TABLE_ANSWERS
    """The formats of `response_types`."""
    reader: ClassVar[Format] = "json"
    writer: ClassVar[AnswerFormat] = "json"
    takes_lists: ClassVar[bool] = False
    """Whether rows without names are allowed: CSV text without a header, and lists in lines of JSON."""

    def __init__(self, context: CodecContext) -> None:
        """Compile decoder and encoder for the signature."""
        self._decode: Callable[[Buffer], Matrix]
        signature, example = context.signature, context.signature.example()
        self._least_row_bytes, row = least_list_bytes(signature), orjson.dumps(list(example.values()))
        if self.reader == "csv":
            self._decode_csv = csv_decoder(context, without_header=self.takes_lists)
        elif self.reader == "ndjson":
            self._lines = LineDecoder(context, lists=self.takes_lists)
            self._decode = self._lines.decode
            if not self.takes_lists:
                self._least_row_bytes, row = least_row_bytes(signature), orjson.dumps(example)
        elif self.reader == "json":
            self._decode = self.json_decoder(context)
            self._least_row_bytes, row = self.least_json_row_bytes(signature), orjson.dumps(example)
        else:
            self._decode = _imported(_arrow_decoder if self.reader == "arrow" else _parquet_decoder, context)
            row = bytes(_NUMBER_BYTES * len(signature.features))
        self._row_bytes = len(row) + 1  # an estimate
        self._needs_thread = self.reader in ARROW_TYPES or self.writer in ARROW_TYPES
        if self.writer == "csv":
            self._encode = csv_encoder(signature)
        elif self.writer == "columns":
            self._encode = columns_encoder(signature)
        elif self.writer == "arrow":
            self._encode = _imported(_arrow_encoder, signature)
        else:
            self._encode = lines_encoder(signature) if self.writer == "ndjson" else self.json_encoder(signature)

    @abstractmethod
    def json_decoder(self, context: CodecContext) -> Callable[[Buffer], Matrix]:
        """A function from the JSON of this protocol to the matrix."""

    @abstractmethod
    def json_encoder(self, signature: Signature) -> Callable[[Scores], Buffer]:
        """A function from scores to the JSON of this protocol."""

    def least_json_row_bytes(self, signature: Signature) -> int:
        """The smallest size of one row in the JSON of this protocol, in bytes."""
        return least_list_bytes(signature)

    def decode(self, body: Buffer, headers: Headers) -> Batch:
        """All rows, shape (rows, features). Raises InvalidInput, Malformed, TooManyRows and TooLarge."""
        if self.reader == "csv":
            media_type = format_of(dict(headers)[b"content-type"])
            return Batch(self._decode_csv(body, None if media_type is None else media_type.header))
        return Batch(self._decode(body))

    def encode(self, batch: Batch, scores: Scores) -> Buffer:
        """The predictions of all rows in their order."""
        return self._encode(scores)

    def open(self) -> LineReader:
        """A reader of lines of JSON."""
        return self._lines.open()

    def rows_in(self, body_bytes: int) -> float:
        """An estimate from the size of the signature's example."""
        return body_bytes / self._row_bytes

    def most_rows_in(self, body_bytes: int) -> float:
        """The number of the shortest possible rows; infinity for formats whose size does not limit the number of rows."""
        return math.inf if self._needs_thread else body_bytes / self._least_row_bytes

    @classmethod
    def accepts(cls, content_type: bytes) -> bool:
        """Whether the content type names one of the formats."""
        return super().accepts(content_type) or (len(cls.media_types) > 1 and format_of(content_type) is not None)

    @classmethod
    def body_format(cls, headers: Mapping[bytes, bytes]) -> str:
        """The format that the content type names; JSON without a content type."""
        content_type = headers.get(b"content-type")
        if content_type is None:
            return "json"
        media_type = format_of(content_type)
        return "unknown" if media_type is None else media_type.form

    @classmethod
    def missing_extra(cls, content_type: bytes) -> str:
        """The missing extra that reads this content type."""
        return missing_extra(content_type) if len(cls.media_types) > 1 else ""

    @classmethod
    def variant(cls, content_type: bytes | None, accept: bytes | None) -> type[Codec] | None:
        """The codec that reads and writes the formats in the headers; None when `accept` names no supported format."""
        media_type = None if content_type is None else format_of(content_type)
        reader: Format = "json" if media_type is None else media_type.form
        writer: AnswerFormat | None = "json" if accept is None else answer_format(accept, cls.writers)
        if reader == "json" == writer:
            return cls
        return None if writer is None else _variant(cls, reader, writer)


Argument = TypeVar("Argument")
Result = TypeVar("Result")


def _imported(make: Callable[[Argument], Callable[[Any], Result]], argument: Argument) -> Callable[[Any], Result]:
    """A function that is created by its first call."""
    made: list[Callable[[Any], Result]] = []

    def call(value: Any) -> Result:
        if not made:
            made.append(make(argument))
        return made[0](value)

    return call


def _arrow_decoder(context: CodecContext) -> Callable[[Buffer], Matrix]:
    from serve_app.protocols.arrow_tables import arrow_decoder

    return arrow_decoder(context)


def _parquet_decoder(context: CodecContext) -> Callable[[Buffer], Matrix]:
    from serve_app.protocols.arrow_tables import parquet_decoder

    return parquet_decoder(context)


def _arrow_encoder(signature: Signature) -> Callable[[Scores], Buffer]:
    from serve_app.protocols.arrow_tables import arrow_encoder

    return arrow_encoder(signature)


@lru_cache(maxsize=64)
def _variant(codec: type[TableCodec], reader: Format, writer: AnswerFormat) -> type[TableCodec]:
    """The codec of the same protocol for other formats. Each pair of formats has one class, which is prepared once for a model."""
    members = {
        "reader": reader,
        "writer": writer,
        "content_type": ANSWER_TYPES[writer].encode(),
        "streams": reader == "ndjson" == writer,
    }
    return type(f"{codec.__name__}From{reader.title()}To{writer.title()}", (codec,), members)
