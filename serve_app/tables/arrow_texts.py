"""Arrow columns of texts, or of whole numbers that represent texts."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import compute

from serve_app.artifacts.signature import EXACT


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a text type."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def whole_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers as digits, NaN as null, and other numbers as their text."""
    if not pa.types.is_floating(column.type):
        return column.cast(pa.string())
    values = column.cast(pa.float64())
    values = compute.if_else(compute.is_nan(values), pa.scalar(None, pa.float64()), values)
    whole = compute.fill_null(compute.less(compute.abs(values), float(EXACT)), False)
    whole = compute.and_(whole, compute.fill_null(compute.equal(values, compute.round(values)), False))
    digits = compute.if_else(whole, values, pa.scalar(None, pa.float64())).cast(pa.int64()).cast(pa.string())
    return compute.coalesce(digits, values.cast(pa.string()))
