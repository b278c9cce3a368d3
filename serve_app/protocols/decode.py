"""From the bytes of a request to a matrix, compiled once for a signature.

A body is decoded at most twice. First msgspec decodes it, in a microsecond for a row. When msgspec refuses it, a slower reader
reads it again to find which field breaks which rule, or to accept numbers that legacy clients send as strings. Both readers produce
the same matrix. Both read a large body in pieces and stop at the first row above the limit.
"""

from __future__ import annotations

import contextlib
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np

from serve_app.artifacts.dates import InvalidDate, parser
from serve_app.artifacts.fields import MAX_PROBLEMS, Unknown, UnknownFields, read_row
from serve_app.artifacts.matrix import Matrix, Value, matrix_type
from serve_app.artifacts.signature import UNSEEN, Feature, Signature, missing_numbers
from serve_app.errors import InvalidInput, Malformed, Problem, TooLarge, TooManyRows
from serve_app.protocols.codec import Buffer
from serve_app.protocols.json_reader import JsonReader, load_object
from serve_app.protocols.limits import rows_within

Values = Any
"""The values of all rows in one sequence: an array of float64, or a list when some values are texts."""

PIECE_BYTES = 128 * 1024
"""A larger batch is read in pieces of so many bytes, because all other requests wait while one call runs."""
ROW_BYTES = 64 * 1024
"""A larger row is parsed field by field, for the same reason."""


def row_decoder(signature: Signature, *, unknown: Unknown, unknown_fields: UnknownFields = "ignore") -> Callable[[Buffer], Matrix]:
    """A function from a JSON object to a matrix of one row; it raises InvalidInput."""
    decode = _decoder(signature, unknown_fields)
    vector = _vector(signature, unknown)
    astuple = msgspec.structs.astuple
    dtype = matrix_type(has_texts=signature.has_texts)

    def decode_row(body: Buffer) -> Matrix:
        try:
            values = astuple(decode(body))
            return np.array((values if vector is None else vector(values),), dtype)
        except _NOT_FAST:
            document = _load_row(body)
        problems: list[Problem] = []
        read = read_row(signature, document, "", problems, unknown, unknown_fields)
        if problems:
            raise InvalidInput(problems[:MAX_PROBLEMS])
        return np.array((read,), dtype)

    return decode_row


def rows_decoder(
    signature: Signature, *, max_rows: int, max_row_bytes: int, unknown: Unknown, unknown_fields: UnknownFields = "ignore"
) -> Callable[[Buffer], Matrix]:
    """A function from `{"instances": [row, ...]}` to a matrix, rows in order. Raises InvalidInput, TooManyRows and TooLarge.

    It reads at most `rows_within` rows. The slow reader refuses a row of more than `max_row_bytes`, and a body with more than
    `max_row_bytes` outside its rows.
    """
    decode = _decoder(signature, unknown_fields, many=True)
    decode_whole = _decoder(signature, unknown_fields, many=True, whole=True)
    vector = _vector(signature, unknown)
    astuple = msgspec.structs.astuple
    width, dtype = len(signature.features), matrix_type(has_texts=signature.has_texts)
    max_rows = rows_within(signature, max_rows)

    def vectors(rows: list[Any]) -> Matrix:
        values = map(astuple, rows) if vector is None else (vector(astuple(row)) for row in rows)
        return np.fromiter(chain.from_iterable(values), dtype, len(rows) * width).reshape(len(rows), width)

    def in_pieces(body: Buffer, careful: BatchReader) -> Matrix:
        matrices = []
        for piece in _pieces(body, max_row_bytes):
            try:
                rows = decode(piece)
                careful.check_count(len(rows))
                matrices.append(vectors(rows))
                careful.count += len(rows)
            except _NOT_FAST:
                matrices.append(careful.read_piece(piece))
        careful.check()
        if not matrices:
            raise NotFastPath
        return np.concatenate(matrices)

    def reader() -> BatchReader:
        return BatchReader(
            signature, max_rows=max_rows, max_row_bytes=max_row_bytes, unknown=unknown, unknown_fields=unknown_fields
        )

    def decode_rows(body: Buffer) -> Matrix:
        with contextlib.suppress(*_NOT_FAST):
            if len(body) > PIECE_BYTES:
                return in_pieces(body, reader())
            rows = decode_whole(body).instances
            _check_count(len(rows), max_rows)
            return vectors(rows)
        return reader().read(body)

    return decode_rows


