"""From the bytes of a request to numbers, compiled once for a signature.

A body is decoded twice at most: msgspec takes the rows that are right, in a microsecond; only what it refuses is
read again, slowly, to say which field breaks which rule (or to accept a number written as a string, as the
clients of old do). Whatever either accepts becomes the same matrix.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from serve_app.core.errors import InvalidInput, Malformed, Problem, TooManyRows
from serve_app.core.signature import UNSEEN, Feature, Signature

Matrix = npt.NDArray[np.float64]
Scores = npt.NDArray[np.floating[Any]]
Unknown = Literal["refuse", "unseen"]
Text = bytes | bytearray
"""A body; a long one grows piece by piece."""

PIECE_BYTES = 128 * 1024
PIECE_ROWS = 2048
"""A larger batch is read in pieces of so many bytes, predicted and written in pieces of so many rows, because while a single call
runs all other requests wait."""

UNKNOWN_CATEGORY = "is not one of the categories the model was trained with"

MAX_PROBLEMS = 50
"""Problems named in one answer; a table full of mistakes needs no longer list."""


def row_decoder(signature: Signature, *, unknown: Unknown = "refuse") -> Callable[[Text], Matrix]:
    """A function from a JSON object to a matrix of one row; it raises InvalidInput."""
    decode = _decoder(signature)
    vector = _vector(signature, unknown)
    astuple = msgspec.structs.astuple

    def decode_row(body: Text) -> Matrix:
        try:
            values = astuple(decode(body))
            return np.array((values if vector is None else vector(values),), dtype=np.float64)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, _Odd):
            document = _load(body)
        problems: list[Problem] = []
        numbers = _read_row(signature, document, "", problems, unknown)
        if problems:
            raise InvalidInput(problems[:MAX_PROBLEMS])
        return np.array((numbers,), dtype=np.float64)

    return decode_row


def rows_decoder(signature: Signature, *, max_rows: int, unknown: Unknown = "refuse") -> Callable[[Text], Matrix]:
    """A function from `{"instances": [row, ...]}` to a matrix, order kept; it raises InvalidInput or TooManyRows."""
    decode_whole, decode = _decoder(signature, many=True, whole=True), _decoder(signature, many=True)
    vector = _vector(signature, unknown)
    astuple = msgspec.structs.astuple
    width = len(signature.features)

    def vectors(rows: list[Any]) -> Matrix:
        values = map(astuple, rows) if vector is None else (vector(astuple(row)) for row in rows)
        return np.fromiter(chain.from_iterable(values), np.float64, len(rows) * width).reshape(len(rows), width)

    def in_pieces(body: Text) -> Matrix:
        count, matrices = 0, []
        for piece in _pieces(body):
            rows = decode(piece)
            count += len(rows)
            _check_count(count, max_rows)
            matrices.append(vectors(rows))
        if not matrices:
            raise _Odd
        return np.concatenate(matrices)

    def decode_rows(body: Text) -> Matrix:
        try:
            if len(body) > PIECE_BYTES:
                with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError, _Odd):
                    return in_pieces(body)
            rows = decode_whole(body).instances
            _check_count(len(rows), max_rows)
            return vectors(rows)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, _Odd):
            document = _load(body)
        if "instances" not in document:
            raise InvalidInput([Problem("instances", "missing", "this field is required")])
        instances = document["instances"]
        if not isinstance(instances, list):
            raise InvalidInput([Problem("instances", "type", "must be a list of objects")])
        _check_count(len(instances), max_rows)
        problems: list[Problem] = []
        matrix = []
        for index, item in enumerate(instances):
            matrix.append(_read_row(signature, item, f"instances[{index}].", problems, unknown))
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise InvalidInput(problems[:MAX_PROBLEMS])
        return np.array(matrix, dtype=np.float64)

    return decode_rows


def read_rows(signature: Signature, rows: Sequence[Any], *, unknown: Unknown = "refuse") -> Matrix:
    """Rows that are Python objects already (golden examples, tests) as a matrix; it raises InvalidInput."""
    problems: list[Problem] = []
    matrix = [_read_row(signature, item, f"[{index}].", problems, unknown) for index, item in enumerate(rows)]
    if problems:
        raise InvalidInput(problems[:MAX_PROBLEMS])
    return np.array(matrix, dtype=np.float64)


def batched(items: Any, size: int) -> Iterator[Any]:
    """Slices of `size` items of a list or an array, the last one shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


class _Odd(Exception):
    """A value that the typed decoder lets through and the slow reader must judge."""


