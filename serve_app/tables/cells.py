"""The cells of CSV text as columns: the one parser for training and scoring.

pyarrow parses the text fast and refuses rows of another width. For such text, and for the few forms that pyarrow reads differently
than Python's csv module, the csv module reads each record, so errors can name the row.
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
"""Bytes that one thread parses at a time when it reads a whole file."""


def parse_columns(
    raw: bytes,
    header: Header,
    columns: Sequence[str],
    *,
    numbers: Collection[str] = (),
    missing: Sequence[str] = (),
    block: int | None = None,
) -> pa.Table:
    """Columns as texts, and `numbers` as float64 with null for texts in `missing`; `block`: bytes for each of several threads.

    Raises pa.ArrowInvalid for a row of another width, an invalid number, and text that is not UTF-8.
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
                raise pa.ArrowInvalid("a row has a value after the last column")
        table = table.select(list(columns) or [header.columns[0]])
    return table


def needs_records(raw: bytes, separator: str) -> bool:
    """Whether a quote follows a space, which pyarrow does not skip."""
    return raw.startswith(b' "') or b'\n "' in raw or separator.encode() + b' "' in raw


def records(raw: bytes, header: Header, path: str, first_row: int) -> Iterator[list[str]]:
    """The rows as lists of texts, without empty lines; raises UsageError when the text cannot be read."""
    try:
        yield from csv_records(raw.decode(), header.dialect.separator)
    except UnicodeDecodeError as error:
        row = first_row + raw.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path} is not UTF-8 text in row {row}: name its encoding, for example --encoding cp1252, or save it as CSV in UTF-8"
        ) from None
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read as CSV after row {first_row}: {error}") from None


def uneven(record: Sequence[str], header: Header) -> str | None:
    """The problem with the width of a row; None for a row that matches the header."""
    width = len(header.columns)
    if len(record) != width:
        expected = "other rows have" if header.index or header.padding else "the header names"
        return f"it has {len(record)} value{'s' * (len(record) != 1)}, but {expected} {width}"
    if header.padding and any(cell.strip() for cell in record[width - len(header.padding) :]):
        return "it has a value after the last column that the header names"
    return None


def check_no_nul(raw: bytes, path: str, first_row: int) -> None:
    """Raise UsageError for text with NUL bytes, which a CSV file cannot have."""
    at = raw.find(b"\0")
    if at >= 0:
        row = first_row + raw.count(b"\n", 0, at) + 1
        raise UsageError(f"{path} has a NUL byte in row {row}: it is damaged or not a CSV file; export it again")


def read_cells(raw: bytes, header: Header, path: str) -> pa.Table:
    """All rows of a file as texts, with the columns of the table; raises UsageError for the first row of another width."""
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
