"""The JSON of a request of the Open Inference Protocol, without the values of its tensors.

The values of a tensor stay bytes, so that no value is parsed into memory before names, datatypes and shapes are checked.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from serve_app.errors import InvalidInput, Problem, TooLarge
from serve_app.protocols.codec import Buffer
from serve_app.protocols.json_reader import malformed

WHOLE_BYTES = 64 * 1024
"""A larger JSON text is read in steps, because all other requests wait while one call runs."""
STEP_TOKENS = 200
TEXT_TOKENS = 16
TOKEN_BYTES = 2048
"""The most that one step passes: the tokens of a list, the tokens of a short text, and the bytes of one token."""


class InputParameters(msgspec.Struct, gc=False):
    """The parameters of an input that the server reads; others are ignored."""

    binary_data_size: int | None = None


class RequestParameters(msgspec.Struct, gc=False):
    """The parameters of a request that the server reads; others are ignored."""

    binary_data_output: bool | None = None


class OutputParameters(msgspec.Struct, gc=False):
    """The parameters of a requested output that the server reads; others are ignored."""

    binary_data: bool | None = None
    classification: int | None = None


class InputDocument(msgspec.Struct, gc=False):
    """One input; `data` is JSON text."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = msgspec.Raw()
    parameters: InputParameters | None = None


class OutputDocument(msgspec.Struct, gc=False):
    """One requested output."""

    name: str
    parameters: OutputParameters | None = None


class RequestDocument(msgspec.Struct, gc=False):
    """A request; other members are ignored."""

    inputs: list[InputDocument]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: list[OutputDocument] | None = None


class RowTensor(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One input in JSON that holds one row of numbers, flat or nested."""

    name: str
    shape: tuple[int, int]
    datatype: str
    data: list[float | list[float]]


class RowDocument(msgspec.Struct, gc=False):
    """A request with one such input, the most common request."""

    inputs: tuple[RowTensor]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: list[OutputDocument] | None = None


class Body(NamedTuple):
    """A request without its values, and the JSON list of each input; None for an input without `data`."""

    document: RequestDocument
    data: list[bytes | None]


_DECODE = msgspec.json.Decoder(RequestDocument).decode
_DECODE_ROW = msgspec.json.Decoder(RowDocument).decode
_POSITION = msgspec.json.Decoder(list[int]).decode
_DATA = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*\[')
# These patterns match up to the end of the list: bytes outside texts, short texts, and the ends of inner lists. The end of the list
# itself is followed by the end of the object or by the name of the next member.
_IN_TEXT = rb'(?:[^"\\]{1,%d}+|\\.)' % TOKEN_BYTES
_SHORT_TEXT = b'"%b{0,%d}+"' % (_IN_TEXT, TEXT_TOKENS)
_IN_LIST = rb'(?:[^"\]]{1,%d}+|%b|\](?![ \t\r\n]*(?:\}|,[ \t\r\n]*")))' % (TOKEN_BYTES, _SHORT_TEXT)
_STEP = re.compile(b"%b{0,%d}+" % (_IN_LIST, STEP_TOKENS), re.DOTALL)
_TEXT_STEP = re.compile(b"%b{0,%d}+" % (_IN_TEXT, STEP_TOKENS), re.DOTALL)


def read_row(text: Buffer) -> RowDocument | None:
    """A small request with one input that holds one row of numbers; None for any other request, valid or not."""
    try:
        document = _DECODE_ROW(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return document if document.inputs[0].shape[0] == 1 else None


def read_body(text: Buffer | memoryview, longest: int) -> Body:
    """The request in a JSON text. In a large text, the part outside the values has at most `longest` bytes.

    Raises Malformed, TooLarge, and InvalidInput for members that are missing or have a wrong type.
    """
    if len(text) <= WHOLE_BYTES:
        try:
            document = _DECODE(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # the values may contain NaN, which is not JSON
        else:
            return Body(document, [bytes(each.data) or None for each in document.inputs])
    whole = bytes(text)
    skeleton, lists = _without_data(whole, max(longest, WHOLE_BYTES))
    try:
        document = _DECODE(skeleton)
    except msgspec.ValidationError as error:
        raise _invalid(error) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise malformed() from None
    return Body(document, [_list_of(each.data, whole, lists) for each in document.inputs])


def _without_data(text: bytes, longest: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The text with a number like `[0]` in place of each list of values, and the positions of these lists in the text."""
    pieces: list[bytes] = []
    lists: list[tuple[int, int]] = []
    at, left = 0, longest
    while match := _DATA.search(text, at, min(len(text), at + left)):
        start = match.end() - 1
        end = _end_of_list(text, match.end())
        pieces += [text[at:start], b"[%d]" % len(lists)]
        lists.append((start, end))
        left -= start - at
        at = end
    if len(text) - at > left:
        raise TooLarge([Problem("body", "too_long", f"must hold at most {longest} bytes outside the values of its inputs")])
    return b"".join([*pieces, text[at:]]), lists


def _end_of_list(text: bytes, at: int) -> int:
    """The end of the list that begins with the byte before `at`. Raises Malformed."""
    while True:
        at = _passed(_STEP, text, at)
        if text[at : at + 1] == b"]":
            return at + 1
        if text[at : at + 1] != b'"':
            raise malformed()
        at = _passed(_TEXT_STEP, text, at + 1)
        if text[at : at + 1] != b'"':
            raise malformed()
        at += 1


def _passed(step: re.Pattern[bytes], text: bytes, at: int) -> int:
    """The position after all steps of a pattern, which also matches the empty text."""
    while (match := step.match(text, at)) and match.end() > at:
        at = match.end()
    return at


def _list_of(data: Any, text: bytes, lists: list[tuple[int, int]]) -> bytes | None:
    """The JSON list that a number stands for; None without `data`; a value that is not a list unchanged."""
    placeholder = bytes(data)
    if not placeholder.startswith(b"["):
        return placeholder or None
    try:
        (position,) = _POSITION(placeholder)
        start, end = lists[position]
    except (msgspec.MsgspecError, ValueError, IndexError):
        raise malformed() from None
    return text[start:end]


def _invalid(error: msgspec.ValidationError) -> InvalidInput:
    """The error for a message of msgspec, which names no value: "Expected `int`, got `str` - at `$.inputs[0].shape[1]`"."""
    message, _, place = str(error).partition(" - at ")
    field = place.strip("`").removeprefix("$").lstrip(".") or "body"
    return InvalidInput([Problem(field, "type", message[:1].lower() + message[1:].replace("`", ""))])
