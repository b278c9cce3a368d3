"""From the bytes of a request to numbers, compiled once for a signature.

A body is decoded twice at most: msgspec takes the rows that are right, in a microsecond; only what it refuses is
read again, slowly, to say which field breaks which rule (or to accept a number written as a string, as the
legacy clients do). Whatever either accepts becomes the same matrix.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np

from serve_app.artifacts.fields import MAX_PROBLEMS, Unknown, read_row
from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import UNSEEN, Feature, Signature, missing_numbers
from serve_app.errors import InvalidInput, Malformed, Problem, TooManyRows
from serve_app.protocols.codec import Buffer

PIECE_BYTES = 128 * 1024
"""A larger batch is read in pieces of so many bytes, because all other requests wait while a single call runs."""


def row_decoder(signature: Signature, *, unknown: Unknown) -> Callable[[Buffer], Matrix]:
    """A function from a JSON object to a matrix of one row; it raises InvalidInput."""
    decode = _decoder(signature)
    vector = _vector(signature, unknown)
    astuple = msgspec.structs.astuple

    def decode_row(body: Buffer) -> Matrix:
        try:
            values = astuple(decode(body))
            return np.array((values if vector is None else vector(values),), dtype=np.float64)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, NotFastPath):
            document = _load(body)
        problems: list[Problem] = []
        numbers = read_row(signature, document, "", problems, unknown)
        if problems:
            raise InvalidInput(problems[:MAX_PROBLEMS])
        return np.array((numbers,), dtype=np.float64)

    return decode_row


def rows_decoder(signature: Signature, *, max_rows: int, unknown: Unknown) -> Callable[[Buffer], Matrix]:
    """A function from `{"instances": [row, ...]}` to a matrix, order kept; it raises InvalidInput or TooManyRows."""
    decode_whole, decode = _decoder(signature, many=True, whole=True), _decoder(signature, many=True)
    vector = _vector(signature, unknown)
    astuple = msgspec.structs.astuple
    width = len(signature.features)

    def vectors(rows: list[Any]) -> Matrix:
        values = map(astuple, rows) if vector is None else (vector(astuple(row)) for row in rows)
        return np.fromiter(chain.from_iterable(values), np.float64, len(rows) * width).reshape(len(rows), width)

    def in_pieces(body: Buffer) -> Matrix:
        count, matrices = 0, []
        for piece in _pieces(body):
            rows = decode(piece)
            count += len(rows)
            _check_count(count, max_rows)
            matrices.append(vectors(rows))
        if not matrices:
            raise NotFastPath
        return np.concatenate(matrices)

    def decode_rows(body: Buffer) -> Matrix:
        try:
            if len(body) > PIECE_BYTES:
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError, NotFastPath):
                    return in_pieces(body)
            rows = decode_whole(body).instances
            _check_count(len(rows), max_rows)
            return vectors(rows)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, NotFastPath):
            document = _load(body)
        return _read_document(signature, document, max_rows=max_rows, unknown=unknown)

    return decode_rows


def _read_document(signature: Signature, document: dict[str, Any], *, max_rows: int, unknown: Unknown) -> Matrix:
    """The matrix of a parsed `{"instances": [row, ...]}`, read value by value. Raises InvalidInput and TooManyRows."""
    if "instances" not in document:
        raise InvalidInput([Problem("instances", "missing", "this field is required")])
    instances = document["instances"]
    if not isinstance(instances, list):
        raise InvalidInput([Problem("instances", "type", "must be a list of objects")])
    _check_count(len(instances), max_rows)
    problems: list[Problem] = []
    matrix = []
    for index, item in enumerate(instances):
        matrix.append(read_row(signature, item, f"instances[{index}].", problems, unknown))
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise InvalidInput(problems[:MAX_PROBLEMS])
    return np.array(matrix, dtype=np.float64)


class NotFastPath(Exception):
    """A value that the typed decoder lets through and the slow reader must judge."""


_HEAD = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"instances"[ \t\r\n]*:[ \t\r\n]*\[')
_TAIL = re.compile(rb"\][ \t\r\n]*\}[ \t\r\n]*\Z")
_TAIL_BYTES = 1024
_BETWEEN = re.compile(rb"\}[ \t\r\n]*,(?=[ \t\r\n]*\{)")


def _pieces(body: Buffer) -> Iterator[bytes]:
    """The rows of `{"instances": [...]}` as lists of about PIECE_BYTES; raises NotFastPath for any other form.

    A cut is made where one row seems to end and the next to begin. It may be inside a string or a row, but then the piece before it
    is no JSON list of rows, its decoder refuses it, and the body is read whole.
    """
    head, tail = _HEAD.match(body), _TAIL.search(body, max(0, len(body) - _TAIL_BYTES))
    if head is None or tail is None:
        raise NotFastPath
    start, end = head.end(), tail.start()
    view = memoryview(body)
    while start < end:
        cut = _BETWEEN.search(body, start + PIECE_BYTES, end)
        stop = end if cut is None else cut.start() + 1
        yield b"".join((b"[", view[start:stop], b"]"))
        start = end if cut is None else cut.end()


def _decoder(signature: Signature, *, many: bool = False, whole: bool = False) -> Callable[[Buffer], Any]:
    try:
        row = _row_type(signature)
    except ValueError:  # msgspec takes no field names with quotes, backslashes or control characters
        return _leave_it
    kind: Any = list[row] if many else row  # type: ignore[valid-type]
    if whole:
        kind = msgspec.defstruct("Batch", [("instances", kind)], gc=False)
    return msgspec.json.Decoder(kind).decode


def _leave_it(_: Buffer) -> Any:
    raise NotFastPath


def _row_type(signature: Signature) -> type[msgspec.Struct]:
    fields: list[Any] = []
    rename = {}
    for position, feature in enumerate(signature.features):
        name = f"f{position}"  # a column's name need not be an identifier
        rename[name] = feature.name
        kind: Any = {"number": float, "boolean": bool, "category": str}[feature.kind]
        if feature.kind == "number":
            minimum, maximum = feature.bounds
            kind = Annotated[kind, msgspec.Meta(ge=minimum, le=maximum)]
        fields.append((name, kind | None, None) if feature.nullable else (name, kind))
    required_first = sorted(fields, key=len)
    if required_first != fields:
        return msgspec.defstruct("Row", fields, rename=rename, kw_only=True, gc=False)
    return msgspec.defstruct("Row", fields, rename=rename, gc=False)


def _vector(signature: Signature, unknown: Unknown) -> Callable[[tuple[Any, ...]], Sequence[float]] | None:
    """A function from the values of a row to its numbers; None when they are numbers already."""
    if all(feature.kind == "number" and not feature.nullable for feature in signature.features):
        return None
    columns = [_column(feature, unknown, signature.missing) for feature in signature.features]
    return lambda values: [column(value) for column, value in zip(columns, values, strict=True)]


def _column(feature: Feature, unknown: Unknown, missing: tuple[str, ...]) -> Callable[[Any], float]:
    if feature.kind == "number" and feature.nullable and (gaps := missing_numbers(missing)):
        return lambda value: math.nan if value is None or value in gaps else float(value)
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


def _check_count(count: int, max_rows: int) -> None:
    if count == 0:
        raise InvalidInput([Problem("instances", "too_short", "must hold at least one row")])
    if count > max_rows:
        raise TooManyRows([Problem("instances", "too_long", f"must hold at most {max_rows} rows")])


def _load(body: Buffer) -> dict[str, Any]:
    # json reads NaN and Infinity, so that they can be refused by the field's name instead of as a syntax error. A
    # number of thousands of digits is one too; Python would refuse to read it as an int.
    try:
        document = json.loads(body, parse_int=float)
    except (ValueError, RecursionError):
        raise Malformed([Problem("body", "json", "must be a JSON document in UTF-8")]) from None
    if not isinstance(document, dict):
        raise InvalidInput([Problem("body", "type", "must be a JSON object")])
    return document
