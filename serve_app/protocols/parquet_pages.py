"""What the pages of a Parquet file say of their size, read from their headers before any of them is unpacked.

The sizes in the footer of a file are what its writer says; a reader unpacks a page by the size in its header.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from serve_app.protocols.codec import Buffer

_BOOLEANS = (1, 2)
_BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 3, 4, 5, 6, 7, 8, 9, 10, 12
"""Types of fields in the compact protocol of Thrift."""
_UNPACKED, _PACKED, _DATA_PAGE, _DICTIONARY, _DATA_PAGE_V2 = 2, 3, 5, 7, 8
"""Fields of a page's header."""
_ENCODING = {_DATA_PAGE: 2, _DICTIONARY: 2, _DATA_PAGE_V2: 4}
"""The field with the encoding of the values, in the header of each kind of page."""
DELTA_BYTE_ARRAY = 7
"""The encoding in which a value repeats the beginning of the one before it: a page may hold more than its size says."""
_DEPTH = 8
_MOST_FIELDS = 100


class Page(NamedTuple):
    """The header of one page; sizes in bytes."""

    unpacked_bytes: int
    encodings: list[Any]


def pages(body: Buffer, start: int, size: int) -> Iterator[Page]:
    """The pages of a column chunk at `start`. Raises ValueError for headers that are broken."""
    reader, end = _Compact(body, start, start + size), start + size
    if start < 0 or size < 0 or end > len(body):
        raise ValueError("a column outside the file")
    while reader.position < end:
        header = reader.struct()
        unpacked, packed = header.get(_UNPACKED), header.get(_PACKED)
        if not isinstance(unpacked, int) or not isinstance(packed, int) or unpacked < 0 or packed < 0:
            raise ValueError("a page without its sizes")
        yield Page(unpacked, [kind.get(field) for field, kind in _kinds(header)])
        reader.position += packed
    if reader.position != end:
        raise ValueError("a page that is longer than its column")


def _kinds(header: Mapping[int, Any]) -> list[tuple[int, Mapping[int, Any]]]:
    """The headers of the kind of a page, of which there is one, and the field of each with the encoding."""
    return [(field, header[kind]) for kind, field in _ENCODING.items() if isinstance(header.get(kind), dict)]


class _Compact:
    """Reads structs of Thrift's compact protocol between two positions of a body. Raises ValueError."""

    def __init__(self, body: Buffer, start: int, end: int) -> None:
        self._body = body
        self._end = end
        self.position = start

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The fields of a struct by their numbers: whole numbers, booleans and structs; None for values of other types."""
        if depth > _DEPTH:
            raise ValueError("structs that are too deep")
        fields: dict[int, Any] = {}
        number = 0
        for _ in range(_MOST_FIELDS):
            head = self._byte()
            if not head:
                return fields
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        raise ValueError("a struct of too many fields")

    def _value(self, kind: int, depth: int) -> Any:
        if kind in _BOOLEANS:
            return kind == _BOOLEANS[0]
        if kind == _BYTE:
            return self._byte()
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in (_LIST, _SET):
            self._skip_list(depth + 1)
        elif kind in (_BINARY, _DOUBLE):
            self._skip(self._varint() if kind == _BINARY else 8)
        else:
            raise ValueError("a value of an unknown type")
        return None

    def _skip_list(self, depth: int) -> None:
        if depth > _DEPTH:
            raise ValueError("lists that are too deep")
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._varint()
        if count > _MOST_FIELDS:
            raise ValueError("a list that is too long")
        for _ in range(count):
            if head & 15 in _BOOLEANS:
                self._byte()
            else:
                self._value(head & 15, depth)

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > self._end:
            raise ValueError("a value that is cut off")

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
        raise ValueError("a number that is too long")

    def _byte(self) -> int:
        if self.position >= self._end:
            raise ValueError("a value that is cut off")
        self.position += 1
        return self._body[self.position - 1]
