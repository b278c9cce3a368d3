"""A part of the input as the coded matrix of the model; values are checked by the rules for a request.

A CSV cell is read as training reads it (missing values, spaces before a value); then the rules of the served API apply. Whole
columns are read with pyarrow. A column that pyarrow cannot read is read again, value by value, by the function that reads requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.fields import UNKNOWN_CATEGORY, Unknown, length_rule, read_value
from serve_app.artifacts.matrix import Matrix, matrix_type
from serve_app.artifacts.number_columns import check_numbers
from serve_app.artifacts.signature import UNSEEN, Feature, Signature, missing_numbers
from serve_app.errors import UsageError
from serve_app.tables.arrow_dates import arrow_codes, date_type
from serve_app.tables.arrow_texts import is_text, whole_texts
from serve_app.tables.cell_values import cell_value
from serve_app.tables.cells import check_no_nul, needs_records, parse_columns, records, uneven
from serve_app.tables.content import open_content
from serve_app.tables.csv_format import is_number
from serve_app.tables.header import Header
from serve_app.tables.location import Location, hive_keys, translate_errors
from serve_app.tables.splits import Part

_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
"""Categories of this form may stand in Parquet as whole numbers."""

BATCH_ROWS = 65_536
"""Rows of a Parquet file in memory at once."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a part: the coded matrix (rows, features), the kept columns, and the problem of a row by its index in the matrix."""

    matrix: Matrix
    kept: pa.Table
    problems: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """How parts are read: the features of the model, the columns to keep, and whether an unseen category is refused."""

    signature: Signature
    keep: tuple[str, ...]
    unknown: Unknown

    @property
    def columns(self) -> list[str]:
        """The columns to read: features, then kept columns."""
        return list(dict.fromkeys([*self.signature.names, *self.keep]))


def check_columns(reading: Reading, columns: Sequence[str], path: str) -> None:
    """Raise UsageError when a file lacks a column that the model or the output needs."""
    known, names = ", ".join(columns[:20]), frozenset(columns)
    for feature in reading.signature.features:
        if feature.name not in names and not feature.nullable:
            raise UsageError(f"{path} has no column '{feature.name}', which the model needs; there are: {known}")
    if names.isdisjoint(reading.signature.names):  # all of them may be left out, but a row needs one
        wanted = ", ".join(reading.signature.names[:20])
        raise UsageError(f"{path} has none of the columns that the model takes ({wanted}); there are: {known}")
    for name in reading.keep:
        if name not in names:
            raise UsageError(f"--keep '{name}' names no column of {path}; there are: {known}")


def check_types(reading: Reading, schema: pa.Schema, path: str) -> None:
    """Raise UsageError when a column of a Parquet file has a type that its feature does not accept."""
    types = dict(zip(schema.names, schema.types, strict=True))
    for feature in reading.signature.features:
        if feature.name in types:
            kind = _plain_type(types[feature.name])
            text, number = is_text(kind), pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
            if feature.date is not None:
                fits, takes = text or date_type(feature.date, kind), feature.date.rule.removeprefix("must be ")
            else:
                digits = number and all(map(_WHOLE.fullmatch, feature.categories))
                fits = {
                    "number": number or text,
                    "boolean": pa.types.is_boolean(kind),
                    "category": text or digits,
                    "text": text,
                }[feature.kind]
                takes = {"number": "numbers", "boolean": "true or false", "category": "texts", "text": "texts"}[feature.kind]
            if not fits and not pa.types.is_null(kind):
                raise UsageError(f"{path}: column '{feature.name}' holds {kind} where the model takes {takes}")


