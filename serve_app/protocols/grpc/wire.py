"""The parts of the protobuf wire format that are read and written without the messages of the library.

Requests are walked field by field to measure a message before the library reads it. Responses are written directly: packed numbers
are the bytes of an array, so a hundred thousand rows are copied without a conversion.
"""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.errors import Malformed, Problem

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""
FIXED = {FIXED64: 8, FIXED32: 4}
MAX_VARINT_BYTES = 10


def varint(number: int) -> bytes:
    """A number from -2**63 to 2**64 - 1 as a varint."""
    number &= 0xFFFF_FFFF_FFFF_FFFF
    if number < 0x80:
        return bytes((number,))
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def head(number: int, length: int) -> bytes:
    """The tag and the length before `length` bytes of a text, a message or packed numbers in field `number`."""
    return varint(number << 3 | BYTES) + varint(length)


def field(number: int, content: bytes) -> bytes:
    """A text, a message or packed numbers in field `number`."""
    return head(number, len(content)) + content


def malformed() -> Malformed:
    """The error for a message that does not have the type of its call."""
    return Malformed([Problem("message", "protobuf", "must have the type of the call")])


def fields(view: memoryview, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field of a message: its number, start and end of its content, and its size with tag and length. Raises Malformed."""
    while at < stop:
        begin = at
        tag, at = _varint(view, at, stop)
        kind = tag & 7
        if kind == BYTES:
            length, at = _varint(view, at, stop)
        elif kind == VARINT:
            _, end = _varint(view, at, stop)
            length = end - at
        elif kind in FIXED:
            length = FIXED[kind]
        else:
            raise malformed()
        end = at + length
        if end > stop:
            raise malformed()
        yield tag >> 3, at, end, end - begin
        at = end


def _varint(view: memoryview, at: int, stop: int) -> tuple[int, int]:
    """A varint, and the position after it. Raises Malformed."""
    number = 0
    for shift in range(0, 7 * MAX_VARINT_BYTES, 7):
        if at >= stop:
            break
        byte = view[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise malformed()
