"""The cells of CSV text as columns: the one parser for training and scoring.

pyarrow parses it at the speed of C and refuses rows of another width. What it refuses, and the few forms that it reads otherwise
than Python's csv module, are read record by record, which names the rows.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
from pyarrow import compute
from pyarrow import csv as arrow_csv

from serve_app.errors import UsageError
from serve_app.tables.csv_format import csv_records
from serve_app.tables.header import Header

THREAD_BLOCK = 8 << 20
"""Bytes that one thread parses at a time when a whole file is read."""


def parse_columns(
    raw: bytes,
    header: Header,
    columns: Sequence[str],
    *,
    numbers: Collection[str] = (),
    missing: Sequence[str] = (),
    block: int | None = None,
) -> pa.Table:
    """Columns as texts, `numbers` as float64 with null for the texts in `missing`; `block`: bytes for each of several threads.

    Raises pa.ArrowInvalid when a row has another width, when a number is none, and when a text is not UTF-8.
    """
    wanted = [*columns, *header.padding] or [header.columns[0]]
    table = arrow_csv.read_csv(
        pa.BufferReader(raw),
        arrow_csv.ReadOptions(use_threads=block is not None, column_names=header.columns, block_size=block or len(raw) + 1),
        arrow_csv.ParseOptions(delimiter=header.dialect.separator, newlines_in_values=b'"' in raw),
        arrow_csv.ConvertOptions(
            include_columns=wanted,
            column_types={name: pa.float64() if name in numbers else pa.string() for name in wanted},
            decimal_point=header.dialect.decimal,
            null_values=missing,
            strings_can_be_null=False,
        ),
    )
    if header.padding:
        for name in header.padding:
            if compute.any(compute.not_equal(compute.utf8_trim_whitespace(table.column(name)), "")).as_py():
                raise pa.ArrowInvalid("a value stands beyond the last column")
        table = table.select(list(columns) or [header.columns[0]])
    return table


def needs_records(raw: bytes, separator: str) -> bool:
    """Whether spaces stand before a quote, which pyarrow does not skip."""
    return raw.startswith(b' "') or b'\n "' in raw or separator.encode() + b' "' in raw


def records(raw: bytes, header: Header, path: str, first_row: int) -> Iterator[list[str]]:
    """The rows as lists of texts, empty lines left out; raises UsageError when the text cannot be read."""
    try:
        yield from csv_records(raw.decode(), header.dialect.separator)
    except UnicodeDecodeError as error:
        row = first_row + raw.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path} is not UTF-8 text in row {row}: name its encoding, like --encoding cp1252, or save it as CSV in UTF-8"
        ) from None
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read as CSV after row {first_row}: {error}") from None


def uneven(record: Sequence[str], header: Header) -> str | None:
    """What is wrong with the width of a row; None for a row that fits the header."""
    width = len(header.columns)
    if len(record) != width:
        expected = "other rows have" if header.index or header.padding else "the header names"
        return f"it has {len(record)} value{'s' * (len(record) != 1)} where {expected} {width}"
    if header.padding and any(cell.strip() for cell in record[width - len(header.padding) :]):
        return "it has a value beyond the last column that the header names"
    return None


def check_no_nul(raw: bytes, path: str, first_row: int) -> None:
    """Raise UsageError for a text with NUL bytes, which no CSV file has."""
    at = raw.find(b"\0")
    if at >= 0:
        row = first_row + raw.count(b"\n", 0, at) + 1
        raise UsageError(f"{path} has a NUL byte in row {row}: it is damaged, or no CSV file; export it again")


def read_cells(raw: bytes, header: Header, path: str) -> pa.Table:
    """All rows of a file as texts, the columns of the table only; raises UsageError that names the first row that does not fit."""
    check_no_nul(raw, path, 0)
    if not needs_records(raw, header.dialect.separator):
        for block in (THREAD_BLOCK, None) if len(raw) > THREAD_BLOCK else (None,):
            try:
                return parse_columns(raw, header, header.names, block=block)
            except pa.ArrowInvalid:
                continue
    rows = []
    for row, record in enumerate(records(raw, header, path, 0), start=1):
        problem = uneven(record, header)
        if problem is not None:
            raise UsageError(f"{path}, row {row}: {problem}: correct the row, or name every column in the header line")
        rows.append(record)
    first = len(header.index)
    return pa.table({name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(header.names, start=first)})
