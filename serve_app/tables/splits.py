"""The input split into parts for the workers: ranges of bytes of a CSV file, row groups of a Parquet file.

A CSV file is split where a row ends, which depends on the quotes before that place. So any worker scans a range for both cases (it
begins outside quotes, or inside), and the right case is selected when the ranges before it are known.
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
from serve_app.tables.csv_format import check_names, header_names
from serve_app.tables.location import Location, Source, translate_errors

BLOCK = 1 << 20
"""Bytes that are read at once."""

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
    """The bytes of a CSV file from `start` to before `stop`."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class RowEnds:
    """The rows that end in a range: how many, where the first line ends (-1: none), and whether that line counts as a row."""

    rows: int = 0
    first: int = -1
    first_counts: bool = False


@dataclass(frozen=True, slots=True)
class RangeScan:
    """The number of quotes in a range, and the row ends in it for both cases: it begins outside quotes, or inside."""

    quotes: int
    outside: RowEnds
    inside: RowEnds


def csv_header(location: Location, source: Source) -> Header:
    """Read the header line; raises UsageError when it names no columns."""
    with translate_errors(source.path), location.filesystem.open_input_file(source.path) as file:
        head: bytes = file.read_at(min(BLOCK, source.size), 0)
    mark = len(BOM) if head.startswith(BOM) else 0
    data = np.frombuffer(head, np.uint8)
    ends = _row_ends(data, 0)[0]
    stop = int(ends[0]) + 1 if len(ends) else len(head)
    if not len(ends) and len(head) < source.size:
        raise UsageError(
            f"{source.path} has no end of line in its first {BLOCK} bytes: is it a CSV file with lines that end in LF?"
        )
    try:
        text = head[mark:stop].decode()
        names = header_names(io.StringIO(text, newline=""), source.path)
    except (UnicodeDecodeError, csv.Error):
        raise UsageError(f"{source.path} is not UTF-8 text: save it as CSV in UTF-8, or as Parquet") from None
    if not names:
        raise UsageError(f"{source.path} is empty: it needs a header line and rows")
    check_names(names)
    return Header(tuple(names), stop)


def split_ranges(source: Source, header: Header, part_bytes: int) -> list[Range]:
    """Ranges of `part_bytes` bytes, the last one shorter, that cover the file below its header."""
    starts = [*range(header.start, source.size, part_bytes), source.size]
    return [Range(source.path, start, stop) for start, stop in pairwise(starts)]


def scan_range(location: Location, byte_range: Range) -> RangeScan:
    """Count quotes and row ends in a range; it is read in blocks of BLOCK bytes."""
    quotes = 0
    ends = [RowEnds(), RowEnds()]
    with translate_errors(byte_range.path), location.filesystem.open_input_file(byte_range.path) as file:
        before: bytes = file.read_at(min(2, byte_range.start), max(0, byte_range.start - 2))
        for start in range(byte_range.start, byte_range.stop, BLOCK):
            raw = before + file.read_at(min(BLOCK, byte_range.stop - start), start)
            data = np.frombuffer(raw, np.uint8)
            outside, inside = (_row_ends(data, parity, skip=len(before)) for parity in (quotes % 2, 1 - quotes % 2))
            for case, positions in enumerate((outside[0], inside[0])):
                ends[case] = _add(ends[case], data, positions, start - len(before))
            quotes += outside[1]
            before = raw[-2:]
    return RangeScan(quotes, ends[0], ends[1])


def csv_parts(source: Source, header: Header, scans: Sequence[tuple[Range, RangeScan]], last: bytes, number: int) -> list[Part]:
    """The parts of a file from the scans of all its ranges, in order; `last` is the file's last byte, `number` the first part's.

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
        raise UsageError(f"{source.path} opens a quote that is never closed: quotes inside a value must be doubled")
    if last != b"\n" and source.size > header.start:
        rows += 1
    starts.append((source.size, rows))
    spans = [(begin, end) for begin, end in pairwise(starts) if end[1] > begin[1]]
    return [
        Part(number + at, source.path, start, stop, first, after - first)
        for at, ((start, first), (stop, after)) in enumerate(spans)
    ]


def last_byte(location: Location, source: Source) -> bytes:
    """The last byte of a file, empty for an empty file."""
    with translate_errors(source.path), location.filesystem.open_input_file(source.path) as file:
        byte: bytes = file.read_at(1, max(0, source.size - 1))
        return byte


def parquet_parts(location: Location, source: Source, part_bytes: int, number: int) -> tuple[Any, list[Part]]:
    """The schema of a Parquet file, and its parts of at least `part_bytes` bytes; `number` is the first part's.

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


def _row_ends(data: Any, parity: int, *, skip: int = 0) -> tuple[Any, int]:
    """Positions of the newlines outside quotes after the first `skip` bytes, and the number of quotes there."""
    newlines = np.flatnonzero(data[skip:] == NEWLINE) + skip
    quotes = np.flatnonzero(data[skip:] == QUOTE) + skip
    if len(quotes) or parity:
        newlines = newlines[(np.searchsorted(quotes, newlines) + parity) % 2 == 0]
    return newlines, len(quotes)


def _add(ends: RowEnds, data: Any, positions: Any, offset: int) -> RowEnds:
    """`ends` and the row ends at `positions`; an empty line is no row."""
    if not len(positions):
        return ends
    before = data[positions - 1]
    empty = (before == NEWLINE) | ((before == RETURN) & (data[np.maximum(positions - 2, 0)] == NEWLINE))
    rows = ends.rows + int(len(positions) - np.count_nonzero(empty))
    if ends.first >= 0:
        return RowEnds(rows, ends.first, ends.first_counts)
    return RowEnds(rows, int(positions[0]) + offset, not bool(empty[0]))