def list_decoder(
    signature: Signature, *, unknown: Unknown, unknown_fields: UnknownFields = "ignore", columns: Sequence[str] | None = None
) -> Callable[[Buffer], Matrix]:
    """A function from a JSON list of rows, small enough for one call, to a matrix. Raises NotFastPath for the slow reader.

    A row is an object. With `columns`, a row is a list of the values of these columns; not all of them need be features.
    """
    vector = _vector(signature, unknown)
    width, dtype = len(signature.features), matrix_type(has_texts=signature.has_texts)
    decode = _decoder(signature, unknown_fields, many=True) if columns is None else _tuples(signature, columns)
    values_of = msgspec.structs.astuple if columns is None else _in_order(signature, columns)

    def decode_list(body: Buffer) -> Matrix:
        try:
            rows = decode(body)
            values = map(values_of, rows) if vector is None else (vector(values_of(row)) for row in rows)
            return np.fromiter(chain.from_iterable(values), dtype, len(rows) * width).reshape(len(rows), width)
        except _NOT_FAST:
            raise NotFastPath from None

    return decode_list


def lines_decoder(
    signature: Signature, *, unknown: Unknown, unknown_fields: UnknownFields = "ignore", columns: Sequence[str] | None = None
) -> Callable[[Sequence[Buffer]], Matrix]:
    """The same for rows that are separate JSON documents."""
    vector = _vector(signature, unknown)
    width, dtype = len(signature.features), matrix_type(has_texts=signature.has_texts)
    decode = _decoder(signature, unknown_fields) if columns is None else _tuples(signature, columns, many=False)
    values_of = msgspec.structs.astuple if columns is None else _in_order(signature, columns)

    def decode_lines(lines: Sequence[Buffer]) -> Matrix:
        try:
            rows = (values_of(decode(line)) for line in lines)
            values = rows if vector is None else map(vector, rows)
            return np.fromiter(chain.from_iterable(values), dtype, len(lines) * width).reshape(len(lines), width)
        except _NOT_FAST:
            raise NotFastPath from None

    return decode_lines


def column_decoder(feature: Feature, signature: Signature, unknown: Unknown) -> Callable[[Buffer], Iterable[Value]]:
    """The same for a JSON list of the values of one feature."""
    decode = msgspec.json.Decoder(list[_value_type(feature)]).decode  # type: ignore[misc]
    code = column_reader(feature, unknown, signature.missing_texts)
    is_plain = feature.kind == "number" and not feature.nullable

    def decode_column(body: Buffer) -> Iterable[Value]:
        try:
            values: list[Any] = decode(body)
            return values if is_plain else [code(value) for value in values]
        except _NOT_FAST:
            raise NotFastPath from None

    return decode_column


class BatchReader:
    """Reads the rows of one batch value by value. It accepts numbers as strings and finds the fields that break a rule.

    `count` is the number of rows that this reader or its caller has read.
    """

    def __init__(
        self, signature: Signature, *, max_rows: int, max_row_bytes: int, unknown: Unknown, unknown_fields: UnknownFields
    ) -> None:
        self._signature = signature
        self._max_rows = max_rows
        self._max_row_bytes = max_row_bytes
        self._unknown = unknown
        self._unknown_fields = unknown_fields
        self._has_texts = signature.has_texts
        self.count = 0
        self._problems: list[Problem] = []

    def check_count(self, further: int) -> None:
        """Raise TooManyRows when so many further rows exceed the limit."""
        if self.count + further > self._max_rows:
            _check_count(self.count + further, self._max_rows)

    def check(self) -> None:
        """Raise InvalidInput when a row that was read broke a rule."""
        if self._problems:
            raise InvalidInput(self._problems[:MAX_PROBLEMS])

    def read_piece(self, piece: bytes) -> Matrix:
        """The matrix of a list of rows that follows the rows counted so far; `check` raises the problems of their values.

        Raises NotFastPath when the piece is not a list, TooManyRows, and InvalidInput after MAX_PROBLEMS problems.
        """
        reader = JsonReader(piece, self._max_row_bytes)
        try:
            values = self._rows(reader, self.count)
            reader.end()
        except (Malformed, TooLarge):
            raise NotFastPath from None
        return self._matrix(values)

    def read(self, body: Buffer) -> Matrix:
        """The matrix of `{"instances": [row, ...]}`. Raises InvalidInput, Malformed, TooManyRows and TooLarge."""
        reader = JsonReader(body, self._max_row_bytes)
        values: Values | None = None
        other_members = False
        beside = start = 0  # characters outside the rows
        for name in reader.members():
            beside += reader.offset - start
            start = reader.offset
            if name == "instances":
                values = self._instances(reader)  # the last of two equal names counts
                start = reader.offset
            else:
                reader.value()
                other_members = True
            if beside + reader.offset - start > self._max_row_bytes:
                raise TooLarge([Problem("body", "too_long", f"must hold at most {self._max_row_bytes} bytes outside its rows")])
        reader.end()
        if values is None:
            self._problems.append(Problem("instances", "missing", "this field is required"))
        if other_members and self._unknown_fields == "refuse":
            self._problems.append(Problem("body", "unknown_field", "must hold only the field instances"))
        self.check()
        assert values is not None
        matrix = self._matrix(values)
        _check_count(len(matrix), self._max_rows)
        return matrix

    def _instances(self, reader: JsonReader) -> Values:
        self._problems = []
        if reader.peek() == "[":
            return self._rows(reader, 0)
        reader.value()
        self._problems.append(Problem("instances", "type", "must be a list of objects"))
        return self._no_values()

    def _rows(self, reader: JsonReader, first: int) -> Values:
        values = self._no_values()
        for index, row in enumerate(reader.items(), first):
            self.check_count(1)
            self.count += 1
            prefix = f"instances[{index}]."
            values.extend(read_row(self._signature, row, prefix, self._problems, self._unknown, self._unknown_fields))
            if len(self._problems) >= MAX_PROBLEMS:
                self.check()
        return values

    def _no_values(self) -> Values:
        return [] if self._has_texts else array("d")

    def _matrix(self, values: Values) -> Matrix:
        width = len(self._signature.features)
        if self._problems or not values:
            return np.empty((0, width), matrix_type(has_texts=self._has_texts))
        flat = np.frombuffer(values, np.float64) if isinstance(values, array) else np.array(values, object)
        return flat.reshape(-1, width)


