"""A file as a pandas frame of numbers, booleans and texts. Errors name the column and the row of an unusable value.

Row numbers in messages begin with 1 below the header.
"""

from __future__ import annotations

import decimal
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyarrow import compute, parquet

from serve_app.artifacts.manifest import sha256
from serve_app.artifacts.manifest_bounds import MAX_NAME
from serve_app.artifacts.signature import EXACT, MISSING, Kind, missing_numbers
from serve_app.errors import UsageError
from serve_app.tables.arrow_texts import whole_texts
from serve_app.tables.cells import read_cells
from serve_app.tables.content import open_content
from serve_app.tables.csv_format import check_names
from serve_app.tables.date_columns import dates_within
from serve_app.tables.dialect import DialectFlags
from serve_app.tables.header import INDEX, csv_header
from serve_app.tables.kinds import Typed, typed_columns
from serve_app.tables.location import Location, Source, hive_keys, sources, translate_errors
from serve_app.tables.numerals import Numeral, is_code, is_inexact, numeral
from serve_app.tables.unusable import UnusableColumn

MAX_CATEGORIES = 500
"""Maximum number of distinct texts in one column; a column with more holds identifiers or free text."""

MAX_DECLARED_CATEGORIES = 5_000
"""Maximum number of distinct texts in a column that a flag declares a category."""

