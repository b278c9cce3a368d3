"""Rules for all CSV files: row ends, truth values, names of columns."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from serve_app.errors import UsageError
from serve_app.tables.numerals import PLAIN

csv.field_size_limit(1 << 30)  # a cell may be a long text

NEWLINE, RETURN, QUOTE = b'\n\r"'

TRUE, FALSE = ("True", "TRUE", "true"), ("False", "FALSE", "false")
"""Texts of a boolean cell; they are those of pandas."""

FORMULA = re.compile("^[=+\\-@\\t\\r\\n＝＋－＠]")  # noqa: RUF001 - a spreadsheet treats the wide forms like the narrow forms
"""The beginning of a text that a spreadsheet may run."""


def unnamed(position: int, taken: Collection[str]) -> str:
    """The name that pandas gives to a column without a name: `Unnamed: 0`, or `Unnamed: 0.1` when that is taken."""
    name, copy = f"Unnamed: {position}", 0
    while name in taken:
        copy += 1
        name = f"Unnamed: {position}.{copy}"
    return name


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def csv_records(text: str, separator: str) -> Iterator[list[str]]:
    """The records of a text from Python's csv module, without empty lines; the iteration raises csv.Error."""
    return records_of_lines(io.StringIO(text, newline=""), separator)


def records_of_lines(lines: Iterable[str], separator: str) -> Iterator[list[str]]:
    """The records of lines with line ends, without empty lines. It takes each line only when a record needs it."""
    return filter(None, csv.reader(lines, delimiter=separator, skipinitialspace=True))


def without_formula(text: str) -> str:
    """The text, with an apostrophe in front if a spreadsheet would run it as a formula; a number, like `-15`, does not change.

    See https://owasp.org/www-community/attacks/CSV_Injection
    """
    return f"'{text}" if FORMULA.match(text) and not PLAIN.fullmatch(text) else text


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError when two columns have the same name."""
    first: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if first.setdefault(name, position) != position:
            raise UsageError(f"two columns are named '{name}' (columns {first[name]} and {position}): rename one")


def twins(texts: Sequence[str]) -> dict[str, str]:
    """An earlier text that differs only in case or blanks, by text."""
    first: dict[str, str] = {}
    pairs = ((text, first.setdefault(" ".join(text.split()).casefold(), text)) for text in texts)
    return {text: other for text, other in pairs if other != text}


def row_ends(data: Any, parity: int, *, skip: int = 0) -> tuple[Any, int]:
    """Positions of the newlines outside quotes after the first `skip` bytes, and the number of quotes after them.

    `parity` is 1 when the bytes begin inside quotes, otherwise 0.
    """
    newlines = np.flatnonzero(data[skip:] == NEWLINE) + skip
    quotes = np.flatnonzero(data[skip:] == QUOTE) + skip
    if len(quotes) or parity:
        newlines = newlines[(np.searchsorted(quotes, newlines) + parity) % 2 == 0]
    return newlines, len(quotes)
