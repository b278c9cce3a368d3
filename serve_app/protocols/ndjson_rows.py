"""Rows as lines of JSON, read in pieces as they arrive. The first rows can be answered before the last rows arrive."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serve_app.artifacts.fields import MAX_PROBLEMS, read_row
from serve_app.artifacts.matrix import Matrix, matrix_type
from serve_app.errors import InvalidInput, Malformed, Problem, TooLarge, TooManyRows
from serve_app.protocols.codec import Buffer, CodecContext
from serve_app.protocols.decode import PIECE_BYTES, NotFastPath, Values, lines_decoder
from serve_app.protocols.json_tables import RowReader
from serve_app.protocols.limits import rows_within

_BOM = b"\xef\xbb\xbf"


class LineDecoder:
    """The decoders of a signature. A line is an object; with `lists`, it may also be the values in the order of the signature.

    With `lists`, NaN is null and 1 and 0 are booleans, as in `json_tables`.
    """

    def __init__(self, context: CodecContext, *, lists: bool) -> None:
        signature = context.signature
        self.context = context
        self.objects = lines_decoder(signature, unknown=context.unknown, unknown_fields=context.unknown_fields)
        self.lists = lines_decoder(signature, unknown=context.unknown, columns=signature.names) if lists else None
        self.rows = RowReader(signature, None) if lists else None

    def decode(self, body: Buffer) -> Matrix:
        """The matrix of a whole body. Raises InvalidInput, Malformed, TooManyRows and TooLarge."""
        reader = self.open()
        view = memoryview(body)
        matrices, problems = [], list[Problem]()
        for start in range(0, len(body) + PIECE_BYTES, PIECE_BYTES):
            try:
                matrices.append(reader.feed(view[start : start + PIECE_BYTES]) if start < len(body) else reader.end())
            except (Malformed, TooManyRows, TooLarge):
                raise
            except InvalidInput as error:  # later pieces may have invalid rows, too
                problems += error.problems
                if len(problems) >= MAX_PROBLEMS:
                    break
        if problems:
            raise InvalidInput(problems[:MAX_PROBLEMS])
        return np.concatenate(matrices)

    def open(self) -> LineReader:
        """A reader for the pieces of one body."""
        return LineReader(self)


class LineReader:
    """Reads the lines of one request; `count` is the number of rows that it has read."""

    def __init__(self, decoder: LineDecoder) -> None:
        self._decoder = decoder
        self._max_rows = rows_within(decoder.context.signature, decoder.context.max_rows)
        self._rest = b""
        self._begun = False
        self.count = 0

    def feed(self, piece: bytes | memoryview) -> Matrix:
        """The rows that end in this piece of the body, shape (rows, features). Raises InvalidInput, TooManyRows and TooLarge."""
        text = self._rest + piece
        if not self._begun and len(text) >= len(_BOM):
            self._begun = True
            text = text.removeprefix(_BOM)
        lines = text.split(b"\n")
        self._rest = lines.pop()
        return self._matrix(lines, last=self._rest)

    def end(self) -> Matrix:
        """The row after the last line end, if any. Raises the same errors, and InvalidInput for a body without rows."""
        lines, self._rest = [self._rest], b""
        matrix = self._matrix(lines, last=b"")
        if not self.count:
            raise InvalidInput([Problem("instances", "too_short", "must hold at least one row")])
        return matrix

    def _matrix(self, lines: Sequence[bytes], *, last: bytes) -> Matrix:
        most = self._decoder.context.max_row_bytes
        if len(last) > most or (lines and max(map(len, lines)) > most):
            raise TooLarge([Problem("body", "too_long", f"must not hold a row of more than {most} bytes")])
        lines = [line for line in lines if line and not line.isspace()]
        if self.count + len(lines) > self._max_rows:
            raise TooManyRows([Problem("instances", "too_long", f"must hold at most {self._max_rows} rows")])
        decoder = self._decoder
        fast: Callable[[Sequence[Buffer]], Matrix] = decoder.objects
        if decoder.lists is not None and lines and lines[0].lstrip()[:1] == b"[":
            fast = decoder.lists
        first, self.count = self.count, self.count + len(lines)
        try:
            return fast(lines)
        except NotFastPath:
            return self._one_by_one(lines, first)

    def _one_by_one(self, lines: Sequence[bytes], first: int) -> Matrix:
        context = self._decoder.context
        signature, problems = context.signature, list[Problem]()
        values: Values = [] if signature.has_texts else array("d")
        for at, line in enumerate(lines, first):
            field = f"instances[{at}]"
            row, rows = _loaded(line, field), self._decoder.rows
            if rows is not None:
                row = rows.row(row, field, problems)
            if rows is None or row is not None:  # otherwise its problem was added
                values.extend(read_row(signature, row, f"{field}.", problems, context.unknown, context.unknown_fields))
            if len(problems) >= MAX_PROBLEMS:
                break
        if problems:
            raise InvalidInput(problems[:MAX_PROBLEMS])
        return np.array(values, matrix_type(has_texts=signature.has_texts)).reshape(len(lines), len(signature.features))


def _loaded(line: bytes, field: str) -> Any:
    try:
        return json.loads(line.decode(), parse_int=float)
    except (ValueError, RecursionError):
        raise Malformed([Problem(field, "ndjson", "must be a JSON document in UTF-8")]) from None