_HEAD = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"instances"[ \t\r\n]*:[ \t\r\n]*\[')
_TAIL = re.compile(rb"\][ \t\r\n]*\}[ \t\r\n]*\Z")
_TAIL_BYTES = 1024
_BETWEEN = re.compile(rb"\}[ \t\r\n]*,(?=[ \t\r\n]*\{)")


def _pieces(body: Text) -> Iterator[bytes]:
    """The rows of `{"instances": [...]}`, and of nothing else, as lists of about PIECE_BYTES; raises _Odd for any other form.

    A cut is made where one row seems to end and the next to begin. It may be inside a string or a row, but then the piece before it
    is no JSON list of rows, its decoder refuses it, and the body is read whole.
    """
    head, tail = _HEAD.match(body), _TAIL.search(body, max(0, len(body) - _TAIL_BYTES))
    if head is None or tail is None:
        raise _Odd
    start, end = head.end(), tail.start()
    view = memoryview(body)
    while start < end:
        cut = _BETWEEN.search(body, start + PIECE_BYTES, end)
        stop = end if cut is None else cut.start() + 1
        yield b"".join((b"[", view[start:stop], b"]"))
        start = end if cut is None else cut.end()


def _decoder(signature: Signature, *, many: bool = False, whole: bool = False) -> Callable[[Text], Any]:
    try:
        row = _row_type(signature)
    except ValueError:  # msgspec takes no field names with quotes, backslashes or control characters
        return _leave_it
    kind: Any = list[row] if many else row  # type: ignore[valid-type]
    if whole:
        kind = msgspec.defstruct("Batch", [("instances", kind)], gc=False)
    return msgspec.json.Decoder(kind).decode


def _leave_it(_: Text) -> Any:
    raise _Odd


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
    columns = [_column(feature, unknown) for feature in signature.features]
    return lambda values: [column(value) for column, value in zip(columns, values, strict=True)]


def _column(feature: Feature, unknown: Unknown) -> Callable[[Any], float]:
    if feature.kind != "category":
        return lambda value: math.nan if value is None else float(value)
    codes = {name: float(code) for code, name in enumerate(feature.categories)}

    def code(value: str | None) -> float:
        if value is None:
            return math.nan
        found = codes.get(value)
        if found is None:
            if unknown == "refuse":
                raise _Odd
            return UNSEEN
        return found

    return code


def _check_count(count: int, max_rows: int) -> None:
    if count == 0:
        raise InvalidInput([Problem("instances", "too_short", "must hold at least one row")])
    if count > max_rows:
        raise TooManyRows([Problem("instances", "too_long", f"must hold at most {max_rows} rows")])


def _load(body: Text) -> dict[str, Any]:
    # json reads NaN and Infinity, so that they can be refused by the field's name instead of as a syntax error. A
    # number of thousands of digits is one too; Python would refuse to read it as an int.
    try:
        document = json.loads(body, parse_int=float)
    except (ValueError, RecursionError):
        raise Malformed([Problem("body", "json", "must be a JSON document in UTF-8")]) from None
    if not isinstance(document, dict):
        raise InvalidInput([Problem("body", "type", "must be a JSON object")])
    return document


def _read_row(signature: Signature, row: Any, prefix: str, problems: list[Problem], unknown: Unknown) -> list[float]:
    if not isinstance(row, dict):
        problems.append(Problem(prefix.rstrip(".") or "body", "type", "must be a JSON object"))
        return []
    values = []
    for feature in signature.features:
        if feature.name in row:
            value, problem = read_value(feature, row[feature.name], unknown)
        elif feature.nullable:
            value, problem = math.nan, None
        else:
            value, problem = math.nan, ("missing", "this field is required")
        if problem is not None:
            problems.append(Problem(prefix + feature.name, *problem))
        values.append(value)
    return values


def read_value(feature: Feature, value: Any, unknown: Unknown) -> tuple[float, tuple[str, str] | None]:
    """The number of a value that is a Python object already, and the code and sentence of the rule that it breaks."""
    nan = math.nan
    if value is None:
        return (nan, None) if feature.nullable else (nan, ("type", "must not be null"))
    if feature.kind == "category":
        if not isinstance(value, str):
            return nan, ("type", "must be a string")
        try:
            return float(feature.categories.index(value)), None
        except ValueError:
            if unknown == "unseen":
                return UNSEEN, None
            return nan, ("unknown_category", UNKNOWN_CATEGORY)
    if feature.kind == "boolean":
        return (float(value), None) if isinstance(value, bool) else (nan, ("type", "must be true or false"))
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return nan, ("type", "must be a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return nan, ("type", "must be a finite number")
    if not math.isfinite(number):
        return nan, ("not_finite", "must be a finite number")
    minimum, maximum = feature.bounds
    if minimum <= number <= maximum:
        return number, None
    return nan, ("out_of_range", range_rule(feature))


def range_rule(feature: Feature) -> str:
    """The rule that a number outside the contract breaks."""
    low, high = (repr(float(bound)).removesuffix(".0") for bound in feature.bounds)
    if feature.minimum is None and feature.maximum is not None:
        return f"must be at most {high}"
    if feature.maximum is None and feature.minimum is not None:
        return f"must be at least {low}"
    return f"must be between {low} and {high}"
