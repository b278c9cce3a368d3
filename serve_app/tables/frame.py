"""A file as a pandas frame of numbers, booleans and texts. A value that cannot be learnt from is refused by column and row.

Row numbers in messages begin at 1 below the header.
"""

from __future__ import annotations

import decimal
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from serve_app.artifacts.manifest import sha256
from serve_app.artifacts.signature import MISSING, missing_numbers
from serve_app.errors import UsageError
from serve_app.tables.cells import read_cells
from serve_app.tables.content import open_content
from serve_app.tables.csv_format import check_names
from serve_app.tables.dates import dates_within
from serve_app.tables.dialect import DialectFlags
from serve_app.tables.header import INDEX, csv_header
from serve_app.tables.kinds import Typed, typed_columns
from serve_app.tables.location import Location, Source, hive_keys, sources, translate_errors

MAX_CATEGORIES = 500
"""Different texts in one column, at most: a column with more holds identifiers or free text."""

LARGEST = float(np.finfo(np.float32).max)
"""Trees compare float32 values: they cannot learn from larger ones."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a table, at least one.

    `sha256` is that of the file, or of the hashes and names of several files. `description` says how they were read, `remarks` what
    is worth a look. `missing` are the texts that mean a missing value, `gaps` the first gap of a column that is written as a text,
    with its row from 1. `left_out` are columns that an export of an index has left.
    """

    frame: pd.DataFrame
    sha256: str
    description: str
    missing: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    gaps: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def read_table(path: Path, *, flags: DialectFlags | None = None, missing: Sequence[str] | None = None) -> Table:
    """The table of a CSV or Parquet file, or of a folder of such files; raises UsageError when it cannot be read or has no rows.

    `missing` replaces the texts that mean a missing value; the empty text is always one. In Parquet, where gaps are no texts, only
    these texts mean a missing value.
    """
    location = Location(str(path))
    words = MISSING if missing is None else tuple(dict.fromkeys(["", *missing]))
    kind, files = sources(location)
    if kind == "parquet":
        table = _read_parquet(location, files, words, explicit=missing is not None)
    else:
        table = _read_csv(location, files, words, flags or DialectFlags())
    if not len(table.frame):
        raise UsageError(f"{path} has a header but no rows")
    return table


def _read_csv(location: Location, files: Sequence[Source], words: tuple[str, ...], flags: DialectFlags) -> Table:
    tables: list[pa.Table] = []
    first = None
    for source in files:
        with translate_errors(source.path):
            header = csv_header(location, source.path, source.size, flags)
            with open_content(location, source.path, header.dialect.form) as file:
                raw: bytes = file.read_at(header.size - header.start, header.start)
        cells = _with_keys(read_cells(raw, header, source.path), hive_keys(location, source.path))
        first = first or header
        if tables and (set(cells.column_names), header.dialect.decimal) != (set(tables[0].column_names), first.dialect.decimal):
            raise UsageError(
                f"{source.path} has other columns or another decimal mark than {files[0].path}: train on them separately"
            )
        tables.append(cells.select(tables[0].column_names) if tables else cells)
    assert first is not None  # `sources` names at least one file
    table = pa.concat_tables(tables)
    check_names(table.column_names)
    typed = typed_columns(table, words, first.dialect.decimal)
    return Table(
        frame=_frame(typed, table.num_rows),
        sha256=_digest(location, files),
        description=f"read as CSV: {first.dialect.description}" + (f", {len(files)} files" if len(files) > 1 else ""),
        missing=words,
        remarks=(*first.remarks, *_gap_remarks(typed, hint=words == MISSING)),
        gaps={name: column.first_gap for name, column in typed.items() if column.first_gap is not None},
        left_out=first.index,
    )


