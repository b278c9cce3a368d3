"""How CSV files are read, for training and for scoring: the header, empty cells, truth values."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from serve_app.errors import UsageError

EMPTY = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Texts of a cell without a value, the same as in pandas (a test compares them)."""

TRUE, FALSE = ("True", "TRUE", "true"), ("False", "FALSE", "false")
"""Texts of a boolean cell, the same as in pandas."""

UNNAMED_INDEX = "Unnamed: 0"
"""The name of a first column without a name: pandas writes its index like that."""


def header_names(lines: Iterable[str], file: Path | str) -> list[str]:
    """The column names in the first line; `file` is named in errors. Raises UsageError for a column without a name, csv.Error."""
    names = next(csv.reader(lines, skipinitialspace=True), [])
    for position, name in enumerate(names):
        if not name.strip():
            if position == 0:
                names[0] = UNNAMED_INDEX
                continue
            raise UsageError(f"column {position + 1} of {file} has no name: write one in the header line")
    return names


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError when two columns have the same name."""
    first: dict[str, int] = {}
    for position, name in enumerate(names, start=1):
        if first.setdefault(name, position) != position:
            raise UsageError(f"two columns are named '{name}' (columns {first[name]} and {position}): rename one")