class NotFastPath(Exception):
    """The typed decoder cannot decide about a value; the slow reader must read it."""


_NOT_FAST = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, NotFastPath)


_HEAD = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"instances"[ \t\r\n]*:[ \t\r\n]*\[')
_TAIL = re.compile(rb"\][ \t\r\n]*\}[ \t\r\n]*\Z")
_EDGE_BYTES = 1024
_BETWEEN = re.compile(rb"\}[ \t\r\n]*,(?=[ \t\r\n]*\{)")


def _pieces(body: Buffer, max_row_bytes: int) -> Iterator[bytes]:
    """The rows of `{"instances": [...]}` as lists of about PIECE_BYTES; raises NotFastPath for any other form.

    A cut is where one row seems to end and the next to begin. It may be inside a string or a row. Then the piece before it is not a
    JSON list of rows, the decoder refuses the piece, and the body is read whole.
    """
    head, tail = _HEAD.match(body, 0, _EDGE_BYTES), _TAIL.search(body, max(0, len(body) - _EDGE_BYTES))
    if head is None or tail is None:
        raise NotFastPath
    start, end = head.end(), tail.start()
    view = memoryview(body)
    while start < end:
        furthest = min(end, start + PIECE_BYTES + max_row_bytes)
        cut = _BETWEEN.search(body, start + PIECE_BYTES, furthest)
        if cut is None and furthest < end:
            raise NotFastPath  # a row is too large, or there is no row
        stop = end if cut is None else cut.start() + 1
        yield b"".join((b"[", view[start:stop], b"]"))
        start = end if cut is None else cut.end()


def _decoder(
    signature: Signature, unknown_fields: UnknownFields, *, many: bool = False, whole: bool = False
) -> Callable[[Buffer], Any]:
    forbid = unknown_fields == "refuse"
    try:
        row = _row_type(signature, forbid_unknown_fields=forbid)
    except ValueError:  # msgspec does not support field names with quotes, backslashes or control characters
        return _leave_it
    kind: Any = list[row] if many else row  # type: ignore[valid-type]
    if whole:
        kind = msgspec.defstruct("Batch", [("instances", kind)], gc=False, forbid_unknown_fields=forbid)
    return msgspec.json.Decoder(kind).decode


def _tuples(signature: Signature, columns: Sequence[str], *, many: bool = True) -> Callable[[Buffer], Any]:
    """A decoder of a list of the values of `columns`, or of `many` such lists."""
    by_name = {feature.name: feature for feature in signature.features}
    kinds = tuple(_value_type(by_name[name]) if name in by_name else msgspec.Raw for name in columns)
    kind: Any = tuple[kinds]  # type: ignore[valid-type]
    return msgspec.json.Decoder(list[kind] if many else kind).decode


def _in_order(signature: Signature, columns: Sequence[str]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """A function from the values of `columns` to the values of the features; a feature without a column is null."""
    if tuple(columns) == signature.names:
        return tuple
    positions = [columns.index(name) if name in columns else None for name in signature.names]

    def values_of(row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple([None if position is None else row[position] for position in positions])

    return values_of


def _leave_it(_: Buffer) -> Any:
    raise NotFastPath


_TYPES: Any = {"number": float, "boolean": bool, "category": str, "date": str, "text": str}


def _row_type(signature: Signature, *, forbid_unknown_fields: bool) -> type[msgspec.Struct]:
    fields: list[Any] = []
    rename = {}
    for position, feature in enumerate(signature.features):
        name = f"f{position}"  # a column's name need not be an identifier
        rename[name] = feature.name
        kind = _value_type(feature)
        fields.append((name, kind, None) if feature.nullable else (name, kind))
    in_order = sorted(fields, key=len) == fields  # optional fields come last
    return msgspec.defstruct(
        "Row", fields, rename=rename, kw_only=not in_order, gc=False, forbid_unknown_fields=forbid_unknown_fields
    )


def _value_type(feature: Feature) -> Any:
    """The type of a value in JSON. A value of this type is valid unless `column_reader` raises NotFastPath for it."""
    kind: Any = _TYPES[feature.kind] if feature.date is None or feature.date.epoch is None else float
    if feature.kind == "number":
        minimum, maximum = feature.bounds
        kind = Annotated[kind, msgspec.Meta(ge=minimum, le=maximum)]
    elif feature.kind == "text":
        kind = Annotated[kind, msgspec.Meta(max_length=feature.longest)]
    return kind | None if feature.nullable else kind


def _vector(signature: Signature, unknown: Unknown) -> Callable[[tuple[Any, ...]], Sequence[Value]] | None:
    """A function from the JSON values of a row to its values in the matrix; None when all JSON values are numbers already."""
    if all(feature.kind == "number" and not feature.nullable for feature in signature.features):
        return None
    columns = [column_reader(feature, unknown, signature.missing_texts) for feature in signature.features]

    def vector(values: tuple[Any, ...]) -> list[Value]:
        return [column(value) for column, value in zip(columns, values, strict=True)]

    def vector_of_gaps(values: tuple[Any, ...]) -> list[Value]:
        if values.count(None) == len(columns):
            raise NotFastPath  # the typed decoder does not distinguish null from a missing field
        return vector(values)

    return vector_of_gaps if all(feature.nullable for feature in signature.features) else vector


def column_reader(feature: Feature, unknown: Unknown, missing: tuple[str, ...]) -> Callable[[Any], Value]:
    """A function from a JSON value of the type of this feature to its value in the matrix; raises NotFastPath."""
    if feature.kind == "number" and feature.nullable and (gaps := missing_numbers(missing)):
        return lambda value: math.nan if value is None or value in gaps else float(value)
    if feature.date is not None:
        return _date(parser(feature.date), missing_numbers(missing) if feature.nullable else frozenset())
    if feature.kind == "text":
        texts = frozenset(missing) if feature.nullable else frozenset()
        return lambda value: math.nan if value is None or value in texts else value
    if feature.kind != "category":
        return lambda value: math.nan if value is None else float(value)
    codes = {name: float(code) for code, name in enumerate(feature.categories)}

    def code(value: str | None) -> float:
        if value is None:
            return math.nan
        position = codes.get(value)
        if position is None:
            if unknown == "refuse" or (feature.nullable and value in missing):
                raise NotFastPath
            return UNSEEN
        return position

    return code


def _date(parse: Callable[[Any], float], gaps: frozenset[float]) -> Callable[[Any], float]:
    def code(value: Any) -> float:
        if value is None or value in gaps:
            return math.nan
        try:
            return parse(value)
        except InvalidDate:
            raise NotFastPath from None

    return code


def _check_count(count: int, max_rows: int) -> None:
    if count == 0:
        raise InvalidInput([Problem("instances", "too_short", "must hold at least one row")])
    if count > max_rows:
        raise TooManyRows([Problem("instances", "too_long", f"must hold at most {max_rows} rows")])


def _load_row(body: Buffer) -> dict[str, Any]:
    if len(body) <= ROW_BYTES:
        return load_object(body)
    reader = JsonReader(body, ROW_BYTES)
    row = {name: reader.value() for name in reader.members()}
    reader.end()
    return row
