"""The dialect of a CSV file, detected once from its first bytes or set by flags; training and scoring use it.

The module refuses an ambiguous file, and names the flag that decides.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from serve_app.errors import UsageError
from serve_app.tables.content import PLAIN, Compression, TextForm
from serve_app.tables.csv_format import csv_records

SEPARATORS = (",", ";", "\t", "|")
"""Separators that the module detects. It also detects a space below a header with quoted names, as R writes it."""

BOM = "\ufeff"

_NAMES = {",": "','", ";": "';'", "\t": "tab", "|": "'|'", " ": "space"}
_BY_NAME = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";", "pipe": "|"}
_EXCEL_LINE = re.compile(r'"?sep=(?P<mark>[^"\r\n])"?\r?\n?')
_QUOTED_NAMES = re.compile(r'"[^"]*"(?: "[^"]*")*\s*')

_COMMA_NUMBER = re.compile(r"[+-]?(?:\d*,\d+|\d{1,3}(?:\.\d{3})+,\d+)(?:[eE][+-]?\d+)?")
_POINT_NUMBER = re.compile(r"[+-]?(?:\d*\.\d+|\d{1,3}(?:,\d{3})+\.\d+)(?:[eE][+-]?\d+)?")
_COMMA_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+")
_POINT_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+")

_CELLS = 100_000
"""Maximum number of cells to search for the decimal mark."""


@dataclass(frozen=True, slots=True)
class DialectFlags:
    """The user's flags for CSV files; None means detection from the first bytes of each file. Raises UsageError."""

    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.separator is not None:
            mark = _BY_NAME.get(self.separator.lower(), self.separator)
            if len(mark) != 1 or not mark.isascii() or mark.isalnum() or mark in "\"'\r\n\0.+-_":
                raise UsageError(f"--separator '{self.separator}' must be one character like ';' or '|', or tab")
            object.__setattr__(self, "separator", mark)
        if self.decimal not in (None, ".", ","):
            raise UsageError(f"--decimal '{self.decimal}' must be '.' or ','")
        if self.encoding is not None:
            object.__setattr__(self, "encoding", _codec(self.encoding))


@dataclass(frozen=True, slots=True)
class Dialect:
    """The form of the text, the separator, and the decimal mark."""

    form: TextForm = PLAIN
    separator: str = ","
    decimal: str = "."

    @property
    def description(self) -> str:
        """A description like `separator ';', decimal comma, Windows-1252, gzip`."""
        parts = [f"separator {mark_name(self.separator)}"]
        if self.decimal == ",":
            parts.append("decimal comma")
        if self.form.encoding != "utf-8":
            parts.append(
                {"cp1252": "Windows-1252 (Latin-1)", "iso8859-1": "Latin-1"}.get(self.form.encoding, self.form.encoding.upper())
            )
        if self.form.carriage:
            parts.append("lines that end in CR")
        if self.form.compression != "none":
            parts.append(self.form.compression)
        return ", ".join(parts)


PLAIN_DIALECT = Dialect()


def text_form(head: bytes, compression: Compression, flags: DialectFlags, name: str, *, whole: bool) -> TextForm:
    """The encoding and line ends according to the first bytes of a file; `whole`: these are all bytes. Raises UsageError."""
    encoding = flags.encoding or _encoding(head, name, whole=whole)
    text = decode_head(head, encoding, name, whole=whole)
    return TextForm(compression, encoding, "\r" in text and "\n" not in text)


def decode_head(head: bytes, encoding: str, name: str, *, whole: bool) -> str:
    """The first bytes of a file as text; raises UsageError."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head, final=whole)
    except UnicodeError:
        if encoding == "utf-8":
            raise _not_utf8(name) from None
        raise UsageError(f"{name} is not text in {encoding}: name its encoding with --encoding") from None


def excel_line(text: str) -> tuple[str | None, int]:
    """The separator in Excel's line `sep=;` at the beginning of a text, and the length of that line."""
    match = _EXCEL_LINE.match(text)
    if match is None or (match.end() < len(text) and not match.group().endswith("\n")):
        return None, 0
    return match.group("mark"), match.end()


def mark_name(mark: str) -> str:
    """The name of a separator in messages."""
    return _NAMES.get(mark, repr(mark))


def complete_dialect(text: str, form: TextForm, flags: DialectFlags, mark: str | None, name: str) -> Dialect:
    """The dialect of complete lines, the header first; `mark` is the separator of Excel's line. Raises UsageError."""
    dialect = Dialect(form, flags.separator or mark or _separator(text, name), flags.decimal or ".")
    if flags.decimal is None and dialect.separator != ",":
        return replace(dialect, decimal=_decimal(records(text, dialect.separator), name))
    return dialect


