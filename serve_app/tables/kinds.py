"""Text columns as numbers, booleans or texts with missing values, for training on CSV files.

Digits that are not an exact number (leading zeros, telephone numbers, whole numbers beyond 2^53) stay texts, unless a flag declares
a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from serve_app.artifacts.signature import EXACT, Kind, missing_numbers
from serve_app.tables.csv_format import FALSE, TRUE
from serve_app.tables.numerals import CODE, DIGITS, LONG, is_inexact

_GROUP_CELLS = 200_000
"""Maximum number of cells that one call of pyarrow converts; columns of a wide table share calls, which are expensive."""

_TRUTHS = pa.array([*TRUE, *FALSE], pa.string())
_CODE_STARTS = pa.array([f"{start}{digit}" for start in "0+" for digit in range(10)], pa.string())


@dataclass(frozen=True, slots=True)
class Typed:
    """A column: int64, float64, bool, or objects with NaN for missing values.

    `words` count the texts that mean a missing value, without the empty text; `first_gap` is the first such text, which may be
    empty, with its row from 1.
    """

    values: Any
    is_text: bool = False
    words: Mapping[str, int] = field(default_factory=dict)
    first_gap: tuple[int, str] | None = None


def typed_columns(
    table: pa.Table, missing: Sequence[str], decimal: str, kinds: Mapping[str, Kind] | None = None
) -> dict[str, Typed]:
    """The columns of a table of texts; texts in `missing`, and numbers that equal one of them, are missing values.

    `kinds` are the kinds that flags declare. A column that does not fit its declared kind stays texts; `frame.plain_column` refuses
    it.
    """
    names, rows = table.column_names, table.num_rows
    size = max(1, _GROUP_CELLS // max(rows, 1))
    typed: dict[str, Typed] = {}
    if not rows:
        return {name: Typed(np.array([], np.float64)) for name in names}
    for start in range(0, len(names), size):
        group = names[start : start + size]
        chunks = [chunk for name in group for chunk in table.column(name).chunks]
        declared = [(kinds or {}).get(name) for name in group]
        typed |= zip(group, _convert(pa.chunked_array(chunks, pa.string()), declared, tuple(missing), decimal), strict=True)
    return typed


def _convert(cells: pa.ChunkedArray, kinds: Sequence[Kind | None], missing: tuple[str, ...], decimal: str) -> Iterator[Typed]:
    """The columns with these declared kinds; `cells` holds the columns one after the other."""
    count = len(kinds)
    texts = compute.utf8_ltrim(cells, " ")
    gaps = compute.fill_null(compute.is_in(texts, pa.array(missing, pa.string())), True)
    values = compute.if_else(gaps, pa.scalar(None, pa.string()), texts) if compute.any(gaps).as_py() else texts
    if count > 1:
        texts, values = texts.combine_chunks(), values.combine_chunks()
    rows = len(texts) // count
    masks: Any = np.asarray(gaps).reshape(count, rows)
    sentinels = list(missing_numbers(missing))
    start = 0
    for block in _numbers(values, count, decimal):
        stop = start + len(block)
        own = slice(start * rows, stop * rows)
        yield from _columns(block, texts[own], values[own], masks[start:stop], sentinels, kinds[start:stop])
        start = stop


def _columns(
    block: Any, texts: Any, values: Any, mask: Any, sentinels: Sequence[float], kinds: Sequence[Kind | None]
) -> Iterator[Typed]:
    """The columns of a block, float64 of shape (columns, rows); a column of texts is NaN in it."""
    rows = block.shape[1]
    others: Any = (np.isnan(block) & ~mask).any(axis=1) | _stay_texts(block, values, kinds)
    equal = np.isin(block, sentinels) if sentinels else None
    if equal is not None:
        mask = mask | (equal & ~others[:, None])
        block = np.where(equal, np.nan, block)
    gaps: Any = mask.any(axis=1)
    whole: Any = ~gaps & (block == np.rint(block)).all(axis=1)
    integers = _integers(values) if whole.all() else None
    for at in range(len(block)):
        own = slice(at * rows, (at + 1) * rows)
        words, first = _words(texts[own], mask[at]) if gaps[at] else ({}, None)
        if others[at]:
            yield _texts(values[own], words, first, kinds[at])
        elif whole[at]:
            column = integers[own] if integers is not None else _integers(values[own])
            yield Typed(block[at] if column is None else column)
        else:
            yield Typed(block[at], words=words, first_gap=first)


def _numbers(values: Any, count: int, decimal: str) -> Iterator[Any]:
    """Blocks of columns as float64, shape (columns, rows), NaN for missing values; a column with other texts is all NaN."""
    array = _cast(values, decimal)
    rows = len(values) // count
    if array is not None:
        yield array.reshape(count, rows)
    elif count == 1:
        yield np.full((1, rows), np.nan)
    else:
        half = count // 2
        yield from _numbers(values[: half * rows], half, decimal)
        yield from _numbers(values[half * rows :], count - half, decimal)


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
    """Numbers with a decimal comma as numbers with a point; a text with a point is not a number and must not become a number."""
    return compute.replace_substring(compute.replace_substring(values, ".", "_."), ",", ".")


def _integers(values: Any) -> Any:
    """int64 for texts of whole numbers without a fraction; None for other texts."""
    try:
        return np.asarray(compute.cast(compute.utf8_trim_whitespace(values), pa.int64()))
    except pa.ArrowInvalid:
        return None


def _stay_texts(block: Any, values: Any, kinds: Sequence[Kind | None]) -> Any:
    """The mask of the columns of numbers that stay texts: declared categories, codes like 007, and inexact whole numbers."""
    stay = np.array([kind == "category" for kind in kinds])
    guessed = np.array([kind is None for kind in kinds])
    whole: Any = guessed & (np.isnan(block) | (block == np.rint(block))).all(axis=1)
    if not whole.any():
        return stay
    rows = block.shape[1]
    starts = compute.is_in(compute.utf8_slice_codeunits(values, 0, 2), _CODE_STARTS)
    with np.errstate(invalid="ignore"):
        suspects: Any = whole & (np.asarray(starts).reshape(block.shape).any(axis=1) | (np.abs(block) >= EXACT).any(axis=1))
    for at in np.flatnonzero(suspects):
        stay[at] = _are_codes(values[at * rows : (at + 1) * rows])
    return stay


def _are_codes(values: Any) -> bool:
    """Whether whole numbers have the form of codes, or more digits than float64 can distinguish."""
    digits = compute.all(compute.match_substring_regex(values, DIGITS)).as_py()
    if digits and compute.any(compute.match_substring_regex(values, CODE)).as_py():
        return True
    long = values.filter(compute.fill_null(compute.match_substring_regex(values, LONG), False))
    return any(map(is_inexact, long.to_pylist()))


def _texts(values: Any, words: Mapping[str, int], first: tuple[int, str] | None, kind: Kind | None) -> Typed:
    """A column of texts; without a declared kind, texts that are all truth values become booleans."""
    if kind is None and compute.all(compute.is_in(compute.unique(values).drop_null(), _TRUTHS)).as_py():
        truths = np.asarray(compute.is_in(values, pa.array(TRUE, pa.string())))
        gaps = np.asarray(values.is_null())
        return Typed(np.where(gaps, np.nan, truths.astype(object)) if gaps.any() else truths, words=words, first_gap=first)
    objects = values.to_pandas().astype(object)
    return Typed(objects.where(objects.notna(), np.nan).to_numpy(), is_text=True, words=words, first_gap=first)


def _words(texts: Any, mask: Any) -> tuple[dict[str, int], tuple[int, str]]:
    """The counts of the texts that mean a missing value, without the empty text; and the first one with its row from 1."""
    at = int(np.flatnonzero(mask)[0])
    counts = compute.value_counts(compute.filter(texts, pa.array(mask))).to_pylist()
    words = {count["values"]: int(count["counts"]) for count in counts if count["values"]}
    return words, (at + 1, texts[at].as_py() or "")
