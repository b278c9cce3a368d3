"""The input cut into parts that workers take: ranges of bytes of a CSV file, row groups of a Parquet file.

A CSV file is cut where a row ends, which only the quotes before it tell. So each range is looked at for both cases (it begins
outside quotes, or inside), by any worker, and the case is chosen when the ranges before are known.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from pyarrow import parquet

from serve_app.errors import UsageError
from serve_app.tables.location import Location, Source, translate_errors
from serve_app.tables.table import check_names, header_of

PIECE = 1 << 20
NEWLINE, RETURN, QUOTE = b'\n\r"'
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Part:
    """`start` to `stop`: bytes (CSV) or row groups (Parquet) of one file; `first_row` counts from 0 within the file."""

    number: int
    path: str
    start: int
    stop: int
    first_row: int
    rows: int


@dataclass(frozen=True, slots=True)
class Header:
    """The columns of a CSV file, and the byte at which its rows begin."""

    columns: tuple[str, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Range:
    """So many bytes of a CSV file."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RowEnds:
    """The rows that end in a range: how many, where the first does (-1: none), and whether that one is more than an empty line."""

    rows: int = 0
    first: int = -1
    first_counts: bool = False


@dataclass(frozen=True, slots=True)
class RangeScan:
    """What a range holds: quotes, and row ends if it begins outside quotes, or inside."""

    quotes: int
    outside: RowEnds
    inside: RowEnds


def csv_header(place: Location, source: Source) -> Header:
    """Raises UsageError when the file has no usable header line."""
    with translate_errors(source.path), place.filesystem.open_input_file(source.path) as file:
        head: bytes = file.read_at(min(PIECE, source.size), 0)
    skipped = len(BOM) if head.startswith(BOM) else 0
    data = np.frombuffer(head, np.uint8)
    ends = _row_ends(data, 0)[0]
    stop = int(ends[0]) + 1 if len(ends) else len(head)
    if not len(ends) and len(head) < source.size:
        raise UsageError(
            f"{source.path} has no end of line in its first {PIECE} bytes: is it a CSV file with lines that end in LF?"
        )
    try:
        text = head[skipped:stop].decode()
        names = header_of(io.StringIO(text, newline=""), source.path)
    except (UnicodeDecodeError, csv.Error):
        raise UsageError(f"{source.path} is not UTF-8 text: save it as CSV in UTF-8, or as Parquet") from None
    if not names:
        raise UsageError(f"{source.path} is empty: it needs a header line and rows")
    check_names(names)
    return Header(tuple(names), stop)


def ranges(source: Source, header: Header, part_bytes: int) -> list[Range]:
    starts = [*range(header.start, source.size, part_bytes), source.size]
    return [Range(source.path, start, stop) for start, stop in pairwise(starts)]


def scan_range(place: Location, piece: Range) -> RangeScan:
    """Read a range, a mebibyte at a time, and count in it."""
    quotes = 0
    ends = [RowEnds(), RowEnds()]
    with translate_errors(piece.path), place.filesystem.open_input_file(piece.path) as file:
        before: bytes = file.read_at(min(2, piece.start), max(0, piece.start - 2))
        for start in range(piece.start, piece.stop, PIECE):
            raw = before + file.read_at(min(PIECE, piece.stop - start), start)
            data = np.frombuffer(raw, np.uint8)
            found, more = _row_ends(data, quotes % 2, skip=len(before)), _row_ends(data, 1 - quotes % 2, skip=len(before))
            for case, places in enumerate((found[0], more[0])):
                ends[case] = _and(ends[case], data, places, start - len(before))
            quotes += found[1]
            before = raw[-2:]
    return RangeScan(quotes, ends[0], ends[1])


def csv_parts(source: Source, header: Header, looks: Sequence[tuple[Range, RangeScan]], last: bytes, number: int) -> list[Part]:
    """The parts of a file from what was seen in all its ranges, in order; `last` is its last byte."""
    starts, rows, inside = [(header.start, 0)], 0, False
    for piece, seen in looks:
        ends = seen.inside if inside else seen.outside
        if ends.first >= 0 and piece.start > header.start:
            starts.append((ends.first + 1, rows + ends.first_counts))
        rows += ends.rows
        inside ^= bool(seen.quotes % 2)
    if inside:
        raise UsageError(f"{source.path} opens a quote that is never closed: quotes inside a value must be doubled")
    if last != b"\n" and source.size > header.start:
        rows += 1
    starts.append((source.size, rows))
    found = [(one, after) for one, after in pairwise(starts) if after[1] > one[1]]
    return [
        Part(number + at, source.path, start, stop, first, upto - first) for at, ((start, first), (stop, upto)) in enumerate(found)
    ]


def last_byte(place: Location, source: Source) -> bytes:
    with translate_errors(source.path), place.filesystem.open_input_file(source.path) as file:
        found: bytes = file.read_at(1, max(0, source.size - 1))
        return found


def parquet_parts(place: Location, source: Source, part_bytes: int, number: int) -> tuple[Any, list[Part]]:
    """The schema of a file, and its parts."""
    with translate_errors(source.path), parquet.ParquetFile(source.path, filesystem=place.filesystem) as file:
        metadata, schema = file.metadata, file.schema_arrow
    check_names(schema.names)
    parts: list[Part] = []
    start = size = rows = first = 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        rows += metadata.row_group(group).num_rows
        if (size >= part_bytes or group == metadata.num_row_groups - 1) and rows:
            parts.append(Part(number + len(parts), source.path, start, group + 1, first, rows))
            start, first, size, rows = group + 1, first + rows, 0, 0
    return schema, parts


def _row_ends(data: Any, parity: int, *, skip: int = 0) -> tuple[Any, int]:
    """Places of the newlines outside quotes behind the first `skip` bytes, and the number of quotes there."""
    newlines = np.flatnonzero(data[skip:] == NEWLINE) + skip
    quotes = np.flatnonzero(data[skip:] == QUOTE) + skip
    if len(quotes) or parity:
        newlines = newlines[(np.searchsorted(quotes, newlines) + parity) % 2 == 0]
    return newlines, len(quotes)


def _and(ends: RowEnds, data: Any, places: Any, offset: int) -> RowEnds:
    """`ends` and the ones at `places`; a line without anything in it is no row."""
    if not len(places):
        return ends
    before = data[places - 1]
    empty = (before == NEWLINE) | ((before == RETURN) & (data[np.maximum(places - 2, 0)] == NEWLINE))
    rows = ends.rows + int(len(places) - np.count_nonzero(empty))
    if ends.first >= 0:
        return RowEnds(rows, ends.first, ends.first_counts)
    return RowEnds(rows, int(places[0]) + offset, not bool(empty[0]))