MAX_MIXED = 20
"""Maximum number of distinct values in a category of whole numbers and words; each must be in two rows on average."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest float32. Trees compare numbers as float32, so they cannot be fitted on larger numbers."""


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a table, at least one.

    `sha256` is that of the file, or of the hashes and names of several files. `description` names the format of the files;
    `remarks` are hints for the user. `missing` are the texts that mean a missing value. `gaps` has the first such text of each
    column with its row, from 1. `left_out` are columns of an exported index. `kinds` are the kinds that flags declare; `typed` are
    the columns with a type in the file. `decimal` is the decimal mark of the texts.
    """

    frame: pd.DataFrame
    sha256: str
    description: str
    missing: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    gaps: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    typed: frozenset[str] = frozenset()
    decimal: str = "."

    def column(self, name: str) -> pd.Series[Any]:
        """A column as `plain_column` returns it; raises UnusableColumn."""
        return plain_column(name, self.frame[name], kind=self.kinds.get(name), typed=name in self.typed, decimal=self.decimal)

    def unit(self, name: str) -> str | None:
        """The sign beside the numbers of a column, see `Feature.unit`; None for plain numbers."""
        if self.kinds.get(name) != "number" or pd.api.types.is_numeric_dtype(self.frame[name].dtype):
            return None
        signs = {each.sign for text in self.frame[name].dropna().unique() if (each := numeral(str(text), self.decimal))}
        return max(signs, default="")


def read_table(
    source: Path | Location,
    *,
    flags: DialectFlags | None = None,
    missing: Sequence[str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
) -> Table:
    """The table of a CSV or Parquet file, or of a folder of such files; raises UsageError when it cannot be read or has no rows.

    `missing` replaces the texts that mean a missing value; the empty text is always one of them. In Parquet, which has nulls, no
    other texts mean a missing value. `kinds` are the kinds of columns that flags declare; unknown columns are ignored.
    """
    kinds = kinds or {}
    location = Location.of(source)
    words = MISSING if missing is None else tuple(dict.fromkeys(["", *missing]))
    kind, files = sources(location)
    if kind == "parquet":
        table = _read_parquet(location, files, words, kinds, explicit=missing is not None)
    else:
        table = _read_csv(location, files, words, flags or DialectFlags(), kinds)
    if not len(table.frame):
        raise UsageError(f"{location.redacted} has a header but no rows")
    return table


def _read_csv(
    location: Location, files: Sequence[Source], words: tuple[str, ...], flags: DialectFlags, kinds: Mapping[str, Kind]
) -> Table:
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
                f"{source.path} has other columns or another decimal mark than {files[0].path}: train on these files separately"
            )
        tables.append(cells.select(tables[0].column_names) if tables else cells)
    assert first is not None  # `sources` names at least one file
    table = pa.concat_tables(tables)
    check_names(table.column_names)
    typed = typed_columns(table, words, first.dialect.decimal, kinds)
    return Table(
        frame=_frame(typed, table.num_rows),
        sha256=_digest(location, files),
        description=f"read as CSV: {first.dialect.description}" + (f", {len(files)} files" if len(files) > 1 else ""),
        missing=words,
        remarks=(*first.remarks, *_gap_remarks(typed, hint=words == MISSING)),
        gaps={name: column.first_gap for name, column in typed.items() if column.first_gap is not None},
        left_out=first.index,
        kinds=kinds,
        decimal=first.dialect.decimal,
    )


def _read_parquet(
    location: Location, files: Sequence[Source], words: tuple[str, ...], kinds: Mapping[str, Kind], *, explicit: bool
) -> Table:
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
        keys = hive_keys(location, files[0].path)
        table = pa.concat_tables(tables, promote_options="permissive")
        texts, typed = _as_texts(table, kinds)
        frame = table.to_pandas()
    except (pa.ArrowException, ValueError) as error:
        raise UsageError(f"{location.redacted} cannot be read as Parquet: {_first_line(error)}") from None
    frame.columns = pd.Index([str(name) for name in frame.columns])
    for name, column in texts.items():
        if name in frame.columns:
            frame[name] = column.to_pandas().to_numpy(dtype=object)
    named_keys = [name for name in keys if name in frame.columns]
    for name, key in typed_columns(table.select(named_keys), words, ".", kinds).items():
        frame[name] = key.values
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
        remarks=tuple(f"the column '{name}' is an exported index and is left out" for name in index),
        gaps=gaps,
        left_out=tuple(index),
        kinds=kinds,
        typed=typed - set(keys),
    )


def _as_texts(table: pa.Table, kinds: Mapping[str, Kind]) -> tuple[dict[str, pa.ChunkedArray], frozenset[str]]:
    """Texts by column for whole numbers that are categories or exceed float64, and the columns with a type in the file.

    pandas would read whole numbers with missing values as float64, which rounds them.
    """
    texts: dict[str, pa.ChunkedArray] = {}
    typed = set()
    categorical = _categorical(table)
    for name, column in zip(map(str, table.column_names), table.columns, strict=True):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
        declared = kinds.get(name, "category" if name in categorical or pa.types.is_dictionary(column.type) else None)
        if declared == "category" and (whole or (pa.types.is_floating(kind) and _is_whole(column))):
            texts[name] = whole_texts(column.cast(kind))
        elif whole and declared is None and _is_inexact(column):
            texts[name] = column.cast(pa.string())
            continue
        typed.add(name)
    return texts, frozenset(typed)


def _categorical(table: pa.Table) -> frozenset[str]:
    """The columns that were categories in pandas and are plain numbers in Parquet."""
    columns = (table.schema.pandas_metadata or {}).get("columns", [])
    return frozenset(str(column.get("name")) for column in columns if column.get("pandas_type") == "categorical")


def _is_whole(column: pa.ChunkedArray) -> bool:
    """Whether all values of a float64 column are exact whole numbers, as pandas writes integers with missing values."""
    values = np.asarray(column.cast(pa.float64()).drop_null())
    return bool((np.isnan(values) | ((values == np.rint(values)) & (np.abs(values) < EXACT))).all())


def _is_inexact(column: pa.ChunkedArray) -> bool:
    """Whether a column contains a whole number beyond 2^53."""
    if pa.types.is_integer(column.type) and column.type.bit_width <= 32:
        return False
    ends = compute.min_max(column).as_py()
    return any(end is not None and abs(end) > EXACT for end in ends.values())


def _with_keys(table: pa.Table, keys: Mapping[str, str | None]) -> pa.Table:
    """The table with a text column for each key of its folders."""
    for name, value in keys.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table


def _without_words(column: pd.Series[Any], words: tuple[str, ...]) -> tuple[pd.Series[Any], tuple[int, str] | None]:
    """The column with NaN for the texts and numbers that mean a missing value, and the first of them with its row."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return column, None
    wanted: list[Any] = list(missing_numbers(words)) if pd.api.types.is_numeric_dtype(column.dtype) else list(words)
    gaps = column.isin(wanted)
    if not gaps.any():
        return column, None
    row = first_row(gaps)
    return column.mask(gaps), (row, str(column.iloc[row - 1]))


def _frame(columns: Mapping[str, Typed], rows: int) -> pd.DataFrame:
    """The frame of the columns; float64 columns form one block, because pandas is slow with many arrays."""
    index = pd.RangeIndex(rows)
    floats = [name for name, column in columns.items() if column.values.dtype == np.float64]
    block = np.array([columns[name].values for name in floats], np.float64).reshape(len(floats), rows).T
    others = {name: column.values for name, column in columns.items() if column.values.dtype != np.float64}
    parts = [pd.DataFrame(block, index=index, columns=floats), pd.DataFrame(others, index=index)]
    return pd.concat(parts, axis=1)[list(columns)]


def _gap_remarks(columns: Mapping[str, Typed], *, hint: bool) -> list[str]:
    """A remark on each column with texts that mean a missing value, ten at most; `hint`: no flag declares these texts."""
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


