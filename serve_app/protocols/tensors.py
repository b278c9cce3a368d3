"""Tensors of the Open Inference Protocol: names, datatypes, shapes, and their values as JSON or as bytes.

The shape and the size of a tensor are checked before its values are read, so that a request takes no more memory than its allowed
rows.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import msgspec
import numpy as np

from serve_app.artifacts.matrix import Matrix
from serve_app.errors import InvalidInput, Problem
from serve_app.protocols.decode import PIECE_BYTES
from serve_app.protocols.json_reader import JsonReader

BYTES = "BYTES"
NUMBERS: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("u1"),
    **{
        f"{prefix}{bits}": np.dtype(f"<{kind}{bits // 8}")
        for prefix, kind in (("INT", "i"), ("UINT", "u"))
        for bits in (8, 16, 32, 64)
    },
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""The datatypes of fixed size, and their numpy types."""
LENGTH_BYTES = 4
"""The bytes of the length before each value of a binary BYTES tensor."""

_NESTED = re.compile(rb"\s*\[\s*\[")
_NUMBERS = msgspec.json.Decoder(list[float]).decode
_LISTS = msgspec.json.Decoder(list[list[float]]).decode
_GAPS = msgspec.json.Decoder(list[float | None]).decode
_LISTS_OF_GAPS = msgspec.json.Decoder(list[list[float | None]]).decode
_FLAGS = msgspec.json.Decoder(list[bool | None]).decode
_LISTS_OF_FLAGS = msgspec.json.Decoder(list[list[bool | None]]).decode
_TEXTS = msgspec.json.Decoder(list[str | None]).decode
_LISTS_OF_TEXTS = msgspec.json.Decoder(list[list[str | None]]).decode


_PRECISIONS: dict[str, Any] = {"FP16": np.float16, "FP32": np.float32}


class Tensor(NamedTuple):
    """One input; `where` names it in problems. Its values are `json`, a JSON list, or `raw`, little-endian bytes.

    `sized_by` is the part of the request that determines the size of `raw`.
    """

    where: str
    name: str
    datatype: str
    shape: tuple[int, ...]
    json: bytes | None = None
    raw: memoryview | None = None
    sized_by: str = "parameters.binary_data_size"

    @property
    def length(self) -> int:
        """The number of values that the shape requires."""
        return math.prod(self.shape)

    @property
    def precision(self) -> Any:
        """The type in which the client sent numbers."""
        return precision_of(self.datatype)


def precision_of(datatype: str) -> Any:
    """The type in which numbers of this datatype are compared with bounds."""
    return _PRECISIONS.get(datatype, np.float64)


def problem(tensor: Tensor, part: str, code: str, message: str) -> InvalidInput:
    """The error for a tensor that breaks a rule of the protocol."""
    return InvalidInput([Problem(f"{tensor.where}.{part}", code, message)])


def check_datatype(tensor: Tensor) -> None:
    """Raise InvalidInput for an unknown datatype."""
    if tensor.datatype not in NUMBERS and tensor.datatype != BYTES:
        raise problem(tensor, "datatype", "datatype", f"must be one of {', '.join([*NUMBERS, BYTES])}")


def check_size(tensor: Tensor) -> None:
    """Raise InvalidInput when the bytes of a tensor do not fit its shape. The rows are counted before."""
    if tensor.raw is None:
        return
    size = len(tensor.raw)
    if tensor.datatype == BYTES:
        if size < tensor.length * LENGTH_BYTES:
            raise problem(tensor, tensor.sized_by, "size", f"must be at least {tensor.length * LENGTH_BYTES} bytes for this shape")
        return
    expected = tensor.length * NUMBERS[tensor.datatype].itemsize
    if size != expected:
        raise problem(tensor, tensor.sized_by, "size", f"must be {expected} bytes for this shape and datatype")


def numbers(tensor: Tensor) -> Matrix | None:
    """All values as float64, NaN for a missing value; None when the JSON must be read value by value.

    Raises InvalidInput for values that do not fill the shape.
    """
    if tensor.datatype == BYTES:
        return None
    if tensor.raw is None:
        return _json_numbers(tensor)
    values = np.frombuffer(tensor.raw, NUMBERS[tensor.datatype])
    if tensor.datatype == "BOOL" and values.max() > 1:
        raise problem(tensor, "data", "type", "must hold only the bytes 0 and 1")
    return values.astype(np.float64)