def _read_parquet(location: Location, files: Sequence[Source], words: tuple[str, ...], *, explicit: bool) -> Table:
    tables: list[pa.Table] = []
    for source in files:
        try:
            with location.filesystem.open_input_file(source.path) as file:
                table = parquet.ParquetFile(file).read()
        except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of these
            raise UsageError(f"{source.path} cannot be read as Parquet: {_first_line(error)}") from None
        check_names(table.column_names)
        tables.append(_with_keys(table, hive_keys(location, source.path)))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
        frame = table.to_pandas()
    except (pa.ArrowException, ValueError) as error:
        raise UsageError(f"{location.redacted} cannot be read as Parquet: {_first_line(error)}") from None
    frame.columns = pd.Index([str(name) for name in frame.columns])
    keys = [name for name in hive_keys(location, files[0].path) if name in frame.columns]
    for name, column in typed_columns(table.select(keys), words, ".").items():
        frame[name] = column.values
    gaps: dict[str, tuple[int, str]] = {}
    if explicit:
        for name in frame.columns:
            frame[name], first = _without_words(frame[name], words)
            if first is not None:
                gaps[name] = first
    index = [str(name) for name in frame.columns[:1] if INDEX.fullmatch(str(name)) and len(frame.columns) > 1]
    index += [str(name) for name in frame.columns if re.fullmatch(r"__index_level_\d+__", str(name))]
    return Table(
        frame=frame.drop(columns=index).reset_index(drop=True),
        sha256=_digest(location, files),
        description="read as Parquet" + (f", {len(files)} files" if len(files) > 1 else ""),
        missing=words,
        remarks=tuple(f"the column '{name}' is an exported index and left out" for name in index),
        gaps=gaps,
        left_out=tuple(index),
    )


def _with_keys(table: pa.Table, keys: Mapping[str, str | None]) -> pa.Table:
    """The table with a column of text for each key of its folders."""
    for name, value in keys.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


