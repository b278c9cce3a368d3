"""Tensors of the protocol as JSON, as bytes and as plain lists; a suite of its own knows no other code."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

FORMATS = {
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "BOOL": "?",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""The letter of `struct` for each datatype of a fixed size."""


class Tensor(NamedTuple):
    """A tensor: name, datatype, shape, and its values in one list, row by row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: list[Any]


def flat(data: Any) -> list[Any]:
    """The values of a list, or of lists of lists, in one list."""
    return [value for each in data for value in flat(each)] if isinstance(data, list) else [data]


def nested(values: Sequence[Any], shape: Sequence[int]) -> Any:
    """The values of one list as lists of this shape."""
    if len(shape) == 1:
        return list(values)
    width = prod(shape[1:])
    return [nested(values[at * width : (at + 1) * width], shape[1:]) for at in range(shape[0])]


def of_document(document: dict[str, Any]) -> Tensor:
    """A tensor of a request or a response in JSON."""
    return Tensor(document["name"], document["datatype"], tuple(document["shape"]), flat(document["data"]))


def packed(tensor: Tensor) -> bytes:
    """The values of a tensor as little-endian bytes; a text is its length in four bytes, and its UTF-8."""
    if tensor.datatype == "BYTES":
        raws = [value.encode() for value in tensor.values]
        return b"".join(struct.pack("<I", len(raw)) + raw for raw in raws)
    return struct.pack(f"<{len(tensor.values)}{FORMATS[tensor.datatype]}", *tensor.values)


def unpacked(raw: bytes, datatype: str) -> list[Any]:
    """The values of such bytes. Raises struct.error, and ValueError for bytes that are left over."""
    if datatype != "BYTES":
        size = struct.calcsize(f"<{FORMATS[datatype]}")
        return list(struct.unpack(f"<{len(raw) // size}{FORMATS[datatype]}", raw))
    values, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        if at > len(raw):
            raise ValueError("a text is longer than the bytes that are there")
        values.append(raw[at - length : at].decode())
    return values
