"""A JSON document read value by value, in steps of bounded size.

`json.loads` holds Python's lock until it has read the whole document: all other requests of the process wait meanwhile, and a
document of 16 MB may become objects of 500 MB. This reader decodes and parses a window of the document at a time, so it runs in a
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
# json reads NaN and Infinity, so that they can be refused by the field's name instead of as a syntax error. A number of thousands
# of digits is read as a float; Python would refuse to read it as an int.
_DECODER = json.JSONDecoder(parse_int=float)
_NUMBER_ENDS = 3
"""Behind a number, so many characters show that it has ended: `1` may go on with `e+5`."""


def malformed() -> Malformed:
    """The error of a body that is no JSON document in UTF-8."""
    return Malformed([Problem("body", "json", "must be a JSON document in UTF-8")])


def not_an_object() -> InvalidInput:
    """The error of a document of another kind than an object."""
    return InvalidInput([Problem("body", "type", "must be a JSON object")])


def load_object(body: Buffer) -> dict[str, Any]:
    """A small JSON object, parsed by one call. Raises Malformed and InvalidInput."""
    try:
        document = json.loads(body.decode("utf-8-sig"), parse_int=float)
    except (ValueError, RecursionError):
        raise malformed() from None
    if not isinstance(document, dict):
        raise not_an_object()
    return document


class JsonReader:
    """Reads `body`; no value that `value` returns is longer than `longest` characters."""

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
        """The next value. Raises Malformed, and TooLarge for one that is longer than `longest`."""
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
        """The values of a list from here to the last place of the window at which one seems to end and the next one to begin.

        Objects or lists without the comma behind the last one; empty when there is no such place. A cut may be wrong: the run is no
        list of rows then. `skip` goes on behind it, `value` reads the first value of it.
        """
        self.peek()
        if self.left < self._window_bytes // 2:
            self._refill()
        end = max(self._text.rfind("},", self._position), self._text.rfind("],", self._position))
        return self._text[self._position : end + 1] if end > self._position else ""

    def plain_run(self) -> str:
        """The values of a list of no lists from here to its end, or to the last comma of the window; see `run`.

        Behind the end of the list `take` finds its bracket.
        """
        self.peek()
        if self.left < self._window_bytes // 2:
            self._refill()
        end = self._text.find("]", self._position)
        if end < 0:
            end = self._text.rfind(",", self._position)
        return self._text[self._position : end] if end > self._position else ""

    def skip(self, run: str) -> None:
        """Go on behind a run and its comma; the end of its list stays."""
        self._position += len(run)
        self.take(",")

    def members(self) -> Iterator[str]:
        """The names of the fields of an object, one by one; the caller reads the value behind each. Raises InvalidInput."""
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
        """Make sure that nothing follows."""
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
        """Drop what was read, and decode the next window of the body behind what is left; False at the end of the body."""
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
        """Whether a value that seems broken is perhaps only cut off by the end of the window."""
        return self._next_byte < len(self._body) and len(self._text) - self._position <= self._longest

    def _refusal(self, error: ValueError) -> InvalidInput:
        """A value that ends with the window is too long; any other one is broken."""
        if self._next_byte >= len(self._body):
            return malformed()
        cut_off = getattr(error, "msg", "").startswith("Unterminated") or getattr(error, "pos", 0) >= len(self._text) - 12
        return self._too_large() if cut_off else malformed()

    def _too_large(self) -> TooLarge:
        return TooLarge([Problem("body", "too_long", f"must not hold a row of more than {self._longest} bytes")])