def plain_column(
    name: str, column: pd.Series[Any], *, kind: Kind | None = None, typed: bool = False, decimal: str = "."
) -> pd.Series[Any]:
    """A feature as float64, booleans or texts; booleans and texts with missing values have dtype object with NaN.

    `kind` is the kind that a flag declares. `typed`: the file declares texts, even of digits. Raises UnusableColumn for dates,
    mixed kinds, numbers that are infinite or not exact, an empty column, too many distinct texts, and values that are not of
    `kind`.
    """
    if kind == "category":
        return _declared_category(name, column)
    if kind == "number" and not _are_numbers(column):
        return _declared_numbers(name, column, decimal)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf":  # a fast path for wide tables
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
    return _objects(name, column, typed=typed, decimal=decimal)


def first_row(mask: Any) -> int:
    """The number of the first row where `mask` is true, from 1."""
    return int(np.flatnonzero(np.asarray(mask))[0]) + 1


def _objects(name: str, column: pd.Series[Any], *, typed: bool, decimal: str) -> pd.Series[Any]:
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
            raise UnusableColumn(name, "holds values that are not numbers, booleans or texts")
        first = _kind(type(filled.iloc[0]))
        at = next(at for at, value in enumerate(filled) if _kind(type(value)) != first)
        row, other = int(np.asarray(filled.index)[at]) + 1, _kind(type(filled.iloc[at]))
        raise UnusableColumn(name, f"mixes kinds, {first} and {other} (row {row})", "unify them")
    texts = column.astype(object).where(column.notna(), np.nan)
    return _texts(name, texts) if typed else _guessed(name, texts, decimal)


def _guessed(name: str, texts: pd.Series[Any], decimal: str) -> pd.Series[Any]:
    """Untyped texts that are not all plain numbers, as a category; raises UnusableColumn when most of them are numbers."""
    counts = texts.value_counts()
    numerals = {text: each for text in counts.index if (each := numeral(text, decimal)) is not None}
    plain = [text for text, each in numerals.items() if each.plain]
    if any(map(is_code, plain)) and all(text.strip().lstrip("+").isdigit() for text in plain):
        return _texts(name, texts, f" of digits with leading zeros, like '{next(filter(is_code, plain))}'")
    _check_points(name, texts, counts, numerals, decimal)
    if counts[list(numerals)].sum() * 2 <= counts.sum():
        return _texts(name, texts)
    advice = f"keep its values as texts with --category {shlex.quote(name)}"
    if len(plain) < len(numerals):
        row, text = _first(texts, [text for text, each in numerals.items() if not each.plain])
        value = numerals[text].value
        raise UnusableColumn(
            name,
            f"holds numbers with separators or signs, like '{text}' in row {row}",
            f"read them as numbers ({value:.15g}) with --number {shlex.quote(name)}, {advice}",
        )
    if len(plain) == len(counts) and not any(map(is_inexact, plain)):
        return _numbers(name, texts.map({text: each.value for text, each in numerals.items()}))
    if len(plain) == len(counts):
        row, text = _first(texts, list(filter(is_inexact, plain)))
        raise UnusableColumn(
            name,
            f"holds whole numbers beyond 2^53, like '{text}' in row {row}, which a model cannot distinguish",
            f"{advice}, or round them with --number {shlex.quote(name)}",
        )
    if len(counts) <= MAX_MIXED and len(counts) * 2 <= counts.sum() and all(text.strip().isdigit() for text in plain):
        return _texts(name, texts)
    words = [text for text in counts.index if text not in numerals]
    row, text = _first(texts, words)
    more = f" and there are {len(words) - 1} other texts" if len(words) > 1 else ""
    flags = " ".join(f"--na {shlex.quote(word)}" for word in sorted(words, key=lambda word: word != text)[:5])
    raise UnusableColumn(
        name,
        f"holds numbers, but row {row} says '{text[:40]}'{more}",
        f"put a number there, leave it empty, read it as missing with {flags}{' …' if len(words) > 5 else ''}, {advice}",
    )


def _check_points(name: str, texts: pd.Series[Any], counts: pd.Series[int], numerals: Mapping[str, Numeral], decimal: str) -> None:
    """Raise UnusableColumn when most texts are numbers, but some have the other decimal mark."""
    mark = "," if decimal == "." else "."
    others = [text for text in counts.index if text not in numerals and numeral(text, mark) is not None]
    if others and counts[[*numerals, *others]].sum() * 2 > counts.sum():
        row, text = _first(texts, others)
        word = "comma" if mark == "," else "point"
        raise UnusableColumn(
            name,
            f"holds numbers with a decimal {word}, like '{text}' in row {row}",
            f"read the table with --decimal {mark}, keep its values as texts with --category {shlex.quote(name)}",
        )


def _first(texts: pd.Series[Any], among: Collection[str]) -> tuple[int, str]:
    """The first row that holds one of these texts, and the text."""
    row = first_row(texts.isin(list(among)))
    return row, str(texts.iloc[row - 1])


