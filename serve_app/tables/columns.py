"""A part of the input as the coded matrix of the model, checked by the rules for requests.

Scoring reads a CSV cell like training (missing values, spaces before a value), and then applies the rules of the served API.
pyarrow reads whole columns. For a column that it cannot read, the function that reads requests reads each value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from serve_app.artifacts.fields import Rule, Unknown
from serve_app.artifacts.matrix import Matrix, matrix_type
from serve_app.artifacts.signature import Feature, Signature, missing_numbers
from serve_app.errors import UsageError
from serve_app.tables.arrow_columns import Coding, accepted_types, coded, plain_column, plain_type
from serve_app.tables.cells import check_no_nul, needs_records, parse_columns, records, uneven
from serve_app.tables.content import open_content
from serve_app.tables.csv_format import is_number
from serve_app.tables.header import Header
from serve_app.tables.location import Location, hive_keys, translate_errors
from serve_app.tables.splits import Part

BATCH_ROWS = 65_536
"""Maximum number of rows of a Parquet file in memory at once."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a part: the coded matrix (rows, features), the kept columns, and the problems by the row's index in the matrix."""

    matrix: Matrix
    kept: pa.Table
    problems: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reading:
    """The options for reading parts: the features of the model, the columns to keep, and the rule for unseen categories."""

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
            raise UsageError(f"{path} has no column '{feature.name}', which the model needs; its columns are: {known}")
    if names.isdisjoint(reading.signature.names):  # every feature may be missing, but not all features
        wanted = ", ".join(reading.signature.names[:20])
        raise UsageError(f"{path} has no column of the model ({wanted}); its columns are: {known}")
    for name in reading.keep:
        if name not in names:
            raise UsageError(f"--keep '{name}' does not name a column of {path}; its columns are: {known}")


def check_types(reading: Reading, schema: pa.Schema, path: str) -> None:
    """Raise UsageError when a column of a Parquet file has a type that its feature does not accept."""
    types = dict(zip(schema.names, schema.types, strict=True))
    for feature in reading.signature.features:
        if feature.name in types:
            kind = plain_type(types[feature.name])
            if (takes := accepted_types(feature, kind)) is not None:
                raise UsageError(f"{path}: column '{feature.name}' holds {kind}, but the model takes {takes}")


def csv_rows(location: Location, part: Part, header: Header, reading: Reading) -> Iterator[Rows]:
    """All rows of a part at once; raises UsageError when their number differs from the count at the split of the file."""
    with translate_errors(part.path), open_content(location, part.path, header.dialect.form) as file:
        raw: bytes = file.read_at(part.stop - part.start, part.start)
    check_no_nul(raw, part.path, part.first_row)
    keys = hive_keys(location, part.path)
    rows = _read_columns(raw, header, reading, keys) or _read_records(raw, header, reading, part, keys)
    if len(rows.matrix) != part.rows:
        raise UsageError(
            f"{part.path}: a part has {len(rows.matrix)} rows, but {part.rows} were counted from row {part.first_row + 1} on: "
            "end lines with LF or CRLF, double the quotes inside a quoted value, and do not change the file during the scoring"
        )
    yield rows


def _read_columns(raw: bytes, header: Header, reading: Reading, keys: Mapping[str, str | None]) -> Rows | None:
    """Read with pyarrow; None for text that only Python's csv module reads like training."""
    if needs_records(raw, header.dialect.separator):
        return None
    columns_of_file = frozenset(header.columns)
    features = [feature for feature in reading.signature.features if feature.name in columns_of_file]
    names = [feature.name for feature in features]
    numbers = {feature.name for feature in features if feature.kind == "number" and feature.unit is None}
    known = missing_numbers(reading.signature.missing_texts)  # `check_numbers` finds these by their value
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
            columns = {name: plain_column(table.column(name)) for name in table.column_names}
            kept = table.select([name for name in reading.keep if name in names])
            yield _rows(columns, reading, kept, table.num_rows, keys)
    if count != part.rows:
        raise UsageError(f"{part.path} changed during the scoring: start again with --restart")


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
    """The rows from columns by name and from keys of folders; with `decimal`, texts are CSV cells with this decimal mark."""
    by_row = dict(problems or {})
    matrix = np.full((count, len(reading.signature.features)), np.nan, matrix_type(has_texts=reading.signature.has_texts))
    for at, feature in enumerate(reading.signature.features):
        if feature.name in columns:
            values, wrong = coded(feature, columns[feature.name], Coding(reading.signature, reading.unknown, decimal))
        elif feature.name in keys:
            values, wrong = _key(feature, keys[feature.name], reading, count)
        else:
            continue
        matrix[:, at] = values
        for row, (_, message) in wrong.items():
            if row not in (problems or {}):
                by_row[row] = f"{by_row[row]}; {feature.name}: {message}" if row in by_row else f"{feature.name}: {message}"
    table = kept if kept is not None else pa.table({})
    for name in reading.keep:
        if name not in table.column_names:
            table = table.append_column(name, pa.array([keys[name]] * count, pa.string()))
    return Rows(matrix, table.select(list(reading.keep)) if reading.keep else pa.table({}), by_row)


def _key(feature: Feature, value: str | None, reading: Reading, count: int) -> tuple[Any, dict[int, Rule]]:
    """The value of a folder's key for every row, as float64 or as text."""
    column = pa.chunked_array([pa.array([value], pa.string())])
    values, wrong = coded(feature, column, Coding(reading.signature, reading.unknown, "."))
    return np.full(count, values[0]), dict.fromkeys(range(count), wrong[0]) if wrong else {}
