"""Dates and times of Arrow as codes, without pandas: for scoring."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import compute

from serve_app.artifacts.dates import MICROSECONDS, DateForm


def date_type(form: DateForm, kind: pa.DataType) -> bool:
    """Whether an Arrow type matches the form: times of day, dates with or without a zone, or numbers."""
    if form.takes_numbers and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return True
    if form.is_time:
        return bool(pa.types.is_time(kind))
    if pa.types.is_timestamp(kind):
        return (kind.tz is not None) == form.zoned
    return bool(pa.types.is_date(kind)) and not form.zoned


def codes(microseconds: Any, gaps: Any) -> npt.NDArray[np.float64]:
    """Microseconds since 1970-01-01 (or since midnight) as codes, shape (rows,), with NaN where `gaps` is true."""
    values: npt.NDArray[np.float64] = np.where(gaps, np.nan, microseconds.astype(np.float64) / MICROSECONDS)
    return values


def arrow_codes(column: pa.ChunkedArray) -> Any:
    """A column of dates, timestamps or times as codes, float64 of shape (rows,) with NaN for nulls.

    It truncates fractions of a microsecond.
    """
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    unit = column.type.unit
    numbers = np.asarray(compute.fill_null(column.cast(pa.int32() if pa.types.is_time32(column.type) else pa.int64()), 0))
    factor = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1}[unit]
    microseconds = numbers.astype(np.int64) * factor if unit != "ns" else numbers // 1_000
    return codes(microseconds, column.is_null().to_numpy())
