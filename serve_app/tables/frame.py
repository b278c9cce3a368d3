"""A file as a pandas frame of numbers, booleans and texts. A value that cannot be learnt from is refused by column and row.

Row numbers in messages begin at 1 below the header.
"""

from __future__ import annotations

import csv
import decimal
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.errors import UsageError
from serve_app.tables.csv_format import EMPTY, check_names, header_names
from serve_app.tables.location import file_kind

MAX_CATEGORIES = 500
"""Different texts in one column, at most: a column with more holds identifiers or free text."""

LARGEST = float(np.finfo(np.float32).max)
"""Trees compare float32 values: they cannot learn from larger ones."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?|\d{1,2}[./]\d{1,2}[./]\d{4}")


def read_table(path: Path) -> pd.DataFrame:
    """The raw columns of a Parquet file, else of a CSV file; raises UsageError when it cannot be read or has no rows."""
    parquet = file_kind(path.name) == "parquet"
    try:
        if parquet:
            frame = pd.read_parquet(path)
            names = [str(name) for name in frame.columns]
        else:
            names = _csv_header(path)
            check_names(names)
            frame = pd.read_csv(
                path,
                low_memory=False,
                skipinitialspace=True,
                encoding="utf-8-sig",
                index_col=False,
                na_values=list(EMPTY),
                keep_default_na=False,
            )
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give the path of a CSV or Parquet file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder: give the path of a CSV or Parquet file") from None
    except PermissionError:
        raise UsageError(f"{path} may not be read by this user: change its permissions") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text: save it as CSV in UTF-8, or as Parquet") from None
    except pd.errors.EmptyDataError:
        raise UsageError(f"{path} is empty: it needs a header line and rows") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, csv.Error) as error:
        raise UsageError(f"{path} cannot be read as CSV: {_first_line(error)}") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of these
        kind = "Parquet" if parquet else "CSV"
        raise UsageError(f"{path} cannot be read as {kind}: {_first_line(error)}") from None
    check_names(names)
    frame.columns = pd.Index(names)
    if not len(frame):
        raise UsageError(f"{path} has a header but no rows")
    return frame.reset_index(drop=True)


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
        raise UsageError(f"column '{name}' holds numbers, but row {row} says '{text}': put a number there or leave it empty")
    if all(_DATE.fullmatch(text) for text in distinct[:100]):
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


def _csv_header(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return header_names(file, path)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