def _without_words(column: pd.Series[Any], words: tuple[str, ...]) -> tuple[pd.Series[Any], tuple[int, str] | None]:
    """The column with gaps in place of the texts and numbers that mean a missing value, and the first of them with its row."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return column, None
    wanted: list[Any] = list(missing_numbers(words)) if pd.api.types.is_numeric_dtype(column.dtype) else list(words)
    gaps = column.isin(wanted)
    if not gaps.any():
        return column, None
    row = first_row(gaps)
    return column.mask(gaps), (row, str(column.iloc[row - 1]))


def _frame(columns: Mapping[str, Typed], rows: int) -> pd.DataFrame:
    """The columns side by side; those of float64 as one block, because pandas takes long for each array of a wide table."""
    index = pd.RangeIndex(rows)
    floats = [name for name, column in columns.items() if column.values.dtype == np.float64]
    block = np.array([columns[name].values for name in floats], np.float64).reshape(len(floats), rows).T
    others = {name: column.values for name, column in columns.items() if column.values.dtype != np.float64}
    parts = [pd.DataFrame(block, index=index, columns=floats), pd.DataFrame(others, index=index)]
    return pd.concat(parts, axis=1)[list(columns)]


def _gap_remarks(columns: Mapping[str, Typed], *, hint: bool) -> list[str]:
    """A remark on each column in which a text is read as a missing value, ten at most; `hint`: no flag has said so."""
    remarks: list[str] = []
    for name, column in columns.items():
        if column.words and len(remarks) < 10:
            counts = ", ".join(f"'{word}' in {count} rows" for word, count in column.words.items())
            advice = ": --na '' keeps such texts as values" if hint and column.is_text else ""
            remarks.append(f"column '{name}': {counts} is read as missing{advice}")
    return remarks


def _digest(location: Location, files: Sequence[Source]) -> str:
    digests = []
    for source in files:
        with translate_errors(source.path), location.filesystem.open_input_file(source.path) as file:
            digests.append((sha256(file.read()), source.path.removeprefix(location.path)))
    return digests[0][0] if len(files) == 1 else sha256("\n".join(map("  ".join, digests)).encode())


def plain_column(name: str, column: pd.Series[Any]) -> pd.Series[Any]:
    """A feature as float64, booleans or texts; booleans and texts with gaps are of type object with NaN.

    Raises UsageError for dates, mixed kinds, infinite numbers, an empty column and too many different texts.
    """
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf":  # most columns: wide tables have thousands of them
        return _checked(name, column.to_numpy(dtype=np.float64), column.index)
    if column.isna().all():
        raise _empty(name)
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype if not column.isna().any() else object)
    if pd.api.types.is_bool_dtype(column.dtype):
        return _booleans(column)
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        return _numbers(name, column)
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or pd.api.types.is_timedelta64_dtype(column.dtype):
        raise _dates(name)
    return _objects(name, column)


def first_row(mask: Any) -> int:
    """The number of the first row where `mask` is true; rows count from 1."""
    return int(np.flatnonzero(np.asarray(mask))[0]) + 1


def _objects(name: str, column: pd.Series[Any]) -> pd.Series[Any]:
    filled = column.dropna()
    kinds = {_kind(value) for value in filled.map(type).unique()}
    if kinds == {"boolean"}:
        return _booleans(column)
    if kinds == {"number"}:
        return _numbers(name, column)
    if kinds == {"date"}:
        raise _dates(name)
    if kinds != {"text"}:
        if len(kinds) == 1:
            raise UsageError(f"column '{name}' holds values that are no number, boolean or text: leave it out with --drop '{name}'")
        first = _kind(type(filled.iloc[0]))
        at = next(at for at, value in enumerate(filled) if _kind(type(value)) != first)
        row, other = int(np.asarray(filled.index)[at]) + 1, _kind(type(filled.iloc[at]))
        raise UsageError(f"column '{name}' mixes kinds, {first} and {other} (row {row}): unify them, or --drop '{name}'")
    return _texts(name, column)


def _texts(name: str, column: pd.Series[Any]) -> pd.Series[Any]:
    texts = column.astype(object).where(column.notna(), np.nan)
    filled = texts.dropna()
    distinct = filled.unique()
    numeric = pd.to_numeric(pd.Series(distinct, dtype=object), errors="coerce").notna()
    numbers = set(distinct[numeric.to_numpy()])
    other = np.array([text not in numbers for text in filled])
    if other.mean() <= 0.5:
        if not other.any():
            return _numbers(name, pd.to_numeric(texts))
        at = int(other.argmax())
        row, text = int(np.asarray(filled.index)[at]) + 1, str(filled.iloc[at])[:40]
        raise UsageError(
            f"column '{name}' holds numbers, but row {row} says '{text}': "
            f"put a number there, leave it empty, or read it as missing with --na {shlex.quote(text)}"
        )
    if dates_within(distinct.tolist()):
        raise _dates(name)
    if len(distinct) > MAX_CATEGORIES or (len(distinct) > 50 and len(distinct) > 0.5 * len(filled)):
        raise UsageError(
            f"column '{name}' holds {len(distinct)} different texts in {len(filled)} rows, too many for a category: "
            f"group them, or leave it out with --drop '{name}'"
        )
    return texts


def _numbers(name: str, column: pd.Series[Any]) -> pd.Series[Any]:
    values = column.astype("Float64" if pd.api.types.is_extension_array_dtype(column.dtype) else "float64")
    return _checked(name, values.to_numpy(dtype=np.float64, na_value=np.nan), column.index)


def _checked(name: str, numbers: npt.NDArray[Any], index: pd.Index[Any]) -> pd.Series[Any]:
    """The numbers as a column; raises UsageError when all are gaps or one is too large."""
    if np.isnan(numbers).all():
        raise _empty(name)
    beyond = np.abs(numbers) > LARGEST
    if beyond.any():
        raise UsageError(
            f"column '{name}' is infinite or beyond {LARGEST:.1e} in row {first_row(beyond)}: correct it or leave it empty"
        )
    return pd.Series(numbers, index=index, copy=False)


def _empty(name: str) -> UsageError:
    return UsageError(f"column '{name}' is empty in every row: fill it, or leave it out with --drop '{name}'")


def _booleans(column: pd.Series[Any]) -> pd.Series[Any]:
    if column.isna().any():
        return column.astype(object).where(column.notna(), np.nan)
    return column.astype(bool)


def _kind(kind: type) -> str:
    if issubclass(kind, bool | np.bool_):
        return "boolean"
    if issubclass(kind, int | float | np.integer | np.floating | decimal.Decimal):
        return "number"
    if issubclass(kind, str):
        return "text"
    if hasattr(kind, "isoformat"):
        return "date"
    return "something else"


def _dates(name: str) -> UsageError:
    return UsageError(
        f"column '{name}' holds dates: turn them into numbers (days since a day), or leave it out with --drop '{name}'"
    )


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
