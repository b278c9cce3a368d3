"""Columns of texts as numbers, booleans or texts with gaps: what training makes of the cells of a CSV file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import compute

from serve_app.artifacts.signature import missing_numbers
from serve_app.tables.csv_format import FALSE, TRUE, is_number, with_decimal_point

_GROUP_CELLS = 200_000
"""Columns of a wide table are converted together, up to so many cells: a call of pyarrow costs as much as many cells."""

_TRUTHS = pa.array([*TRUE, *FALSE], pa.string())


@dataclass(frozen=True, slots=True)
class Typed:
    """A column: int64, float64, bool, or objects with NaN in the gaps.

    `words` count the texts that were read as a missing value, without the empty one; `first_gap` is the first such text, which may
    be empty, with its row from 1.
    """

    values: Any
    is_text: bool = False
    words: Mapping[str, int] = field(default_factory=dict)
    first_gap: tuple[int, str] | None = None


def typed_columns(table: pa.Table, missing: Sequence[str], decimal: str) -> dict[str, Typed]:
    """The columns of a table of texts; `missing` texts are gaps, as are numbers that equal one of them."""
    names, rows = table.column_names, table.num_rows
    size = max(1, _GROUP_CELLS // max(rows, 1))
    typed: dict[str, Typed] = {}
    if not rows:
        return {name: Typed(np.array([], np.float64)) for name in names}
    for start in range(0, len(names), size):
        group = names[start : start + size]
        chunks = [chunk for name in group for chunk in table.column(name).chunks]
        typed |= zip(group, _convert(pa.chunked_array(chunks, pa.string()), len(group), tuple(missing), decimal), strict=True)
    return typed


def _convert(cells: pa.ChunkedArray, count: int, missing: tuple[str, ...], decimal: str) -> Iterator[Typed]:
    """So many columns, which stand one after the other in `cells`."""
    texts = compute.utf8_ltrim(cells, " ")
    gaps = compute.fill_null(compute.is_in(texts, pa.array(missing, pa.string())), True)
    values = compute.if_else(gaps, pa.scalar(None, pa.string()), texts)
    if count > 1:
        texts, gaps, values = texts.combine_chunks(), gaps.combine_chunks(), values.combine_chunks()
    rows = len(texts) // count
    masks: Any = np.asarray(gaps).reshape(count, rows)
    some: Any = masks.any(axis=1)
    numbers = missing_numbers(missing)
    for at, floats in enumerate(_floats(values, count, decimal)):
        own, mask = slice(at * rows, (at + 1) * rows), masks[at]
        words, first = _words(texts[own], mask) if some[at] else ({}, None)
        if floats is None or (np.isnan(floats) & ~mask).any():
            yield _texts(values[own], words, first, decimal)
            continue
        if numbers and (sentinels := np.isin(floats, list(numbers))).any():
            floats, mask = np.where(sentinels, np.nan, floats), mask | sentinels
            words, first = _words(texts[own], mask)
        yield Typed(_whole(values[own], floats, mask), words=words, first_gap=first)


def _floats(values: Any, count: int, decimal: str) -> Iterator[Any]:
    """Each column as float64 with NaN in the gaps; None for a column that is not of numbers alone."""
    array = _cast(values, decimal)
    rows = len(values) // count
    if array is not None:
        yield from array.reshape(count, rows)
    elif count == 1:
        yield None
    else:
        half = count // 2
        yield from _floats(values[: half * rows], half, decimal)
        yield from _floats(values[half * rows :], count - half, decimal)


def _cast(values: Any, decimal: str) -> Any:
    if decimal == ",":
        values = decimal_points(values)
    for trimmed in (False, True):
        texts = compute.utf8_trim_whitespace(values) if trimmed else values
        try:
            return np.asarray(compute.fill_null(compute.cast(texts, pa.float64()), np.nan))
        except pa.ArrowInvalid:
            continue
    return None


def decimal_points(values: Any) -> Any:
    """Numbers with a decimal comma as numbers with a point; a text with a point is no number and becomes none."""
    return compute.replace_substring(compute.replace_substring(values, ".", "_."), ",", ".")


def _whole(values: Any, floats: Any, mask: Any) -> Any:
    """int64 for whole numbers without a gap that are written as such, else the floats."""
    if mask.any() or not (floats == np.rint(floats)).all():
        return floats
    try:
        return np.asarray(compute.cast(compute.utf8_trim_whitespace(values), pa.int64()))
    except pa.ArrowInvalid:
        return floats


def _texts(values: Any, words: Mapping[str, int], first: tuple[int, str] | None, decimal: str) -> Typed:
    """A column with at least one text that is no number."""
    distinct = compute.unique(values).drop_null()
    if compute.all(compute.is_in(distinct, _TRUTHS)).as_py():
        truths = np.asarray(compute.is_in(values, pa.array(TRUE, pa.string())))
        gaps = np.asarray(values.is_null())
        return Typed(np.where(gaps, np.nan, truths.astype(object)) if gaps.any() else truths, words=words, first_gap=first)
    objects = values.to_pandas().astype(object)
    objects = objects.where(objects.notna(), np.nan)
    if decimal == ",":
        objects = _with_points(objects, distinct.to_pylist())
    return Typed(objects.to_numpy(), is_text=True, words=words, first_gap=first)


def _with_points(texts: pd.Series[Any], distinct: Sequence[str]) -> pd.Series[Any]:
    """The texts with decimal points where most of them are numbers with a decimal comma, so that the others can be named."""
    numbers = {text: with_decimal_point(text) for text in distinct if is_number(with_decimal_point(text))}
    known = texts.isin(list(numbers))
    return texts.where(~known, texts.map(numbers)) if known.sum() * 2 > texts.notna().sum() else texts


def _words(texts: Any, mask: Any) -> tuple[dict[str, int], tuple[int, str]]:
    """How often each text stands in the gaps, without the empty one; and the first gap with its row from 1."""
    at = int(np.flatnonzero(mask)[0])
    counts = compute.value_counts(compute.filter(texts, pa.array(mask))).to_pylist()
    words = {count["values"]: int(count["counts"]) for count in counts if count["values"]}
    return words, (at + 1, texts[at].as_py() or "")
