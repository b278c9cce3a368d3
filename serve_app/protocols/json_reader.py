"""A JSON document read value by value, in steps of bounded size.

`json.loads` holds the GIL until it has read the whole document. All other requests of the process wait for it, and a document of
16 MB may become objects of 500 MB. This reader decodes and parses one window of the document at a time. It can therefore run in a
thread beside the event loop, and its caller can stop after any value.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from serve_app.errors import InvalidInput, Malformed, Problem, TooLarge
from serve_app.protocols.codec import Buffer

WINDOW_BYTES = 128 * 1024
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")
# json accepts NaN and Infinity, so the refusal can name the field instead of a syntax error. Integers are read as floats, because
# Python refuses to parse an int of thousands of digits.
_DECODER = json.JSONDecoder(parse_int=float)
_NUMBER_ENDS = 3
"""The number of characters after a number that show that it has ended; `1` may continue with `e+5`."""


def malformed() -> Malformed:
    """The error for a body that is not a JSON document in UTF-8."""
    return Malformed([Problem("body", "json", "must be a JSON document in UTF-8")])


def not_an_object() -> InvalidInput:
    """The error for a JSON document that is not an object."""
    return InvalidInput([Problem("body", "type", "must be a JSON object")])


def load_object(body: Buffer) -> dict[str, Any]:
    """A small JSON object, parsed with one call. Raises Malformed and InvalidInput."""
    try:
        document = json.loads(body.decode("utf-8-sig"), parse_int=float)
    except (ValueError, RecursionError):
        raise malformed() from None
    if not isinstance(document, dict):
        raise not_an_object()
    return document


class JsonReader:
    """Reads `body`. Values of more than `longest` characters are refused."""

    def __init__(self, body: Buffer, longest: int) -> None:
        self._body = memoryview(body)
        self._longest = longest
        self._window_bytes = max(WINDOW_BYTES, 2 * longest)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._next_byte = 0
        self._text = ""
        self._position = 0
        self._dropped = 0

    @property
    def offset(self) -> int:
        """Characters read so far."""
        return self._dropped + self._position

    @property
    def left(self) -> int:
        """Characters of the window that are not read yet."""
        return len(self._text) - self._position

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            match = _WHITE_SPACE.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._refill():
                return ""

    def take(self, character: str) -> bool:
        """Skip this character when it is the next one."""
        if self.peek() != character:
            return False
        self._position += 1
        return True

    def value(self) -> Any:
        """The next value. Raises Malformed, and TooLarge for a value that is longer than `longest`."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except RecursionError:
                raise malformed() from None
            except ValueError as error:
                if not self._may_go_on():
                    raise self._refusal(error) from None
            else:
                if end - self._position > self._longest:
                    raise self._too_large()
                if len(self._text) - end >= _NUMBER_ENDS or self._next_byte >= len(self._body):
                    self._position = end
                    return value
            self._refill()

    def run(self) -> str:
        """The values of a list up to the last position in the window where one value seems to end and the next to begin.

        The run holds objects or lists, without the comma after the last one; it is empty when there is no such position. A cut may
        be wrong; then the run is not a list of rows. Call `skip` to continue after the run, or `value` to read its first value.
        """
        self.peek()
        if self.left < self._window_bytes // 2:
            self._refill()
        end = max(self._text.rfind("},", self._position), self._text.rfind("],", self._position))
        return self._text[self._position : end + 1] if end > self._position else ""

    def plain_run(self) -> str:
        """The values of a list without inner lists, up to its end or to the last comma in the window; see `run`.

        At the end of the list, `take` finds its bracket.
        """
        self.peek()
        if self.left < self._window_bytes // 2:
            self._refill()
        end = self._text.find("]", self._position)
        if end < 0:
            end = self._text.rfind(",", self._position)
        return self._text[self._position : end] if end > self._position else ""

    def skip(self, run: str) -> None:
        """Skip a run and the comma after it. The closing bracket of the list is not skipped."""
        self._position += len(run)
        self.take(",")

    def members(self) -> Iterator[str]:
        """The names of the fields of an object, one by one; the caller reads the value after each name. Raises InvalidInput."""
        if self.peek() != "{":
            self.value()
            self.end()
            raise not_an_object()
        yield from self._separated("{", "}", self._name)

    def items(self) -> Iterator[Any]:
        """The values of a list, one by one."""
        yield from self._separated("[", "]", self.value)

    def expect(self, character: str) -> None:
        """Skip this character. Raises Malformed when another one is next."""
        if not self.take(character):
            raise malformed()

    def end(self) -> None:
        """Raise Malformed when anything follows."""
        if self.peek():
            raise malformed()

    def _separated(self, first: str, last: str, read: Any) -> Iterator[Any]:
        self.expect(first)
        if self.take(last):
            return
        while True:
            yield read()
            if not self.take(","):
                break
        self.expect(last)

    def _name(self) -> str:
        name = self.value()
        if not isinstance(name, str):
            raise malformed()
        self.expect(":")
        return name

    def _refill(self) -> bool:
        """Drop the text that was read and append the next window of the body; return False at the end of the body."""
        if self._next_byte >= len(self._body):
            return False
        piece = self._body[self._next_byte : self._next_byte + self._window_bytes]
        self._next_byte += len(piece)
        try:
            text = self._decoder.decode(piece, self._next_byte >= len(self._body))
        except UnicodeDecodeError:
            raise malformed() from None
        self._dropped += self._position
        self._text = self._text[self._position :] + text
        self._position = 0
        return True

    def _may_go_on(self) -> bool:
        """Whether the end of the window may have truncated a value that seems broken."""
        return self._next_byte < len(self._body) and len(self._text) - self._position <= self._longest

    def _refusal(self, error: ValueError) -> InvalidInput:
        """TooLarge for a value that reaches the end of the window; Malformed for any other value."""
        if self._next_byte >= len(self._body):
            return malformed()
        cut_off = getattr(error, "msg", "").startswith("Unterminated") or getattr(error, "pos", 0) >= len(self._text) - 12
        return self._too_large() if cut_off else malformed()

    def _too_large(self) -> TooLarge:
        return TooLarge([Problem("body", "too_long", f"must not hold a row of more than {self._longest} bytes")])