def records(text: str, separator: str) -> list[list[str]]:
    """The records of complete lines, without empty lines. Stops at a record that Python's csv module cannot read."""
    found: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        found.extend(csv_records(text, separator))
    return found


def _codec(name: str) -> str:
    try:
        b"".decode(name)
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise UsageError(f"--encoding '{name}' is not an encoding of Python: use utf-8, cp1252, latin-1, utf-16, …") from None
    return {"utf-8-sig": "utf-8", "ascii": "utf-8"}.get(codec, codec)


def _encoding(head: bytes, name: str, *, whole: bool) -> str:
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in head[:64]:
        even, odd = head[0:64:2].count(0), head[1:64:2].count(0)
        if min(even, odd) == 0 and max(even, odd) * 2 >= min(len(head), 64) * 0.8:
            return "utf-16-le" if odd else "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        if _is_western(head):
            return "cp1252"
        raise _not_utf8(name) from None
    return "utf-8"


_WESTERN = re.compile(
    rb"[A-Za-z][\xdf-\xf6\xf8-\xff]{1,2}(?=[^\x80-\xff]|\Z)"  # größe, café
    rb"|[\xc0-\xd6\xd8-\xf6\xf8-\xff](?=[A-Za-z])"  # Äpfel
    rb"|[\xdf-\xf6\xf8-\xff]{2}(?=[A-Za-z])"  # créée
    rb"|(?<![\x80-\xff])[\x80\xa3\xa7\xa9\xab\xae\xb0\xb5\xbb](?![\x80-\xff])"  # € £ § © « ® ° µ »
    rb"|(?<![A-Za-z\x80-\xff])[\xe0\x96\x97](?= )|(?<=[A-Za-z])\x92(?=[A-Za-z\xc0-\xff])"  # à, dashes, apostrophe
    rb"|(?<=[0-9])\xa0(?=[0-9%])|(?<=[0-9])\xa0(?=\x80)"  # 1 234
    rb"|(?<=m)[\xb2\xb3](?![A-Za-z\x80-\xff])"  # m², m³
)


def _is_western(head: bytes) -> bool:
    """Whether bytes that are not UTF-8 can only be a Western European text in Windows-1252 or Latin-1.

    Every byte beyond ASCII must be in a position that is usual in these languages: single accented letters within words, and a few
    signs. Texts in Cyrillic, Chinese or Polish encodings have other bytes, or longer runs of them.
    """
    return not re.search(rb"[\x80-\xff]", _WESTERN.sub(b"", head)) if b"\0" not in head else False


def _not_utf8(name: str) -> UsageError:
    return UsageError(f"{name} is not UTF-8 text: name its encoding, for example --encoding cp1252, or save it as CSV in UTF-8")


def _separator(text: str, name: str) -> str:
    """The separator with which every row of the text has the same number of values; raises UsageError for several."""
    line = text.partition("\n")[0]
    candidates = (*SEPARATORS, " ") if _QUOTED_NAMES.fullmatch(line) else SEPARATORS
    widths = {mark: [len(record) for record in islice(records(text, mark), 5000)] for mark in candidates if mark in text}
    named = {mark: each for mark, each in widths.items() if each and each[0] > 1}
    even = [mark for mark, each in named.items() if _fits(each)]
    if len(even) == 1:
        return even[0]
    if len(even) > 1:
        marks = " or ".join(_NAMES[mark] for mark in even)
        raise UsageError(f"the columns of {name} may be separated by {marks}: name the separator with --separator")
    if named:
        return "," if "," in named else max(named, key=lambda mark: named[mark][0])
    below = [mark for mark, each in widths.items() if each and len(each) > 2 and _fits(each) and each[-1] == 2]
    return below[0] if len(below) == 1 else ","


def _fits(widths: Sequence[int]) -> bool:
    """Whether all rows have the same width, which is at most one less than that of the header."""
    rows = set(widths[1:])
    return not rows or (len(rows) == 1 and rows.pop() >= widths[0] - 1)


def _decimal(rows: Sequence[Sequence[str]], name: str) -> str:
    """The decimal mark of the cells below the header; '.' when no number has a decimal mark."""
    commas = points = groups = None
    for cell in islice(chain.from_iterable(rows[1:]), _CELLS):
        text = cell.strip()
        if "," in text and _COMMA_GROUPS.fullmatch(text):
            groups = groups or text
        elif "," in text and _COMMA_NUMBER.fullmatch(text):
            commas = commas or text
        elif "." in text and _POINT_NUMBER.fullmatch(text) and not _POINT_GROUPS.fullmatch(text):
            points = points or text
    if commas and points:
        raise UsageError(f"{name} has numbers like '{commas}' and like '{points}': name the decimal mark with --decimal")
    if groups and not commas and not points:
        raise UsageError(f"{name} has ambiguous numbers like '{groups}': name the decimal mark with --decimal")
    return "," if commas else "."