def texts(tensor: Tensor) -> list[str | None] | None:
    """All values as texts, None for a missing value; None when the JSON must be read value by value.

    Raises InvalidInput for values that do not fill the shape, and for bytes that are not UTF-8.
    """
    if tensor.datatype != BYTES:
        return None
    if tensor.raw is not None:
        return list(_raw_texts(tensor, tensor.raw))
    text = tensor.json
    assert text is not None
    # The closing quote after `\\` is not counted, so a list that passes this check may hold about twice as many texts.
    if text.count(b'"') - text.count(b'\\"') > 2 * tensor.length:
        raise _does_not_fill(tensor)
    nested = _is_nested(tensor, text)
    try:
        values: list[Any] = _LISTS_OF_TEXTS(text) if nested else _TEXTS(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return _filling(tensor, _flat(tensor, values) if nested else values)


def json_values(tensor: Tensor, longest: int) -> Iterator[Any]:
    """The values of a JSON list one by one, of any type. A value takes at most `longest` characters.

    Raises Malformed, TooLarge, and InvalidInput for values that do not fill the shape.
    """
    assert tensor.json is not None
    reader = JsonReader(tensor.json, longest)
    nested, count = _is_nested(tensor, tensor.json), 0
    for item in reader.items():
        if nested and (not isinstance(item, list) or len(item) != tensor.shape[-1]):
            raise _does_not_fill(tensor)
        values = item if nested else (item,)
        count += len(values)
        if count > tensor.length:
            raise _does_not_fill(tensor)
        yield from values
    reader.end()
    if count != tensor.length:
        raise _does_not_fill(tensor)


def _json_numbers(tensor: Tensor) -> Matrix | None:
    text = tensor.json
    assert text is not None
    if b'"' in text:
        return None
    if text.count(b",") + 1 != tensor.length:
        raise _does_not_fill(tensor)
    nested = _is_nested(tensor, text)
    flags, numbers, gaps = (_LISTS_OF_FLAGS, _LISTS, _LISTS_OF_GAPS) if nested else (_FLAGS, _NUMBERS, _GAPS)
    for decode in (flags, gaps) if tensor.datatype == "BOOL" else (numbers, gaps):
        if decode is gaps:
            text = text.replace(b"NaN", b"null")
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return _decoded(tensor, text, decode, nested=nested)
    return None


def _decoded(tensor: Tensor, text: bytes, decode: Any, *, nested: bool) -> Matrix:
    if len(text) <= PIECE_BYTES:
        values = decode(text)
        return np.array(_filling(tensor, _flat(tensor, values) if nested else values), np.float64)
    pieces = [decode(piece) for piece in _pieces(text, nested=nested)]
    flat = np.concatenate([np.array(_flat(tensor, piece) if nested else piece, np.float64) for piece in pieces])
    if len(flat) != tensor.length:
        raise _does_not_fill(tensor)
    return flat


def _pieces(text: bytes, *, nested: bool) -> Iterator[bytes]:
    """A long list as lists of about PIECE_BYTES, because all other requests wait while one call runs.

    A cut is after a number or after an inner list. If the text is not a list of either kind, a piece is not valid JSON.
    """
    start, end, mark = text.find(b"[") + 1, text.rfind(b"]"), b"]" if nested else b","
    while start < end:
        cut = text.find(mark, start + PIECE_BYTES, end)
        stop = end if cut < 0 else cut + 1 if nested else cut
        yield b"".join((b"[", memoryview(text)[start:stop], b"]"))
        start = end if cut < 0 else cut + 1
        if nested and cut >= 0:
            start = text.find(b",", start, end) + 1 or end


def _is_nested(tensor: Tensor, text: bytes) -> bool:
    """Whether the list holds one list for each row. A tensor of one column may have its values in the list itself."""
    nested = _NESTED.match(text) is not None
    if nested and len(tensor.shape) < 2:
        raise _does_not_fill(tensor)
    return nested


def _flat(tensor: Tensor, lists: list[list[Any]]) -> list[Any]:
    width = tensor.shape[-1]
    if any(len(values) != width for values in lists):
        raise _does_not_fill(tensor)
    return list(chain.from_iterable(lists))


def _filling(tensor: Tensor, values: list[Any]) -> list[Any]:
    if len(values) != tensor.length:
        raise _does_not_fill(tensor)
    return values


def _does_not_fill(tensor: Tensor) -> InvalidInput:
    lists = " or ".join(["a list of all values", *([f"a list of {tensor.shape[0]} lists"] if len(tensor.shape) == 2 else [])])
    return problem(tensor, "data", "shape", f"must hold the {tensor.length} values that the shape requires, as {lists}")


def _raw_texts(tensor: Tensor, raw: memoryview) -> Iterator[str]:
    at, size = 0, len(raw)
    for _ in range(tensor.length):
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(raw[at:start], "little")
        if start > size or at > size:
            raise problem(tensor, "data", "size", "must hold a length of four bytes and a text of this length for each value")
        try:
            yield str(raw[start:at], "utf-8")
        except UnicodeDecodeError:
            raise problem(tensor, "data", "utf8", "must hold texts in UTF-8") from None
    if at != size:
        raise problem(tensor, "data", "size", "must end with the last value")
