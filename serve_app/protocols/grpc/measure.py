"""The size of a ModelInferRequest in memory, measured before the library reads it.

Each empty message in a list takes two bytes on the wire and forty times as many in memory. A small number or an empty text in a
typed field takes one or two bytes on the wire and eight or sixteen bytes in memory.
"""

from __future__ import annotations

import numpy as np

from serve_app.errors import Problem, TooLarge
from serve_app.protocols.grpc.wire import fields

INPUTS, CONTENTS, RAW_INPUT_CONTENTS = 5, 5, 7
"""The fields that hold values: `contents` of each input, and `raw_input_contents`."""
WIDTHS = {6: 4, 7: 8}
"""Bytes of each number in the FP32 and FP64 fields of InferTensorContents; numbers in other fields have varying sizes."""
BYTES_CONTENTS = 8
LAST_BYTE = 0x80
"""The last byte of a varint is smaller than this."""


def check_size(message: bytes, *, most_beside: int, most_values: int) -> None:
    """Raise TooLarge for too many bytes outside the values or too many typed values; raise Malformed for a broken message."""
    view = memoryview(message)
    left, values = most_beside, most_values
    for number, start, end, size in fields(view, 0, len(message)):
        if number == RAW_INPUT_CONTENTS:
            left -= size - (end - start)
        elif number == INPUTS:
            left -= size - (end - start)
            for within, first, last, length in fields(view, start, end):
                if within != CONTENTS:
                    left -= length
                else:
                    left -= length - (last - first)
                    values -= _count(view, first, last, values)
                _check(left, values, most_beside, most_values)
        else:
            left -= size
        _check(left, values, most_beside, most_values)


def _count(view: memoryview, start: int, end: int, most: int) -> int:
    """The number of values in InferTensorContents; counting stops after `most`."""
    count = 0
    for number, first, last, _ in fields(view, start, end):
        if number == BYTES_CONTENTS or last - first < 2:
            count += 1
        elif number in WIDTHS:
            count += (last - first) // WIDTHS[number]
        else:
            count += int(np.count_nonzero(np.frombuffer(view[first:last], np.uint8) < LAST_BYTE))
        if count > most:
            break
    return count


def _check(left: int, values: int, most_beside: int, most_values: int) -> None:
    if left < 0:
        raise TooLarge([Problem("message", "too_long", f"must have at most {most_beside} bytes outside the values of its inputs")])
    if values < 0:
        raise TooLarge([Problem("inputs", "too_long", f"must hold at most {most_values} values")])
