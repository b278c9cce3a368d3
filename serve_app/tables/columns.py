"""A part of the input as the coded matrix of the model; values are checked by the rules for a request.

A CSV cell is read as training reads it (empty cells, spaces before a value); then the rules of the served API apply. Whole columns
are read with pyarrow. A column that pyarrow cannot read is read again, value by value, by the function that reads requests.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet
from pyarrow import csv as arrow_csv

from serve_app.artifacts.fields import UNKNOWN_CATEGORY, Unknown, range_rule, read_value
from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import UNSEEN, Feature, Signature
from serve_app.errors import UsageError
from serve_app.tables.csv_format import EMPTY, FALSE, TRUE
from serve_app.tables.location import Location, translate_errors
from serve_app.tables.splits import Part

_CELL_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *")
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
    for name in reading.keep:
        if name not in names:
            raise UsageError(f"--keep '{name}' names no column of {path}; there are: {known}")


def check_types(reading: Reading, schema: pa.Schema, path: str) -> None:
    """Raise UsageError when a column of a Parquet file has a type that its feature does not accept."""
    types = dict(zip(schema.names, schema.types, strict=True))
    for feature in reading.signature.features:
        if feature.name in types:
            kind = _plain_type(types[feature.name])
            text, number = _is_text(kind), pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
            fits = {"number": number or text, "boolean": pa.types.is_boolean(kind), "category": text}[feature.kind]
            if not fits and not pa.types.is_null(kind):
                takes = {"number": "numbers", "boolean": "true or false", "category": "texts"}[feature.kind]
                raise UsageError(f"{path}: column '{feature.name}' holds {kind} where the model takes {takes}")


def csv_rows(location: Location, part: Part, header: Sequence[str], reading: Reading) -> Iterator[Rows]:
    """All rows of a part at once; raises UsageError when they are not as many as were counted when the file was split."""
    with translate_errors(part.path), location.filesystem.open_input_file(part.path) as file:
        raw: bytes = file.read_at(part.stop - part.start, part.start)
    rows = _read_columns(raw, header, reading) or _read_records(raw, header, reading, part)
    if len(rows.matrix) != part.rows:
        raise UsageError(
            f"{part.path}: {len(rows.matrix)} rows were read where {part.rows} were counted from row {part.first_row + 1} on: "
            "end lines with LF or CRLF, double the quotes inside a quoted value, and change no file while it is scored"
        )
    yield rows


def _read_columns(raw: bytes, header: Sequence[str], reading: Reading) -> Rows | None:
    """Read with pyarrow; None for a text that only Python's csv module reads as training does."""
    if b', "' in raw or b'" ' in raw or b'\n "' in raw or raw.startswith(b' "'):
        return None  # spaces before or inside of quotes
    columns = frozenset(header)
    present = [feature for feature in reading.signature.features if feature.name in columns]
    numbers = {feature.name for feature in present if feature.kind == "number"}
    try:
        try:
            table = _parse(raw, header, [feature.name for feature in present], numbers)
            numeric = not any(compute.any(compute.is_nan(table.column(name))).as_py() for name in numbers)
        except pa.ArrowInvalid:
            numeric = False
        if not numeric:
            table = _parse(raw, header, [feature.name for feature in present], set())
        kept = _parse(raw, header, reading.keep, set()) if reading.keep else None
    except (pa.ArrowInvalid, pa.ArrowKeyError):
        return None
    return _rows({name: table.column(name) for name in table.column_names}, reading, kept, table.num_rows, cells=True)


def _parse(raw: bytes, header: Sequence[str], columns: Sequence[str], numbers: set[str]) -> pa.Table:
    return arrow_csv.read_csv(
        pa.BufferReader(raw),
        arrow_csv.ReadOptions(use_threads=False, column_names=header, block_size=len(raw) + 1),
        arrow_csv.ParseOptions(newlines_in_values=b'"' in raw),
        arrow_csv.ConvertOptions(
            include_columns=list(columns) or [header[0]],
            column_types={name: pa.float64() if name in numbers else pa.string() for name in header},
            null_values=EMPTY,
            strings_can_be_null=False,
        ),
    )


