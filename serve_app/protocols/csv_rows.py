"""CSV text as the matrix of the model, with the CSV reader of `serve_app.tables` and the field checks of requests.

The text is read line by line, and rows are coded in groups. Memory therefore grows with the matrix and not with the cells.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from serve_app.artifacts.fields import MAX_PROBLEMS, read_value
from serve_app.artifacts.matrix import Matrix, Value, matrix_type
from serve_app.artifacts.signature import Feature, Signature, missing_numbers
from serve_app.errors import InvalidInput, Malformed, Problem, TooLarge, TooManyRows
from serve_app.protocols.codec import Buffer, CodecContext
from serve_app.protocols.json_tables import check_columns
from serve_app.protocols.limits import rows_within
from serve_app.tables.cell_values import cell_value
from serve_app.tables.csv_format import records_of_lines

GROUP_ROWS = 1024
_PLAIN = re.compile(r"[0-9.eE+-]*")
"""The characters of plain numbers. For texts of these characters, `float` accepts the same numbers as `plain_number`."""
_BITS = {"1": True, "0": False}

Column = Callable[[Sequence[str], int], list[Value]]
"""From the cells of a column and the number of their first row to the values in the matrix. Problems are collected separately."""


def csv_decoder(context: CodecContext, *, without_header: bool) -> Callable[[Buffer, bool | None], Matrix]:
    """A function from CSV text to a matrix, rows in order. Raises InvalidInput, Malformed, TooManyRows and TooLarge.

    Its second argument tells whether the first line is a header. With None, the first line is a header, unless `without_header` is
    set and the line does not name any feature.
    """

    def decode(body: Buffer, header: bool | None) -> Matrix:
        if header is None and not without_header:
            header = True
        try:
            return _Reader(context).read(body, header)
        except UnicodeDecodeError:
            raise Malformed([Problem("body", "csv", "must be CSV text in UTF-8")]) from None
        except csv.Error:
            raise Malformed([Problem("body", "csv", "must be CSV text: end lines with LF or CRLF")]) from None

    return decode


class _Reader:
    def __init__(self, context: CodecContext) -> None:
        self._signature = context.signature
        self._unknown = context.unknown
        self._unknown_fields = context.unknown_fields
        self._max_rows = rows_within(context.signature, context.max_rows)
        self._max_row_bytes = context.max_row_bytes
        self._line_bytes = 0  # size of the current record
        self._problems: list[Problem] = []

    def read(self, body: Buffer, header: bool | None) -> Matrix:
        if b"\0" in body:
            raise Malformed([Problem("body", "csv", "must be CSV text without NUL bytes")])
        records = self._records(body)
        first = next(records, None)
        if first is None:
            raise InvalidInput([Problem("body", "too_short", "must hold a header line and at least one row")])
        names = self._header(first, header)
        waiting = [] if names is not None else [first]
        columns = self._signature.names if names is None else names
        coders = self._coders(columns)
        groups, count = [], 0
        for group in self._groups(records, waiting, len(columns)):
            groups.append(self._code(group, coders, count))
            count += len(group)
        self._check()
        if not count:
            raise InvalidInput([Problem("instances", "too_short", "must hold at least one row")])
        return np.concatenate(groups)

    def _records(self, body: Buffer) -> Iterator[list[str]]:
        with io.TextIOWrapper(io.BytesIO(body), encoding="utf-8-sig", newline="") as text:
            for record in records_of_lines(self._lines(text), ","):
                self._line_bytes = 0
                yield record

    def _lines(self, text: io.TextIOWrapper) -> Iterator[str]:
        most = self._max_row_bytes
        while line := text.readline(most + 1):
            self._line_bytes += len(line)
            if self._line_bytes > most:
                raise TooLarge([Problem("body", "too_long", f"must not hold a row of more than {most} bytes")])
            yield line

    def _header(self, first: Sequence[str], header: bool | None) -> tuple[str, ...] | None:
        """The names in the first record; None when it is a row with values in the order of the signature."""
        names = tuple(name.strip(" ") for name in first)
        if header is None:
            header = not frozenset(names).isdisjoint(self._signature.names)
            if not header and len(names) != len(self._signature.features):
                width = len(self._signature.features)
                message = f"must name the model's columns, or be a row of {width} values in their order, separated by commas"
                raise InvalidInput([Problem("header", "columns", message)])
        if not header:
            return None
        named = [name for name in names if name]  # an exported index has no name
        check_columns(self._signature, named, "header", self._unknown_fields)
        return names

    def _groups(self, records: Iterator[list[str]], group: list[list[str]], width: int) -> Iterator[list[list[str]]]:
        """The records in groups, each record as wide as the header."""
        count = len(group)
        for record in records:
            count += 1
            if count > self._max_rows:
                raise TooManyRows([Problem("instances", "too_long", f"must hold at most {self._max_rows} rows")])
            if len(record) != width:
                message = f"must hold {width} values, one for each column"
                raise InvalidInput([*self._problems, Problem(f"instances[{count - 1}]", "shape", message)])
            group.append(record)
            if len(group) == GROUP_ROWS:
                yield group
                group = []
        if group:
            yield group

    def _coders(self, columns: Sequence[str]) -> list[tuple[int | None, Column | None]]:
        """For each feature the position of its column, and the function that codes it."""
        positions = {name: at for at, name in enumerate(columns)}
        return [
            (positions[feature.name], self._coder(feature)) if feature.name in positions else (None, None)
            for feature in self._signature.features
        ]

    def _code(self, group: list[list[str]], coders: Sequence[tuple[int | None, Column | None]], first: int) -> Matrix:
        cells = list(zip(*group, strict=True))
        matrix: Matrix = np.full((len(group), len(coders)), math.nan, matrix_type(has_texts=self._signature.has_texts))
        for at, (position, coder) in enumerate(coders):
            if position is not None and coder is not None:
                matrix[:, at] = coder(cells[position], first)
        return matrix

    def _coder(self, feature: Feature) -> Column:
        slow = self._one_by_one(feature)
        if feature.kind == "number" and feature.unit is None and not missing_numbers(_gaps(feature, self._signature)):
            return _numbers(feature, slow)
        return _categories(feature, slow) if feature.kind == "category" else slow

    def _one_by_one(self, feature: Feature) -> Column:
        missing = self._signature.missing_texts
        gaps = frozenset(_gaps(feature, self._signature)).difference(feature.categories)

        def column(cells: Sequence[str], first: int) -> list[Value]:
            values: list[Value] = []
            for row, cell in enumerate(cells, first):
                text = cell.lstrip(" ") if feature.date is None else cell.strip(" ")
                sent = cell_value(feature, text, gaps, ".")
                if feature.kind == "boolean" and isinstance(sent, str):
                    sent = _BITS.get(sent, sent)
                value, problem = read_value(feature, sent, self._unknown, missing)
                if problem is not None:
                    self._add(Problem(f"instances[{row}].{feature.name}", *problem))
                values.append(value if problem is None else math.nan)
            return values

        return column

    def _add(self, problem: Problem) -> None:
        self._problems.append(problem)
        if len(self._problems) >= MAX_PROBLEMS:
            self._check()

    def _check(self) -> None:
        if self._problems:
            raise InvalidInput(self._problems[:MAX_PROBLEMS])


def _gaps(feature: Feature, signature: Signature) -> tuple[str, ...]:
    """The texts that mean null for a feature; an empty cell is always null."""
    return ("", *signature.missing_texts) if feature.nullable else ("",)


def _numbers(feature: Feature, slow: Column) -> Column:
    least, most = feature.bounds

    def column(cells: Sequence[str], first: int) -> list[Value]:
        try:
            numbers: list[Value] = [float(cell) for cell in cells] if _PLAIN.fullmatch("".join(cells)) else []
        except ValueError:
            return slow(cells, first)
        return numbers if numbers and least <= min(numbers) and max(numbers) <= most else slow(cells, first)  # type: ignore[operator]

    return column


def _categories(feature: Feature, slow: Column) -> Column:
    codes = {name: float(code) for code, name in enumerate(feature.categories) if not name.startswith(" ")}

    def column(cells: Sequence[str], first: int) -> list[Value]:
        try:
            return [codes[cell] for cell in cells]
        except KeyError:
            return slow(cells, first)

    return column