def csv_rows(location: Location, part: Part, header: Header, reading: Reading) -> Iterator[Rows]:
    """All rows of a part at once; raises UsageError when they are not as many as were counted when the file was split."""
    with translate_errors(part.path), open_content(location, part.path, header.dialect.form) as file:
        raw: bytes = file.read_at(part.stop - part.start, part.start)
    check_no_nul(raw, part.path, part.first_row)
    keys = hive_keys(location, part.path)
    rows = _read_columns(raw, header, reading, keys) or _read_records(raw, header, reading, part, keys)
    if len(rows.matrix) != part.rows:
        raise UsageError(
            f"{part.path}: {len(rows.matrix)} rows were read where {part.rows} were counted from row {part.first_row + 1} on: "
            "end lines with LF or CRLF, double the quotes inside a quoted value, and change no file while it is scored"
        )
    yield rows


def _read_columns(raw: bytes, header: Header, reading: Reading, keys: Mapping[str, str | None]) -> Rows | None:
    """Read with pyarrow; None for a text that only Python's csv module reads as training does."""
    if needs_records(raw, header.dialect.separator):
        return None
    columns_of_file = frozenset(header.columns)
    features = [feature for feature in reading.signature.features if feature.name in columns_of_file]
    names = [feature.name for feature in features]
    numbers = {feature.name for feature in features if feature.kind == "number" and feature.unit is None}
    known = missing_numbers(reading.signature.missing_texts)  # are gaps by their value, where the feature takes gaps
    missing = [text for text in reading.signature.missing_texts if not known or not is_number(text)]
    kept_names = [name for name in reading.keep if name in columns_of_file]
    try:
        try:
            table = parse_columns(raw, header, names, numbers=numbers, missing=missing)
            numeric = not any(compute.any(compute.is_nan(table.column(name))).as_py() for name in numbers)
        except pa.ArrowInvalid:
            numeric = False
        if not numeric:
            table = parse_columns(raw, header, names)
        kept = parse_columns(raw, header, kept_names) if kept_names else None
    except (pa.ArrowInvalid, pa.ArrowKeyError):
        return None
    columns = {name: table.column(name) for name in names}
    return _rows(columns, reading, kept, table.num_rows, keys, decimal=header.dialect.decimal)


def _read_records(raw: bytes, header: Header, reading: Reading, part: Part, keys: Mapping[str, str | None]) -> Rows:
    """Read record by record with Python's csv module."""
    rows = list(records(raw, header, part.path, part.first_row))
    width = len(header.columns)
    problems = {row: problem for row, record in enumerate(rows) if (problem := uneven(record, header)) is not None}
    padded = [(record + [""] * width)[:width] if row in problems else record for row, record in enumerate(rows)]
    columns = {
        name: pa.chunked_array([pa.array([record[at] for record in padded], pa.string())]) for at, name in enumerate(header.columns)
    }
    kept = pa.table({name: columns[name] for name in reading.keep if name in columns})
    return _rows(columns, reading, kept, len(rows), keys, decimal=header.dialect.decimal, problems=problems)


def parquet_rows(location: Location, part: Part, reading: Reading) -> Iterator[Rows]:
    """The rows of a part, at most BATCH_ROWS at a time; raises UsageError when the file has changed."""
    count = 0
    with translate_errors(part.path), parquet.ParquetFile(part.path, filesystem=location.filesystem) as file:
        known = frozenset(file.schema_arrow.names)
        names = [name for name in reading.columns if name in known]
        keys = {name: value for name, value in hive_keys(location, part.path).items() if name not in known}
        groups = list(range(part.start, part.stop))
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
            table = pa.Table.from_batches([batch])
            count += table.num_rows
            columns = {name: _plain_column(table.column(name)) for name in table.column_names}
            kept = table.select([name for name in reading.keep if name in names])
            yield _rows(columns, reading, kept, table.num_rows, keys)
    if count != part.rows:
        raise UsageError(f"{part.path} was changed while it was scored: start again with --restart")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = _plain_type(column.type)
    return column.cast(pa.string() if is_text(kind) else kind)


