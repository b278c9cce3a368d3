"""Arrow columns as codes of the model, with the broken rules by row: for scoring and for requests.

pyarrow reads whole columns. For a column that it cannot read, the function that reads requests reads each value.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import compute

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.fields import UNKNOWN_CATEGORY, Rule, Unknown, length_rule, read_value
from serve_app.artifacts.number_columns import NOT_NULL, check_numbers
from serve_app.artifacts.signature import UNSEEN, Feature, Signature
from serve_app.tables.arrow_dates import arrow_codes, date_type
from serve_app.tables.arrow_texts import is_text, whole_texts
from serve_app.tables.cell_values import cell_value

_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
"""A column of whole numbers may hold categories of this form."""
_PRECISIONS = {pa.float16(): np.float16, pa.float32(): np.float32}

Coded = tuple[Any, dict[int, Rule]]
"""A column as float64, or as texts with NaN for missing values, shape (rows,); and the broken rules by row."""


class Coding(NamedTuple):
    """The options for coding columns. `decimal` is the decimal mark of CSV cells; None for typed columns."""

    signature: Signature
    unknown: Unknown
    decimal: str | None = None


def coded(feature: Feature, column: pa.ChunkedArray, coding: Coding) -> Coded:
    """The values that the model gets for a column, which must not be a dictionary (see `plain_column`)."""
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan), {} if feature.nullable else dict.fromkeys(range(len(column)), NOT_NULL)
    if feature.date is not None:
        return _dates(feature, feature.date, column, coding)
    if feature.kind == "category":
        return _category(feature, column, coding)
    if feature.kind == "text":
        return _texts(feature, column, coding)
    if not (is_number(kind) or (feature.kind == "boolean" and pa.types.is_boolean(kind))):
        return _one_by_one(feature, column, coding)
    values, missing = _floats(column)
    if coding.decimal is not None:
        missing = np.zeros(len(values), bool) if missing is None else missing
    elif missing is not None:
        missing = missing | np.isnan(values)  # NaN also means a missing value
    precision = _PRECISIONS.get(kind, np.float64)
    return check_numbers(feature, values, coding.signature.missing_texts, gaps=missing, precision=precision)


def accepted_types(feature: Feature, kind: pa.DataType) -> str | None:
    """The types that the model accepts instead of this type, which must not be a dictionary; None when it accepts the type."""
    text, number = is_text(kind), is_number(kind) or pa.types.is_decimal(kind)
    if pa.types.is_null(kind):
        return None
    if feature.date is not None:
        return None if text or date_type(feature.date, kind) else feature.date.rule.removeprefix("must be ")
    digits = number and all(map(_WHOLE.fullmatch, feature.categories))
    fits, takes = {
        "number": (number or text, "numbers"),
        "boolean": (pa.types.is_boolean(kind), "true or false"),
        "category": (text or digits, "texts"),
        "text": (text, "texts"),
    }[feature.kind]
    return None if fits else takes


def is_number(kind: pa.DataType) -> bool:
    """Whether an Arrow type is an integer or a floating-point type."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a dictionary; any other type unchanged."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with its dictionary decoded and its texts as strings of one type."""
    kind = plain_type(column.type)
    return column.cast(pa.string() if is_text(kind) else kind)


def _floats(column: pa.ChunkedArray) -> tuple[Any, Any]:
    """The column as float64 with NaN for nulls, and the mask of the nulls; the mask is None for a column without nulls."""
    missing = column.is_null().to_numpy() if column.null_count else None
    number = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
    number = number.cast(pa.float64(), safe=False)
    return (number if missing is None else number.fill_null(np.nan)).to_numpy(), missing


def _gap_texts(feature: Feature, coding: Coding) -> tuple[str, ...]:
    """The texts that mean null for a feature; an empty CSV cell always means null."""
    return coding.signature.missing_texts if feature.nullable else ("",) if coding.decimal is not None else ()


def _dates(feature: Feature, form: DateForm, column: pa.ChunkedArray, coding: Coding) -> Coded:
    """Dates as codes; each distinct value is parsed once."""
    if not is_text(column.type) and not is_number(column.type):
        missing = column.is_null().to_numpy()
        values = arrow_codes(column)
        return values, {} if feature.nullable else dict.fromkeys(np.flatnonzero(missing).tolist(), NOT_NULL)
    if coding.decimal is not None:
        column = compute.utf8_trim(column, " ")
    encoded = column.combine_chunks().dictionary_encode()
    gaps = _gap_texts(feature, coding)
    table: list[Any] = []
    rules: dict[int, Rule] = {}
    for at, value in enumerate(encoded.dictionary.to_pylist()):
        sent = None if value in gaps or value != value else value
        code, problem = read_value(feature, sent, coding.unknown, coding.signature.missing_texts)
        table.append(code)
        if problem is not None:
            rules[at] = problem
    indexes = encoded.indices.fill_null(len(table)).to_numpy()
    values = np.array([*table, np.nan])[indexes]
    if not feature.nullable:
        rules[len(table)] = NOT_NULL
    wrong = {row: rules[int(indexes[row])] for row in np.flatnonzero(np.isin(indexes, list(rules))).tolist()}
    return values, wrong


def _category(feature: Feature, column: pa.ChunkedArray, coding: Coding) -> Coded:
    if coding.decimal is not None:
        column = compute.utf8_ltrim(column, " ")
    elif not is_text(column.type):
        column = whole_texts(column)
    codes = compute.index_in(column, pa.array(feature.categories, pa.string()))
    unknown_text = codes.is_null().to_numpy()
    values = codes.cast(pa.float64()).fill_null(np.nan).to_numpy()
    if not unknown_text.any():
        return values, {}
    gaps = pa.array(_gap_texts(feature, coding), pa.string())
    missing = column.is_null().to_numpy() | compute.is_in(column, gaps).to_numpy() & unknown_text
    unseen = unknown_text & ~missing
    values = np.where(unseen, UNSEEN if coding.unknown == "unseen" else np.nan, values)
    wrong = {} if feature.nullable else dict.fromkeys(np.flatnonzero(missing).tolist(), NOT_NULL)
    if coding.unknown == "refuse" and unseen.any():
        wrong |= dict.fromkeys(np.flatnonzero(unseen).tolist(), ("unknown_category", UNKNOWN_CATEGORY))
    return values, wrong


def _texts(feature: Feature, column: pa.ChunkedArray, coding: Coding) -> Coded:
    """Texts as an array of objects."""
    if coding.decimal is not None:
        column = compute.utf8_ltrim(column, " ")
    gaps = pa.array(_gap_texts(feature, coding), pa.string())
    missing = column.is_null().to_numpy() | compute.is_in(column, gaps).to_numpy()
    values = column.to_numpy(zero_copy_only=False)
    values[missing] = np.nan
    wrong = {} if feature.nullable else dict.fromkeys(np.flatnonzero(missing).tolist(), NOT_NULL)
    long = compute.greater(compute.utf8_length(column), feature.longest).fill_null(False).to_numpy() & ~missing
    return values, wrong | dict.fromkeys(np.flatnonzero(long).tolist(), ("too_long", length_rule(feature)))


def _one_by_one(feature: Feature, column: pa.ChunkedArray, coding: Coding) -> Coded:
    """Read texts instead of numbers or booleans, and decimal numbers, like values in a request."""
    gaps = frozenset(_gap_texts(feature, coding))
    values: list[Any] = []
    wrong: dict[int, Rule] = {}
    for row, value in enumerate(column.to_pylist()):
        sent = value
        if value is not None and (coding.decimal is not None or (feature.unit is not None and isinstance(value, str))):
            sent = cell_value(feature, value.lstrip(" "), gaps, coding.decimal or ".")
        elif value is not None and not isinstance(value, str | bool):
            sent = float(value)
        number, problem = read_value(feature, sent, coding.unknown, coding.signature.missing_texts)
        values.append(number)
        if problem is not None:
            wrong[row] = problem
    return np.array(values, dtype=np.float64), wrong