def _read_records(raw: bytes, header: Sequence[str], reading: Reading, part: Part) -> Rows:
    """Read record by record with Python's csv module."""
    try:
        text = raw.decode()
        records = [record for record in csv.reader(io.StringIO(text, newline=""), skipinitialspace=True) if record]
    except UnicodeDecodeError:
        raise UsageError(f"{part.path} is not UTF-8 text after row {part.first_row}: save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise UsageError(f"{part.path} cannot be read as CSV after row {part.first_row}: {error}") from None
    width = len(header)
    uneven = {
        row: f"it has {len(record)} values where the header names {width}"
        for row, record in enumerate(records)
        if len(record) != width
    }
    padded = [(record + [""] * width)[:width] if row in uneven else record for row, record in enumerate(records)]
    columns = {name: pa.chunked_array([pa.array([record[at] for record in padded], pa.string())]) for at, name in enumerate(header)}
    kept = pa.table({name: columns[name] for name in reading.keep}) if reading.keep else None
    return _rows(columns, reading, kept, len(records), cells=True, problems=uneven)


def parquet_rows(location: Location, part: Part, reading: Reading) -> Iterator[Rows]:
    """The rows of a part, at most BATCH_ROWS at a time; raises UsageError when the file has changed."""
    count = 0
    with translate_errors(part.path), parquet.ParquetFile(part.path, filesystem=location.filesystem) as file:
        known = frozenset(file.schema_arrow.names)
        names = [name for name in reading.columns if name in known]
        groups = list(range(part.start, part.stop))
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
            table = pa.Table.from_batches([batch])
            count += table.num_rows
            columns = {name: _plain_column(table.column(name)) for name in table.column_names}
            kept = table.select(list(reading.keep)) if reading.keep else None
            yield _rows(columns, reading, kept, table.num_rows, cells=False)
    if count != part.rows:
        raise UsageError(f"{part.path} was changed while it was scored: start again with --restart")


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = _plain_type(column.type)
    return column.cast(pa.string() if _is_text(kind) else kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _rows(
    columns: Mapping[str, pa.ChunkedArray],
    reading: Reading,
    kept: pa.Table | None,
    count: int,
    *,
    cells: bool,
    problems: Mapping[int, str] | None = None,
) -> Rows:
    """The rows of columns by name; `cells`: texts are CSV cells, which may be empty or begin with spaces."""
    by_row = dict(problems or {})
    matrix = np.full((count, len(reading.signature.features)), np.nan)
    for at, feature in enumerate(reading.signature.features):
        if feature.name not in columns:
            continue
        values, wrong = _feature(feature, columns[feature.name], reading.unknown, cells=cells)
        matrix[:, at] = values
        for row, message in wrong.items():
            if row not in (problems or {}):
                by_row[row] = f"{by_row[row]}; {feature.name}: {message}" if row in by_row else f"{feature.name}: {message}"
    return Rows(matrix, kept if kept is not None else pa.table({}), by_row)


def _feature(feature: Feature, column: pa.ChunkedArray, unknown: Unknown, *, cells: bool) -> tuple[Any, dict[int, str]]:
    """A column as float64, and its problems by row."""
    kind = column.type
    if pa.types.is_null(kind):
        values: Any = np.full(len(column), np.nan)
        missing = np.ones(len(column), bool)
    elif feature.kind == "category":
        return _category(feature, column, unknown, cells=cells)
    elif feature.kind == "boolean" and pa.types.is_boolean(kind):
        values, missing = _floats(column)
    elif pa.types.is_floating(kind) or pa.types.is_integer(kind):
        values, missing = _floats(column)
        if not cells:
            missing = missing | np.isnan(values)  # a float column may hold its gaps as NaN
    else:
        return _one_by_one(feature, column, unknown, cells=cells)
    wrong = {} if feature.nullable else dict.fromkeys(np.flatnonzero(missing).tolist(), "must not be null")
    if feature.kind == "number":
        least, most = feature.bounds
        with np.errstate(invalid="ignore"):
            outside = ~((values >= least) & (values <= most)) & ~missing
        if outside.any():
            finite = np.isfinite(values)
            rule = range_rule(feature)
            wrong |= {row: rule if finite[row] else "must be a finite number" for row in np.flatnonzero(outside).tolist()}
    return values, wrong


def _floats(column: pa.ChunkedArray) -> tuple[Any, Any]:
    """The column as float64 with NaN in the gaps, and the mask of the gaps."""
    missing = column.is_null().to_numpy()
    number = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
    return number.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(), missing


def _category(feature: Feature, column: pa.ChunkedArray, unknown: Unknown, *, cells: bool) -> tuple[Any, dict[int, str]]:
    if cells:
        column = compute.utf8_ltrim(column, " ")
    codes = compute.index_in(column, pa.array(feature.categories, pa.string()))
    unknown_text = codes.is_null().to_numpy()
    values = codes.cast(pa.float64()).fill_null(np.nan).to_numpy()
    if not unknown_text.any():
        return values, {}
    missing = column.is_null().to_numpy()
    if cells:
        missing = missing | compute.is_in(column, pa.array(EMPTY, pa.string())).to_numpy() & unknown_text
    unseen = unknown_text & ~missing
    values = np.where(unseen, UNSEEN if unknown == "unseen" else np.nan, values)
    wrong = {} if feature.nullable else dict.fromkeys(np.flatnonzero(missing).tolist(), "must not be null")
    if unknown == "refuse" and unseen.any():
        wrong |= dict.fromkeys(np.flatnonzero(unseen).tolist(), UNKNOWN_CATEGORY)
    return values, wrong


def _one_by_one(feature: Feature, column: pa.ChunkedArray, unknown: Unknown, *, cells: bool) -> tuple[Any, dict[int, str]]:
    """Read texts in place of numbers or booleans, and decimal numbers, as the value that a client sends in a request."""
    empty = frozenset(EMPTY)
    truths = {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}
    values, wrong = [], {}
    for row, value in enumerate(column.to_pylist()):
        sent = value
        if cells and value is not None:
            text = value.lstrip(" ")
            sent = None if text in empty else truths.get(text, text) if feature.kind == "boolean" else _cell(feature, text)
        elif value is not None and not isinstance(value, str | bool):
            sent = float(value)
        number, problem = read_value(feature, sent, unknown)
        values.append(number)
        if problem is not None:
            wrong[row] = problem[1]
    return np.array(values, dtype=np.float64), wrong


def _cell(feature: Feature, text: str) -> str | float:
    """The text of a cell; of a number the number, which tables also write as `.5`, `5.` or `+5`."""
    return float(text) if feature.kind == "number" and _CELL_NUMBER.fullmatch(text) else text
