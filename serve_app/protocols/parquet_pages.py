"""The row groups, columns and pages of a Parquet file, read from its bytes before anything is unpacked.

The writer of a file chooses the sizes in its footer, but a reader unpacks a page by the size in the header of the page. Footer and
headers are structs of Thrift's compact protocol. This module reads both, for two reasons: pyarrow does not expose the headers of
pages, and it ends the process when it reads the metadata of a column whose histograms have wrong sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from serve_app.protocols.codec import Buffer

MARK = b"PAR1"
FOOTER_BYTES = 2 * 1024 * 1024
"""The size of the largest footer that is read."""
DICTIONARIES = frozenset({2, 8})
"""The encodings in which a value is a position in the dictionary of its column. Its values may be larger than the page."""
DELTA_BYTE_ARRAY = 7
"""The encoding in which a value repeats the beginning of the value before it. Its values may also be larger than the page."""

_BOOLEANS = (1, 2)
_BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 3, 4, 5, 6, 7, 8, 9, 10, 12
"""Types of fields in the compact protocol."""
_ROW_GROUPS, _COLUMNS, _NUM_ROWS, _META_DATA = 4, 1, 3, 3
"""Fields of the footer, of a row group (two fields), and of a column chunk."""
_PATH, _PACKED_SIZE, _DATA_OFFSET, _DICTIONARY_OFFSET = 3, 7, 9, 11
"""Fields of the metadata of a column chunk."""
_UNPACKED, _PACKED = 2, 3
"""Fields of a page's header."""
_ENCODING = {5: 2, 7: 2, 8: 4}
"""The field of each kind of page (data, dictionary, data of version 2) in a page's header, and the field of its encoding."""
_DEPTH = 8
_MOST_ITEMS = 200_000
"""Most structs, fields and values of lists in a footer or in the headers of a column."""


class Chunk(NamedTuple):
    """The column of a row group: its path in the schema, and the position and size of its pages in bytes."""

    path: str
    start: int
    size: int


class RowGroup(NamedTuple):
    """A row group of a file."""

    rows: int
    chunks: list[Chunk]


class Page(NamedTuple):
    """The header of one page; sizes in bytes."""

    unpacked_bytes: int
    encodings: list[Any]


def footer_bytes(body: Buffer) -> int:
    """The size of the footer of a file. Raises ValueError for a body that is not a Parquet file."""
    if len(body) < 12 or body[:4] != MARK or body[-4:] != MARK:
        raise ValueError("the body is not a Parquet file")
    return int.from_bytes(body[-8:-4], "little")


def row_groups(body: Buffer) -> list[RowGroup]:
    """The row groups of a file. Raises ValueError for a broken footer."""
    end = len(body) - 8
    footer = _Compact(body, end - footer_bytes(body), end).struct()
    return [_row_group(group) for group in _typed(footer, _ROW_GROUPS, list)]


def pages(body: Buffer, chunk: Chunk) -> Iterator[Page]:
    """The pages of a column chunk. Raises ValueError for broken headers."""
    end = chunk.start + chunk.size
    if chunk.start < 0 or chunk.size < 0 or end > len(body):
        raise ValueError("a column is outside the file")
    reader = _Compact(body, chunk.start, end)
    while reader.position < end:
        header = reader.struct()
        unpacked, packed = _typed(header, _UNPACKED, int), _typed(header, _PACKED, int)
        if unpacked < 0 or packed < 0:
            raise ValueError("the size of a page is negative")
        kinds = [(header[kind], encoding) for kind, encoding in _ENCODING.items() if isinstance(header.get(kind), dict)]
        yield Page(unpacked, [kind.get(encoding) for kind, encoding in kinds])
        reader.skip(packed)


def _row_group(group: Any) -> RowGroup:
    rows = _typed(group, _NUM_ROWS, int)
    if rows < 0:
        raise ValueError("the number of rows is negative")
    return RowGroup(rows, [_chunk(column) for column in _typed(group, _COLUMNS, list)])


def _chunk(column: Any) -> Chunk:
    metadata = _typed(column, _META_DATA, dict)
    start, dictionary = _typed(metadata, _DATA_OFFSET, int), metadata.get(_DICTIONARY_OFFSET)
    if isinstance(dictionary, int) and 0 < dictionary < start:
        start = dictionary
    path = b".".join(part if isinstance(part, bytes) else b"" for part in _typed(metadata, _PATH, list))
    return Chunk(path.decode(), start, _typed(metadata, _PACKED_SIZE, int))


def _typed(fields: Any, number: int, kind: type) -> Any:
    value = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(value, kind):
        raise ValueError("a struct has no valid value for a required field")  # noqa: TRY004 - an error of the file
    return value


class _Compact:
    """Reads structs of the compact protocol between two positions of a body. Raises ValueError."""

    def __init__(self, body: Buffer, start: int, end: int) -> None:
        if not 0 <= start <= end <= len(body):
            raise ValueError("a struct is outside the file")
        self._body = body
        self._end = end
        self._left = _MOST_ITEMS
        self.position = start

    def struct(self, depth: int = 0) -> Mapping[int, Any]:
        """The values of the fields of a struct by field number; None for a floating point number."""
        if depth > _DEPTH:
            raise ValueError("structs are nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        self._count(1)
        while head := self._byte():
            self._count(1)
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            kind = head & 15
            fields[number] = kind == _BOOLEANS[0] if kind in _BOOLEANS else self._value(kind, depth)
        return fields

    def skip(self, count: int) -> None:
        """Skip so many bytes."""
        self.position += count
        if self.position > self._end:
            raise ValueError("a value is truncated")

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_BYTE, *_BOOLEANS):
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _BINARY:
            size = self._varint()
            self.skip(size)
            return bytes(self._body[self.position - size : self.position])
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            return self._list(depth + 1)
        if kind != _DOUBLE:
            raise ValueError("the type of a value is unknown")
        return self.skip(8)

    def _list(self, depth: int) -> list[Any]:
        if depth > _DEPTH:
            raise ValueError("lists are nested too deeply")
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._varint()
        self._count(count)
        return [self._value(head & 15, depth) for _ in range(count)]

    def _count(self, items: int) -> None:
        self._left -= items
        if self._left < 0:
            raise ValueError("the metadata has too many values")

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a number is too long")

    def _byte(self) -> int:
        if self.position >= self._end:
            raise ValueError("a value is truncated")
        self.position += 1
        return self._body[self.position - 1]
