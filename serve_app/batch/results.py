"""From scores to the columns of the output; the numbers equal those of the served API."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet
from pyarrow import csv as arrow_csv

from serve_app.artifacts.matrix import PIECE_ROWS, Scores, batched
from serve_app.artifacts.signature import Signature
from serve_app.batch.score_options import Format, OnError
from serve_app.errors import NotFinite, UsageError
from serve_app.protocols.arrow_answers import answer_types, prediction_columns
from serve_app.tables.columns import Rows
from serve_app.tables.csv_format import FORMULA, without_formula
from serve_app.tables.numerals import PLAIN

ERROR = "error"
"""The column with the problem of a row, with `--on-error keep`."""


def output_schema(signature: Signature, kept: Sequence[tuple[str, pa.DataType]], on_error: OnError) -> pa.Schema:
    """The kept columns, the columns of the answer (see `answer_types`), `model_version`, and `error` with `--on-error keep`.

    Raises UsageError when a kept column has the name of another column of the output.
    """
    fields = [*answer_types(signature), ("model_version", pa.string())]
    if on_error == "keep":
        fields.append((ERROR, pa.string()))
    for name, _ in kept:
        if name in dict(fields):
            raise UsageError(f"--keep '{name}': the output already has a column with this name; rename it in the input")
    return pa.schema([*kept, *fields])


def score_rows(rows: Rows, score: Any) -> tuple[Rows, Scores]:
    """The rows, and the scores of those without a problem, computed in pieces of PIECE_ROWS rows like in the served API.

    A row whose scores are not finite, which the API refuses, gets a problem instead of scores.
    """
    valid = _valid(rows)
    if not len(valid):
        return rows, np.empty(0)
    with np.errstate(all="ignore"):  # the check below finds values that are not finite
        scores: Scores = np.concatenate([score(piece) for piece in batched(rows.matrix[valid], PIECE_ROWS)])
    finite = np.isfinite(scores.reshape(len(scores), -1)).all(axis=1)
    if finite.all():
        return rows, scores
    problems = {**rows.problems, **dict.fromkeys(valid[~finite].tolist(), NotFinite.MESSAGE)}
    return replace(rows, problems=problems), scores[finite]


def output_table(rows: Rows, scores: Scores, signature: Signature, version: str, schema: pa.Schema) -> pa.Table:
    """The output for these rows and `scores` (see `score_rows`); a row with a problem has the message instead of an answer."""
    count = len(rows.matrix)
    valid = np.zeros(count, bool)
    valid[_valid(rows)] = True
    columns: dict[str, Any] = {name: rows.kept.column(name) for name in rows.kept.column_names}
    predicted = prediction_columns(scores, signature) if valid.any() else {}
    index = None if valid.all() else pa.array(np.where(valid, np.cumsum(valid) - 1, 0), pa.int64(), mask=~valid)
    for name in schema.names:
        if name in columns:
            continue
        if name == "model_version":
            columns[name] = pa.array([version] * count, pa.string())
        elif name == ERROR:
            columns[name] = pa.array([rows.problems.get(row) for row in range(count)], pa.string())
        elif name not in predicted:
            columns[name] = pa.nulls(count, schema.field(name).type)
        else:
            columns[name] = predicted[name] if index is None else predicted[name].take(index)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _valid(rows: Rows) -> Any:
    """The positions of the rows without a problem."""
    return np.setdiff1d(np.arange(len(rows.matrix)), list(rows.problems), assume_unique=True)


def encode_tables(tables: Iterable[pa.Table], schema: pa.Schema, form: Format) -> tuple[pa.Buffer, int, int]:
    """The bytes of an output file, the number of its rows, and the number of rows with an error."""
    sink = pa.BufferOutputStream()
    rows = errors = 0
    writer = (
        parquet.ParquetWriter(sink, schema)
        if form == "parquet"
        else arrow_csv.CSVWriter(sink, _without_formulas(schema.empty_table()).schema)
    )
    with writer:
        for table in tables:
            writer.write_table(table if form == "parquet" else _without_formulas(table))
            rows += table.num_rows
            errors += table.num_rows - table.column(ERROR).null_count if ERROR in schema.names else 0
    return sink.getvalue(), rows, errors


def errors_in(data: bytes, form: Format) -> int:
    """The number of rows with an error in the bytes of an output file."""
    if form == "parquet":
        column = parquet.read_table(pa.BufferReader(data), columns=[ERROR]).column(ERROR)
        return len(column) - int(column.null_count)
    options = arrow_csv.ConvertOptions(include_columns=[ERROR], column_types={ERROR: pa.string()}, strings_can_be_null=False)
    parsing = arrow_csv.ParseOptions(newlines_in_values=True)
    texts = arrow_csv.read_csv(pa.BufferReader(data), parse_options=parsing, convert_options=options).column(ERROR)
    return sum(text != "" for text in texts.to_pylist())


def _without_formulas(table: pa.Table) -> pa.Table:
    """The table for CSV: an apostrophe precedes texts and column names that a spreadsheet would run as a formula.

    A text that is a number, like the ID `-15`, does not change. See https://owasp.org/www-community/attacks/CSV_Injection
    """
    return pa.table([_as_text(column) for column in table.columns], names=list(map(without_formula, table.schema.names)))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return column
    text = column.cast(pa.string())
    starts = compute.match_substring_regex(text, FORMULA.pattern)
    if not compute.any(starts).as_py():
        return text
    formula = compute.and_not(starts, compute.match_substring_regex(text, f"^{PLAIN.pattern}$"))
    return compute.if_else(formula, compute.binary_join_element_wise(pa.scalar("'"), text, pa.scalar("")), text)