def _rows(
    columns: Mapping[str, pa.ChunkedArray],
    reading: Reading,
    kept: pa.Table | None,
    count: int,
    keys: Mapping[str, str | None],
    *,
    decimal: str | None = None,
    problems: Mapping[int, str] | None = None,
) -> Rows:
    """The rows of columns by name, and of the keys of the folders; `decimal`: texts are CSV cells with this decimal mark."""
    by_row = dict(problems or {})
    matrix = np.full((count, len(reading.signature.features)), np.nan, matrix_type(has_texts=reading.signature.has_texts))
    for at, feature in enumerate(reading.signature.features):
        if feature.name in columns:
            values, wrong = _feature(feature, columns[feature.name], reading, decimal)
        elif feature.name in keys:
            values, wrong = _key(feature, keys[feature.name], reading, count)
        else:
            continue
        matrix[:, at] = values
        for row, message in wrong.items():
            if row not in (problems or {}):
                by_row[row] = f"{by_row[row]}; {feature.name}: {message}" if row in by_row else f"{feature.name}: {message}"
    table = kept if kept is not None else pa.table({})
    for name in reading.keep:
        if name not in table.column_names:
            table = table.append_column(name, pa.array([keys[name]] * count, pa.string()))
    return Rows(matrix, table.select(list(reading.keep)) if reading.keep else pa.table({}), by_row)


def _key(feature: Feature, value: str | None, reading: Reading, count: int) -> tuple[Any, dict[int, str]]:
    """The value of a folder's key for every row, as float64 or as text."""
    column = pa.chunked_array([pa.array([value], pa.string())])
    values, wrong = (
        _texts(feature, column, reading, cells=True) if feature.kind == "text" else _one_by_one(feature, column, reading, ".")
    )
    return np.full(count, values[0]), dict.fromkeys(range(count), wrong[0]) if wrong else {}


def _feature(feature: Feature, column: pa.ChunkedArray, reading: Reading, decimal: str | None) -> tuple[Any, dict[int, str]]:
    """A column as float64, or as texts with NaN in the gaps, and its problems by row."""
    kind = column.type
    if pa.types.is_null(kind):
        wrong = {} if feature.nullable else dict.fromkeys(range(len(column)), "must not be null")
        return np.full(len(column), np.nan), wrong
    if feature.date is not None:
        return _dates(feature, feature.date, column, reading, cells=decimal is not None)
    if feature.kind == "category":
        return _category(feature, column, reading, cells=decimal is not None)
    if feature.kind == "text":
        return _texts(feature, column, reading, cells=decimal is not None)
    if feature.kind == "boolean" and pa.types.is_boolean(kind):
        values, missing = _floats(column)
    elif pa.types.is_floating(kind) or pa.types.is_integer(kind):
        values, missing = _floats(column)
        if decimal is None:
            missing = missing | np.isnan(values)  # a float column may hold its gaps as NaN
    else:
        return _one_by_one(feature, column, reading, decimal)
    values, rules = check_numbers(feature, values, reading.signature.missing_texts, gaps=missing)
    return values, {row: rule for row, (_, rule) in rules.items()}


def _floats(column: pa.ChunkedArray) -> tuple[Any, Any]:
    """The column as float64 with NaN in the gaps, and the mask of the gaps."""
    missing = column.is_null().to_numpy()
    number = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
    return number.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(), missing


def _gap_texts(feature: Feature, reading: Reading, *, cells: bool) -> tuple[str, ...]:
    """The texts that are null for a feature; an empty CSV cell always is."""
    return reading.signature.missing_texts if feature.nullable else ("",) if cells else ()


