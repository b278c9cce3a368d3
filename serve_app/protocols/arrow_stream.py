"""The size of an Arrow IPC stream, read from the metadata of its messages before the stream is unpacked.

pyarrow checks the structure of the metadata (a FlatBuffer) when it reads a message. This module reads fields that pyarrow does not
expose.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import pyarrow as pa

_HEADER = 2
"""The position of the header in the table of a message. Message.fbs and Schema.fbs of the Arrow format define these positions."""
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3
"""The positions of these fields in the table of a record batch."""
_DATA, _IS_DELTA = 1, 2
"""The positions of these fields in the table of a dictionary batch."""
_BUFFER_BYTES = 16
_NOT_COMPRESSED = -1


class MessageSize(NamedTuple):
    """The rows of a message (for a dictionary its values), its unpacked bytes, and whether it extends a dictionary."""

    rows: int
    unpacked_bytes: int
    is_delta: bool = False


def message_size(message: pa.ipc.Message) -> MessageSize:
    """The size of a record batch or of a dictionary. Raises ValueError for invalid metadata."""
    metadata = memoryview(message.metadata)
    try:
        header = _Table.root(metadata).table(_HEADER)
        if header is None:
            raise ValueError("a message has no header")
        if message.type != "dictionary":
            return _batch_size(header, message)
        data = header.table(_DATA)
        if data is None:
            raise ValueError("a dictionary has no values")
        return _batch_size(data, message)._replace(is_delta=bool(header.number(_IS_DELTA, "<B")))
    except struct.error:
        raise ValueError("the metadata is truncated") from None


def _batch_size(batch: _Table, message: pa.ipc.Message) -> MessageSize:
    rows = batch.number(_LENGTH, "<q")
    body = message.body
    size = 0 if body is None else body.size
    if rows < 0:
        raise ValueError("the number of rows is negative")
    if batch.table(_COMPRESSION) is None:
        return MessageSize(rows, size)
    content, unpacked = memoryview(b"" if body is None else body), 0
    for offset, length in batch.buffers(_BUFFERS):
        if not length:
            continue
        if offset < 0 or length < 8 or offset + length > size:
            raise ValueError("a buffer is outside its message")
        (declared,) = struct.unpack_from("<q", content, offset)
        if declared < _NOT_COMPRESSED:
            raise ValueError("the size of a buffer is negative")
        unpacked += length if declared == _NOT_COMPRESSED else declared
    return MessageSize(rows, unpacked)


class _Table(NamedTuple):
    """A table of a FlatBuffer, at a position in its bytes."""

    data: memoryview
    position: int

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        """The root table."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def number(self, field: int, form: str) -> int:
        """A number; 0 when the field is absent."""
        at = self._at(field)
        return struct.unpack_from(form, self.data, at)[0] if at else 0

    def table(self, field: int) -> _Table | None:
        """A table below this table; None when the field is absent."""
        at = self._at(field)
        return _Table(self.data, at + struct.unpack_from("<I", self.data, at)[0]) if at else None

    def buffers(self, field: int) -> list[tuple[int, int]]:
        """A list of offsets and lengths."""
        at = self._at(field)
        if not at:
            return []
        start = at + struct.unpack_from("<I", self.data, at)[0]
        (count,) = struct.unpack_from("<I", self.data, start)
        return list(struct.iter_unpack("<qq", self.data[start + 4 : start + 4 + count * _BUFFER_BYTES]))

    def _at(self, field: int) -> int:
        """The position of a field in the bytes; 0 when the field is absent."""
        fields = self.position - struct.unpack_from("<i", self.data, self.position)[0]
        (size,) = struct.unpack_from("<H", self.data, fields)
        if 4 + 2 * field >= size:
            return 0
        (offset,) = struct.unpack_from("<H", self.data, fields + 4 + 2 * field)
        return self.position + offset if offset else 0
