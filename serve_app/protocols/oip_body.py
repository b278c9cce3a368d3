"""The JSON of a request of the Open Inference Protocol, without the values of its tensors.

The values of a tensor are left as bytes, so that nothing of them is in memory before names, datatypes and shapes were checked.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from serve_app.errors import InvalidInput, Problem, TooLarge
from serve_app.protocols.codec import Buffer
from serve_app.protocols.json_reader import malformed

WHOLE_BYTES = 64 * 1024
"""A larger JSON text is read in steps, because all other requests wait while a single call runs."""
STEP_TOKENS = 200
TEXT_TOKENS = 16
TOKEN_BYTES = 2048
"""What one step passes over: so many ends of lists, texts of so many tokens, and runs of so many other bytes."""


class InputParameters(msgspec.Struct, gc=False):
    """What the server reads of the parameters of an input; others are ignored."""

    binary_data_size: int | None = None


class RequestParameters(msgspec.Struct, gc=False):
    """What the server reads of the parameters of a request."""

    binary_data_output: bool | None = None


class OutputParameters(msgspec.Struct, gc=False):
    """What the server reads of the parameters of a requested output."""

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
    """A request; members that are not named here are ignored."""

    inputs: list[InputDocument]
    id: str | None = None
    parameters: RequestParameters | None = None
    outputs: list[OutputDocument] | None = None


class Body(NamedTuple):
    """A request without the values, and the JSON list of each input; None where an input has no `data`."""

    document: RequestDocument
    data: list[bytes | None]


_DECODE = msgspec.json.Decoder(RequestDocument).decode
_POSITION = msgspec.json.Decoder(list[int]).decode
_DATA = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*\[')
# Up to the end of the list: what is neither text nor end, texts that are not long, and the ends of inner lists. The end of the list
# itself is before the end of the object, or before the name of the next member.
_IN_TEXT = rb'(?:[^"\\]{1,%d}+|\\.)' % TOKEN_BYTES
_SHORT_TEXT = b'"%b{0,%d}+"' % (_IN_TEXT, TEXT_TOKENS)
_IN_LIST = rb'(?:[^"\]]{1,%d}+|%b|\](?![ \t\r\n]*(?:\}|,[ \t\r\n]*")))' % (TOKEN_BYTES, _SHORT_TEXT)
_STEP = re.compile(b"%b{0,%d}+" % (_IN_LIST, STEP_TOKENS), re.DOTALL)
_TEXT_STEP = re.compile(b"%b{0,%d}+" % (_IN_TEXT, STEP_TOKENS), re.DOTALL)


def read_body(text: Buffer | memoryview, longest: int) -> Body:
    """The request in a JSON text. What stands beside the values has at most `longest` bytes when the text is not small.

    Raises Malformed, TooLarge, and InvalidInput for members that are missing or of a wrong type.
    """
    if len(text) <= WHOLE_BYTES:
        try:
            document = _DECODE(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # perhaps a token like NaN among the values, which JSON does not have
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
    """The text with the number of its list, like `[0]`, in place of each list of values, and where these lists are in the text."""
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
        raise TooLarge([Problem("body", "too_long", f"must hold at most {longest} bytes beside the values of its inputs")])
    return b"".join([*pieces, text[at:]]), lists


def _end_of_list(text: bytes, at: int) -> int:
    """Where the list ends whose first byte is before `at`. Raises Malformed."""
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
    """Where the steps of a pattern end that matches the empty text too."""
    while (match := step.match(text, at)) and match.end() > at:
        at = match.end()
    return at


def _list_of(data: Any, text: bytes, lists: list[tuple[int, int]]) -> bytes | None:
    """The JSON list behind its number; None for no `data`, and what is no list as it is."""
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
    """msgspec names a type and a place, and no value: "Expected `int`, got `str` - at `$.inputs[0].shape[1]`"."""
    message, _, place = str(error).partition(" - at ")
    field = place.strip("`").removeprefix("$").lstrip(".") or "body"
    return InvalidInput([Problem(field, "type", message[:1].lower() + message[1:].replace("`", ""))])