def _dates(
    feature: Feature, form: DateForm, column: pa.ChunkedArray, reading: Reading, *, cells: bool
) -> tuple[Any, dict[int, str]]:
    """Dates as codes; each different value is read once."""
    if not is_text(column.type) and not _is_number(column.type):
        missing = column.is_null().to_numpy()
        values = arrow_codes(column)
        return values, {} if feature.nullable else dict.fromkeys(np.flatnonzero(missing).tolist(), "must not be null")
    if cells:
        column = compute.utf8_trim(column, " ")
    encoded = column.combine_chunks().dictionary_encode()
    gaps = _gap_texts(feature, reading, cells=cells)
    table, rules = [], {}
    for at, value in enumerate(encoded.dictionary.to_pylist()):
        sent = None if value in gaps or value != value else value
        code, problem = read_value(feature, sent, reading.unknown, reading.signature.missing_texts)
        table.append(code)
        if problem is not None:
            rules[at] = problem[1]
    indexes = encoded.indices.fill_null(len(table)).to_numpy()
    values = np.array([*table, np.nan])[indexes]
    if not feature.nullable:
        rules[len(table)] = "must not be null"
    wrong = {row: rules[int(indexes[row])] for row in np.flatnonzero(np.isin(indexes, list(rules))).tolist()}
    return values, wrong


def _category(feature: Feature, column: pa.ChunkedArray, reading: Reading, *, cells: bool) -> tuple[Any, dict[int, str]]:
    if cells:
        column = compute.utf8_ltrim(column, " ")
    elif not is_text(column.type):
        column = whole_texts(column)
    codes = compute.index_in(column, pa.array(feature.categories, pa.string()))
    unknown_text = codes.is_null().to_numpy()
    values = codes.cast(pa.float64()).fill_null(np.nan).to_numpy()
    if not unknown_text.any():
        return values, {}
    gaps = pa.array(_gap_texts(feature, reading, cells=cells), pa.string())
    missing = column.is_null().to_numpy() | compute.is_in(column, gaps).to_numpy() & unknown_text
    unseen = unknown_text & ~missing
    values = np.where(unseen, UNSEEN if reading.unknown == "unseen" else np.nan, values)
    wrong = {} if feature.nullable else dict.fromkeys(np.flatnonzero(missing).tolist(), "must not be null")
    if reading.unknown == "refuse" and unseen.any():
        wrong |= dict.fromkeys(np.flatnonzero(unseen).tolist(), UNKNOWN_CATEGORY)
    return values, wrong


def _texts(feature: Feature, column: pa.ChunkedArray, reading: Reading, *, cells: bool) -> tuple[Any, dict[int, str]]:
    """Texts as an array of objects."""
    if cells:
        column = compute.utf8_ltrim(column, " ")
    gaps = pa.array(_gap_texts(feature, reading, cells=cells), pa.string())
    missing = column.is_null().to_numpy() | compute.is_in(column, gaps).to_numpy()
    values = column.to_numpy(zero_copy_only=False)
    values[missing] = np.nan
    wrong = {} if feature.nullable else dict.fromkeys(np.flatnonzero(missing).tolist(), "must not be null")
    long = compute.greater(compute.utf8_length(column), feature.longest).fill_null(False).to_numpy() & ~missing
    return values, wrong | dict.fromkeys(np.flatnonzero(long).tolist(), length_rule(feature))


def _one_by_one(feature: Feature, column: pa.ChunkedArray, reading: Reading, decimal: str | None) -> tuple[Any, dict[int, str]]:
    """Read texts in place of numbers or booleans, and decimal numbers, as the value that a client sends in a request."""
    gaps = frozenset(_gap_texts(feature, reading, cells=decimal is not None))
    values, wrong = [], {}
    for row, value in enumerate(column.to_pylist()):
        sent = value
        if value is not None and (decimal is not None or (feature.unit is not None and isinstance(value, str))):
            sent = cell_value(feature, value.lstrip(" "), gaps, decimal or ".")
        elif value is not None and not isinstance(value, str | bool):
            sent = float(value)
        number, problem = read_value(feature, sent, reading.unknown, reading.signature.missing_texts)
        values.append(number)
        if problem is not None:
            wrong[row] = problem[1]
    return np.array(values, dtype=np.float64), wrong
