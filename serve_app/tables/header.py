"""The header of a CSV file: the names of the values in a row, and those that are not columns of the table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from serve_app.errors import UsageError
from serve_app.tables.content import BLOCK, compression_of, open_content, read_head
from serve_app.tables.csv_format import check_names, row_ends, twins, unnamed
from serve_app.tables.dialect import (
    BOM,
    PLAIN_DIALECT,
    Dialect,
    DialectFlags,
    complete_dialect,
    decode_head,
    excel_line,
    mark_name,
    records,
    text_form,
)
from serve_app.tables.location import Location

MAX_HEAD = 64 * BLOCK
"""Maximum number of bytes up to the end of the header line."""

INDEX = re.compile(r"Unnamed: \d+(?:\.\d+)*")
"""Names that pandas gives to the columns of an exported index."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header and dialect of a CSV file.

    `columns` name every value of a row. `index` are the first columns, with row names; `padding` are the last columns, without
    values. `start` is the offset of the rows in the content; `size` is the size of the content in bytes.
    """

    columns: tuple[str, ...]
    start: int
    size: int
    dialect: Dialect = PLAIN_DIALECT
    index: tuple[str, ...] = ()
    padding: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the table."""
        return self.columns[len(self.index) : len(self.columns) - len(self.padding)]


def csv_header(location: Location, path: str, size: int, flags: DialectFlags) -> Header:
    """The header of a CSV file of `size` bytes; raises UsageError when it has no columns or the dialect is ambiguous."""
    head, whole = read_head(location, path, "none", 512)
    compression = compression_of(head, path)
    length = BLOCK
    while True:
        head, whole = read_head(location, path, compression, length)
        form = text_form(head, compression, flags, path, whole=whole)
        text = decode_head(head, form.encoding, path, whole=whole)
        content = (text.replace("\r", "\n") if form.carriage else text).encode()
        start, end = _header_line(content)
        if end is not None or whole:
            break
        if length >= MAX_HEAD:
            raise UsageError(f"{path} has no end of line in its first {MAX_HEAD} bytes: save it as CSV with lines that end in LF")
        length *= 8
    if form.encoding == "utf-8" and form.compression == "none" and not form.carriage:
        total = size
    else:
        with open_content(location, path, form) as file:
            total = file.size()
    stop = len(content) if end is None else end
    if not whole:
        ends, _ = row_ends(np.frombuffer(content, np.uint8), 0)
        content = content[: int(ends[-1]) + 1]
    lines, mark = content[start:].decode(), excel_line(content[:start].decode().removeprefix(BOM))[0]
    if "\0" in lines[: stop - start]:
        raise UsageError(f"{path} has a NUL byte in its header line: it is damaged or not a CSV file; export it again")
    dialect = complete_dialect(lines, form, flags, mark, path)
    rows = records(lines, dialect.separator)
    if not rows:
        raise UsageError(f"{path} is empty: it needs a header line and rows")
    remarks = () if mark is None else (f"line 1 is Excel's line that names the separator ({mark_name(mark)}), not the header",)
    return _described(rows, Header((), stop, total, dialect, remarks=remarks), path)


def _header_line(content: bytes) -> tuple[int, int | None]:
    """The start of the header line (after a byte order mark, Excel's line and empty lines), and its end or None."""
    text = content.decode()
    start = len(BOM.encode()) if text.startswith(BOM) else 0
    start += excel_line(text.removeprefix(BOM))[1]
    while content[start : start + 1] in (b"\n", b"\r"):
        start += 1
    ends, _ = row_ends(np.frombuffer(content, np.uint8)[start:], 0)
    return start, (start + int(ends[0]) + 1 if len(ends) else None)


def _described(rows: Sequence[Sequence[str]], header: Header, path: str) -> Header:
    """The header with its names, according to the first records of the file; the first record is the header line."""
    line, widths = rows[0], Counter(len(row) for row in rows[1:])
    width = widths.most_common(1)[0][0] if widths else len(line)  # the reader refuses a row of another width later
    named = len(line)
    while named > 1 and not line[named - 1].strip():
        named -= 1
    names, row_name, padding = list(line[:named]), 0, 0
    remarks = [*header.remarks]
    if width > named and all(not cell.strip() for row in rows[1:] if len(row) == width for cell in row[named:]):
        padding = width - named
        remarks.append("every row ends with empty values without a name: they are left out")
    elif len(widths) == 1 and width == len(line) + 1 and named == len(line) and _are_row_names([row[0] for row in rows[1:]]):
        row_name = 1
        remarks.append("every row has one value more than the header has names: the first value is the row's name and is left out")
    elif width != named:
        names = list(line)
    index = row_name + _leading_index(names)
    names = _complete([""] * row_name + names + [""] * padding, index, padding, path)
    check_names(names)
    if index > row_name:
        quoted = ", ".join(f"'{name}'" for name in names[:index])
        remarks.append(
            f"the first columns are an exported index ({quoted}) and are left out: name them in the header to train on them"
        )
    return Header(
        tuple(names),
        header.start,
        header.size,
        header.dialect,
        tuple(names[:index]),
        tuple(names[len(names) - padding :]) if padding else (),
        (*remarks, *_alike(names)),
    )


def _are_row_names(cells: Sequence[str]) -> bool:
    """Whether the first values of all rows are row names as R writes them: distinct whole numbers or texts."""
    if not all(cell.strip() for cell in cells) or len(set(cells)) < len(cells):
        return False
    return all(cell.isdigit() for cell in cells) or not any(_is_number(cell) for cell in cells)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d*[.,]?\d+(?:[eE][+-]?\d+)?\s*", text) is not None


def _leading_index(names: Sequence[str]) -> int:
    """The number of leading columns of an exported index; at least one other column remains."""
    count = 0
    while count < len(names) - 1 and (not names[count].strip() or INDEX.fullmatch(names[count])):
        count += 1
    return count


def _complete(names: Sequence[str], index: int, padding: int, path: str) -> list[str]:
    """The names, completed for the index and the padding. Raises UsageError for another column without a name."""
    taken, complete = set(names), []
    for position, name in enumerate(names):
        if not name.strip():
            if index <= position < len(names) - padding:
                raise UsageError(f"column {position + 1} of {path} has no name: write a name in the header line")
            name = unnamed(position, taken)
            taken.add(name)
        complete.append(name)
    return complete


def _alike(names: Sequence[str]) -> list[str]:
    """Remarks on names that differ only in case or blanks."""
    pairs = list(twins(names).items())[:5]
    return [f"the columns '{other}' and '{name}' differ only in case or blanks" for name, other in pairs]
