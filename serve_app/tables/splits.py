"""The split of the input into parts for the workers: ranges of bytes of a CSV file, row groups of a Parquet file.

A CSV file is split at the end of a row, which depends on the quotes before it. A worker therefore scans a range for both cases (it
begins outside or inside quotes). `csv_parts` selects the right case from the scans of the ranges before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from pyarrow import parquet

from serve_app.errors import UsageError
from serve_app.tables.content import BLOCK, PLAIN, TextForm, open_content
from serve_app.tables.csv_format import NEWLINE, RETURN, check_names, row_ends
from serve_app.tables.header import Header
from serve_app.tables.location import Location, Source, translate_errors


@dataclass(frozen=True, slots=True)
class Part:
    """A part of one file: bytes (CSV) or row groups (Parquet) from `start` to before `stop`; `first_row` counts from 0."""

    number: int
    path: str
    start: int
    stop: int
    first_row: int
    rows: int


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes of the content of a CSV file from `start` to before `stop`."""

    path: str
    start: int
    stop: int
    form: TextForm = PLAIN


@dataclass(frozen=True, slots=True)
class RowEnds:
    """The rows that end in a range: their number, the end of the first line (-1: no line), and whether that line is a row."""

    rows: int = 0
    first: int = -1
    first_counts: bool = False


@dataclass(frozen=True, slots=True)
class RangeScan:
    """The number of quotes in a range, and its row ends for both cases: it begins outside or inside quotes."""

    quotes: int
    outside: RowEnds
    inside: RowEnds


def split_ranges(source: Source, header: Header, part_bytes: int) -> list[Range]:
    """Ranges of `part_bytes` bytes, the last one shorter, that cover the content below the header."""
    starts = [*range(header.start, header.size, part_bytes), header.size]
    return [Range(source.path, start, stop, header.dialect.form) for start, stop in pairwise(starts)]


def scan_range(location: Location, byte_range: Range) -> RangeScan:
    """Count the quotes and row ends in a range, in blocks of BLOCK bytes."""
    quotes = 0
    ends = [RowEnds(), RowEnds()]
    with translate_errors(byte_range.path), open_content(location, byte_range.path, byte_range.form) as file:
        before: bytes = file.read_at(min(2, byte_range.start), max(0, byte_range.start - 2))
        for start in range(byte_range.start, byte_range.stop, BLOCK):
            raw = before + file.read_at(min(BLOCK, byte_range.stop - start), start)
            data = np.frombuffer(raw, np.uint8)
            outside, inside = (row_ends(data, parity, skip=len(before)) for parity in (quotes % 2, 1 - quotes % 2))
            for case, positions in enumerate((outside[0], inside[0])):
                ends[case] = _add(ends[case], data, positions, start - len(before))
            quotes += outside[1]
            before = raw[-2:]
    return RangeScan(quotes, ends[0], ends[1])


def csv_parts(source: Source, header: Header, scans: Sequence[tuple[Range, RangeScan]], last: bytes, number: int) -> list[Part]:
    """The parts of a file from the scans of its ranges, in order; `last` is the last byte, `number` that of the first part.

    Raises UsageError when a quote is not closed.
    """
    starts, rows, inside = [(header.start, 0)], 0, False
    for byte_range, scan in scans:
        ends = scan.inside if inside else scan.outside
        if ends.first >= 0 and byte_range.start > header.start:
            starts.append((ends.first + 1, rows + ends.first_counts))
        rows += ends.rows
        inside ^= bool(scan.quotes % 2)
    if inside:
        raise UsageError(f"{source.path} has a quote that is not closed: close it, and double quotes inside a value")
    if last != b"\n" and header.size > header.start:
        rows += 1
    starts.append((header.size, rows))
    spans = [(begin, end) for begin, end in pairwise(starts) if end[1] > begin[1]]
    return [
        Part(number + at, source.path, start, stop, first, after - first)
        for at, ((start, first), (stop, after)) in enumerate(spans)
    ]


def last_byte(location: Location, source: Source, header: Header) -> bytes:
    """The last byte of the content of a file; empty for an empty file."""
    with translate_errors(source.path), open_content(location, source.path, header.dialect.form) as file:
        byte: bytes = file.read_at(1, max(0, header.size - 1))
        return byte


def parquet_parts(location: Location, source: Source, part_bytes: int, number: int) -> tuple[Any, list[Part]]:
    """The schema of a Parquet file, and its parts of at least `part_bytes` bytes; `number` is that of the first part.

    Raises UsageError when two columns have the same name.
    """
    with translate_errors(source.path), parquet.ParquetFile(source.path, filesystem=location.filesystem) as file:
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


def _add(ends: RowEnds, data: Any, positions: Any, offset: int) -> RowEnds:
    """`ends`, extended by the row ends at `positions`; an empty line is not a row."""
    if not len(positions):
        return ends
    before = data[positions - 1]
    empty = (before == NEWLINE) | ((before == RETURN) & (data[np.maximum(positions - 2, 0)] == NEWLINE))
    rows = ends.rows + int(len(positions) - np.count_nonzero(empty))
    if ends.first >= 0:
        return RowEnds(rows, ends.first, ends.first_counts)
    return RowEnds(rows, int(positions[0]) + offset, not bool(empty[0]))
