"""Arrow IPC streams and Parquet files as the matrix of the model, and answers as Arrow IPC streams.

The readers first check the number of rows and the unpacked size that a body declares against the limits of a request; see
`arrow_stream` and `parquet_pages`. They code each value of a dictionary once and never expand a dictionary, because every row may
refer to the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from serve_app.artifacts.fields import MAX_PROBLEMS, Rule
from serve_app.artifacts.matrix import Matrix, Scores, matrix_type
from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import InvalidInput, Malformed, NotFinite, Problem, TooLarge, TooManyRows
from serve_app.protocols.arrow_answers import answer_types, prediction_columns
from serve_app.protocols.arrow_stream import message_size
from serve_app.protocols.codec import Buffer, CodecContext
from serve_app.protocols.encode import not_finite
from serve_app.protocols.json_tables import check_columns
from serve_app.protocols.limits import rows_within
from serve_app.protocols.parquet_pages import DELTA_BYTE_ARRAY, DICTIONARIES, FOOTER_BYTES, footer_bytes, pages, row_groups
from serve_app.tables.arrow_columns import Coded, Coding, accepted_types, coded, plain_type
from serve_app.tables.arrow_texts import is_text

MOST_PIECES = 1000
"""Most record batches and dictionaries of a stream, and most row groups of a file."""
_MOST_PAGES = 10_000
"""Most pages of the columns that are read."""
_FOOTER_ITEMS = 100_000
_DECIMAL_BYTES = 32

Source = Callable[[Buffer], Any]


def arrow_decoder(context: CodecContext) -> Callable[[Buffer], Matrix]:
    """A function from an Arrow IPC stream to a matrix, rows in order. Raises InvalidInput, Malformed, TooManyRows and TooLarge."""
    return _Reader(context, "arrow", _Stream).read


def parquet_decoder(context: CodecContext) -> Callable[[Buffer], Matrix]:
    """The same for a Parquet file."""
    return _Reader(context, "parquet", _File).read


def arrow_encoder(signature: Signature) -> Callable[[Scores], Buffer]:
    """A function from scores to an Arrow IPC stream with the columns of `iris-api score` except `model_version`.

    It raises NotFinite.
    """
    types = answer_types(signature)

    def encode(scores: Scores) -> Buffer:
        if not np.isfinite(scores).all():
            raise NotFinite(not_finite(scores))
        columns = prediction_columns(scores, signature)
        schema = pa.schema([(name, kind) for name, kind in types if name in columns])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema))
        return bytes(sink.getvalue())

    return encode


class _Limits:
    """Counts the rows and the unpacked bytes of one request before they are in memory."""

    def __init__(self, context: CodecContext) -> None:
        self._max_rows = rows_within(context.signature, context.max_rows)
        self._max_bytes = context.max_body_bytes
        self._rows = self._bytes = self._pieces = 0

    def count(self, rows: int, unpacked_bytes: int) -> None:
        """Count one more piece. Raises TooManyRows and TooLarge."""
        self._rows += rows
        self._pieces += 1
        if self._rows > self._max_rows:
            raise TooManyRows([Problem("instances", "too_long", f"must hold at most {self._max_rows} rows")])
        if self._pieces > MOST_PIECES:
            raise TooLarge(
                [Problem("body", "too_long", f"must hold at most {MOST_PIECES} record batches, dictionaries or row groups")]
            )
        self.unpack(unpacked_bytes)

    def unpack(self, unpacked_bytes: int) -> None:
        """Count further bytes. Raises TooLarge."""
        self._bytes += unpacked_bytes
        if self._bytes > self._max_bytes:
            raise TooLarge([Problem("body", "too_long", f"must unpack to at most {self._max_bytes} bytes")])


class _Stream:
    """An Arrow IPC stream in memory."""

    def __init__(self, body: Buffer, limits: _Limits) -> None:
        source = pa.py_buffer(body)
        messages = pa.ipc.MessageReader.open_stream(source)
        for message in _all(messages.read_next_message):
            if message.type not in ("record batch", "dictionary"):
                continue
            rows, unpacked_bytes, is_delta = message_size(message)
            if is_delta:
                raise ValueError("a message extends a dictionary")
            limits.count(0 if message.type == "dictionary" else rows, unpacked_bytes)
        self._reader = pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(use_threads=False))
        self.schema: pa.Schema = self._reader.schema

    def columns(self, names: Sequence[str]) -> pa.Table:
        """These columns of all rows."""
        batches = [batch.select(names) for batch in _all(self._reader.read_next_batch) if batch.num_rows]
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches(batches, schema)


class _File:
    """A Parquet file in memory."""

    def __init__(self, body: Buffer, limits: _Limits) -> None:
        self._body = body
        self._limits = limits
        if footer_bytes(body) > FOOTER_BYTES:
            raise TooLarge([Problem("body", "too_long", f"must have a footer of at most {FOOTER_BYTES} bytes")])
        self._groups = row_groups(body)
        for group in self._groups:
            limits.count(group.rows, 0)
        self._file = self._open()
        self.schema: pa.Schema = self._file.schema_arrow

    def columns(self, names: Sequence[str]) -> pa.Table:
        """These columns of all rows."""
        schema, wanted = self._file.schema, frozenset(names)
        for column in map(schema.column, range(len(schema))):
            if column.path in wanted:
                is_texts = is_text(plain_type(self.schema.field(column.path).type))
                if (column.physical_type == "BYTE_ARRAY") != is_texts or column.length > _DECIMAL_BYTES:
                    raise InvalidInput([Problem(column.path, "type", f"must not be a column of {column.physical_type}")])
        encoded = self._check_pages(wanted)
        texts = [name for name in encoded if is_text(plain_type(self.schema.field(name).type))]
        groups = [at for at, group in enumerate(self._groups) if group.rows]
        return self._open(texts).read_row_groups(groups, columns=list(names), use_threads=False)

    def _open(self, texts: Sequence[str] = ()) -> parquet.ParquetFile:
        """The open file; it reads the columns `texts` as dictionaries."""
        return parquet.ParquetFile(
            pa.BufferReader(pa.py_buffer(self._body)),
            read_dictionary=list(texts),
            pre_buffer=False,
            thrift_string_size_limit=FOOTER_BYTES,
            thrift_container_size_limit=_FOOTER_ITEMS,
            arrow_extensions_enabled=False,
        )

    def _check_pages(self, wanted: frozenset[str]) -> set[str]:
        """Count the unpacked bytes of the pages of these columns; return the columns with dictionaries."""
        left, encoded = _MOST_PAGES, set[str]()
        for chunk in (chunk for group in self._groups if group.rows for chunk in group.chunks if chunk.path in wanted):
            for page in pages(self._body, chunk):
                left -= 1
                if left < 0:
                    raise TooLarge([Problem("body", "too_long", f"must hold at most {_MOST_PAGES} pages")])
                if DELTA_BYTE_ARRAY in page.encodings:
                    raise InvalidInput([Problem("body", "encoding", "must not hold columns in the encoding DELTA_BYTE_ARRAY")])
                if not DICTIONARIES.isdisjoint(page.encodings):
                    encoded.add(chunk.path)
                self._limits.unpack(page.unpacked_bytes)
        return encoded


class _Reader:
    """Reads the tables of one signature."""

    def __init__(self, context: CodecContext, form: str, opener: Callable[[Buffer, _Limits], _Stream | _File]) -> None:
        self._context = context
        self._signature = context.signature
        self._coding = Coding(context.signature, context.unknown)
        self._open = opener
        kind = {"arrow": "Arrow IPC stream", "parquet": "Parquet file"}[form]
        self._malformed = Problem("body", form, f"must be a complete and valid {kind}")

    def read(self, body: Buffer) -> Matrix:
        """The matrix of a body."""
        try:
            opened = self._open(body, _Limits(self._context))
            names = self._names(opened.schema)
            table = opened.columns(names)
            table.validate(full=True)
        except (InvalidInput, MemoryError):
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, RecursionError):
            raise Malformed([self._malformed]) from None
        if not table.num_rows:
            raise InvalidInput([Problem("instances", "too_short", "must hold at least one row")])
        return self._matrix(table)

    def _names(self, schema: pa.Schema) -> list[str]:
        """The columns to read. Raises InvalidInput for names or types that do not fit."""
        check_columns(self._signature, schema.names, "schema", self._context.unknown_fields)
        features = [feature for feature in self._signature.features if feature.name in schema.names]
        problems = []
        for feature in features:
            takes = accepted_types(feature, plain_type(schema.field(feature.name).type))
            if takes is not None:
                problems.append(Problem(feature.name, "type", f"must be a column of {takes}"))
        if problems:
            raise InvalidInput(problems[:MAX_PROBLEMS])
        return [feature.name for feature in features]

    def _matrix(self, table: pa.Table) -> Matrix:
        signature = self._signature
        matrix: Matrix = np.empty((table.num_rows, len(signature.features)), matrix_type(has_texts=signature.has_texts))
        wrong: list[tuple[int, int, Rule]] = []
        for at, feature in enumerate(signature.features):
            if feature.name not in table.column_names:
                matrix[:, at] = math.nan
                continue
            values, rules = _coded(feature, table.column(feature.name), self._coding)
            matrix[:, at] = values
            wrong += [(row, at, rules[row]) for row in sorted(rules)[:MAX_PROBLEMS]]
        if wrong:
            names = signature.names
            first = sorted(wrong, key=lambda each: each[:2])[:MAX_PROBLEMS]
            raise InvalidInput([Problem(f"instances[{row}].{names[at]}", *rule) for row, at, rule in first])
        return matrix


def _coded(feature: Feature, column: pa.ChunkedArray, coding: Coding) -> Coded:
    """The values of a column in the matrix, and the rules that its rows break; each value of a dictionary is read once."""
    if not pa.types.is_dictionary(column.type):
        text = is_text(column.type) and column.type != pa.string()
        return coded(feature, column.cast(pa.string()) if text else column, coding)
    pieces, wrong, first = [], dict[int, Rule](), 0
    for chunk in column.chunks:
        dictionary = pa.chunked_array([chunk.dictionary])
        nothing = pa.nulls(1, dictionary.type)  # the value of a row that is null
        values, rules = _coded(feature, pa.chunked_array([*dictionary.chunks, nothing]), coding)
        indexes = chunk.indices.cast(pa.int64()).fill_null(len(chunk.dictionary)).to_numpy(zero_copy_only=False)
        pieces.append(values[indexes])
        if rules:
            broken = np.flatnonzero(np.isin(indexes, list(rules))).tolist()
            wrong |= {first + row: rules[int(indexes[row])] for row in broken[:MAX_PROBLEMS]}
        first += len(chunk)
    return np.concatenate(pieces), wrong


def _all(read: Callable[[], Any]) -> Iterator[Any]:
    """The results of `read` until it raises StopIteration."""
    while True:
        try:
            yield read()
        except StopIteration:
            return