def _texts(name: str, texts: pd.Series[Any], form: str = "") -> pd.Series[Any]:
    """The texts as a category; raises UnusableColumn for dates and for too many distinct texts, with `form` in the message."""
    filled = texts.dropna()
    distinct = filled.unique()
    if dates_within(distinct.tolist()):
        raise _dates(name)
    if len(distinct) > MAX_CATEGORIES or (len(distinct) > 50 and len(distinct) > 0.5 * len(filled)):
        ways = ["group them"]
        if len(distinct) <= MAX_DECLARED_CATEGORIES:
            ways.append(f"keep them with --category {shlex.quote(name)}")
        if all(numeral(text) is not None for text in distinct[:100]):
            ways.append(f"read them as numbers with --number {shlex.quote(name)}")
        raise UnusableColumn(
            name, f"holds {len(distinct)} different texts in {len(filled)} rows{form}, too many for a category", ", ".join(ways)
        )
    _check_lengths(name, texts, distinct)
    return texts


def _declared_category(name: str, column: pd.Series[Any]) -> pd.Series[Any]:
    """The texts of a column that a flag declares a category; raises UnusableColumn."""
    if column.isna().all():
        raise _empty(name)
    filled = column.dropna()
    values = filled.unique()
    other = next((value for value in values if not isinstance(value, str)), None)
    if other is not None:
        raise UnusableColumn(
            name,
            f"is declared a category (--category), but row {first_row(column == other)} has {other}, not a text or whole number",
            "write texts",
        )
    if len(values) > MAX_DECLARED_CATEGORIES:
        raise UnusableColumn(
            name, f"holds {len(values)} different texts, more than the {MAX_DECLARED_CATEGORIES} of a category", "group them"
        )
    _check_lengths(name, column, values)
    return column.astype(object).where(column.notna(), np.nan)


def _check_lengths(name: str, column: pd.Series[Any], distinct: Iterable[str]) -> None:
    """Raise UnusableColumn for a text that exceeds the length of a category."""
    long = next((text for text in distinct if len(text) > MAX_NAME), None)
    if long is not None:
        raise UnusableColumn(
            name,
            f"holds a text of {len(long)} characters in row {first_row(column == long)}, more than the {MAX_NAME} of a category",
            "shorten it",
        )


def _are_numbers(column: pd.Series[Any]) -> bool:
    """Whether the values are already numbers, including Python objects such as decimals."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return not pd.api.types.is_bool_dtype(column.dtype)
    return not column.isna().all() and {_kind(value) for value in column.dropna().map(type).unique()} == {"number"}


def _declared_numbers(name: str, column: pd.Series[Any], decimal: str) -> pd.Series[Any]:
    """The numbers of a column that a flag declares; raises UnusableColumn for a text that is not a number or has another sign."""
    if column.isna().all():
        raise _empty(name)
    numbers: dict[Any, float] = {}
    sign = None
    for value in column.dropna().unique():
        number = numeral(value, decimal) if isinstance(value, str) else None
        text, row = str(value)[:40], first_row(column == value)
        if number is None:
            raise UnusableColumn(
                name,
                f"is declared a number (--number), but row {row} says '{text}'",
                f"correct it, read it as missing with --na {shlex.quote(text)}",
            )
        if sign is not None and number.sign != sign and ("%" in (sign, number.sign) or (sign and number.sign)):
            raise UnusableColumn(
                name, f"has numbers with '{sign or number.sign}' and, in row {row}, '{text}'", "write all numbers in one unit"
            )
        sign = number.sign or sign or ""
        numbers[value] = number.value
    return _numbers(name, column.map(numbers))


def _numbers(name: str, column: pd.Series[Any]) -> pd.Series[Any]:
    values = column.astype("Float64" if pd.api.types.is_extension_array_dtype(column.dtype) else "float64")
    return _checked(name, values.to_numpy(dtype=np.float64, na_value=np.nan), column.index)


def _checked(name: str, numbers: npt.NDArray[Any], index: pd.Index[Any]) -> pd.Series[Any]:
    """The numbers as a column; raises UnusableColumn when all are missing or a number is too large."""
    if np.isnan(numbers).all():
        raise _empty(name)
    beyond = np.abs(numbers) > LARGEST
    if beyond.any():
        raise UnusableColumn(
            name, f"is infinite or beyond {LARGEST:.1e} in row {first_row(beyond)}", "correct it, leave the cell empty"
        )
    return pd.Series(numbers, index=index, copy=False)


def _empty(name: str) -> UnusableColumn:
    return UnusableColumn(name, "is empty in every row", "fill it")


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


def _dates(name: str) -> UnusableColumn:
    return UnusableColumn(name, "holds dates", "convert them to numbers (days since a date)")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
