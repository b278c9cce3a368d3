"""From scores to the columns of the output, with the numbers that the served API prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from serve_app.artifacts.matrix import PIECE_ROWS, Matrix, Scores, batched
from serve_app.artifacts.signature import Signature
from serve_app.batch.score_options import Format, OnError
from serve_app.errors import UsageError
from serve_app.protocols.encode import numbers
from serve_app.tables.columns import Rows

ERROR = "error"


def output_schema(signature: Signature, kept: Sequence[tuple[str, pa.DataType]], on_error: OnError) -> pa.Schema:
    """Kept columns, prediction, confidence and probabilities (classification), model_version, error (when rows are kept)."""
    fields: list[tuple[str, pa.DataType]] = [("prediction", _label_type(signature))]
    if signature.task == "classification":
        fields.append(("confidence", pa.float64()))
        if signature.probabilistic:
            fields += [(f"probability_{label}", pa.float64()) for label in signature.classes]
    fields.append(("model_version", pa.string()))
    if on_error == "keep":
        fields.append((ERROR, pa.string()))
    for name, _ in kept:
        if name in dict(fields):
            raise UsageError(f"--keep '{name}': the output has a column of this name already; rename it in the input")
    return pa.schema([*kept, *fields])


def scored(rows: Rows, score: Any, signature: Signature, version: str, schema: pa.Schema) -> pa.Table:
    """The output of these rows; one with a problem gets its sentence instead of numbers."""
    count = len(rows.matrix)
    right = np.ones(count, bool)
    right[list(rows.problems)] = False
    columns: dict[str, Any] = {name: rows.kept.column(name) for name in rows.kept.column_names}
    found = answers(rows.matrix[right], score, signature) if right.any() else {}
    places = np.cumsum(right) - 1
    index = None if right.all() else pa.array(np.where(right, places, 0), pa.int64(), mask=~right)
    for name in schema.names:
        if name in columns:
            continue
        if name == "model_version":
            columns[name] = pa.array([version] * count, pa.string())
        elif name == ERROR:
            columns[name] = pa.array([rows.problems.get(row) for row in range(count)], pa.string())
        elif name not in found:
            columns[name] = pa.nulls(count, schema.field(name).type)
        else:
            columns[name] = found[name] if index is None else found[name].take(index)
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def answers(matrix: Matrix, score: Any, signature: Signature) -> dict[str, Any]:
    """The columns that the model gives for rows that are right; in pieces, as the served API computes a large batch."""
    scores: Scores = np.concatenate([score(piece) for piece in batched(matrix, PIECE_ROWS)])
    if signature.task == "regression":
        return {"prediction": pa.array(_printed(scores))}
    kind = _label_type(signature)
    labels = pa.array([str(label) if kind == pa.string() else label for label in signature.classes], kind)
    if not signature.probabilistic:
        return {"prediction": labels.take(pa.array(scores.astype(np.int64)))}
    best = scores.argmax(axis=1)
    printed = _printed(scores).reshape(scores.shape)
    probabilities = {f"probability_{label}": pa.array(printed[:, at]) for at, label in enumerate(signature.classes)}
    return {
        "prediction": labels.take(pa.array(best)),
        "confidence": pa.array(printed[np.arange(len(best)), best]),
        **probabilities,
    }


def encoded(tables: Iterable[pa.Table], schema: pa.Schema, form: Format) -> tuple[pa.Buffer, int, int]:
    """The bytes of an output file, its rows, and how many of them have an error."""
    sink = pa.BufferOutputStream()
    rows = errors = 0
    writer = parquet.ParquetWriter(sink, schema) if form == "parquet" else arrow_csv.CSVWriter(sink, schema)
    with writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
            errors += table.num_rows - table.column(ERROR).null_count if ERROR in schema.names else 0
    return sink.getvalue(), rows, errors


def errors_in(data: bytes, form: Format) -> int:
    """How many rows of an output file have an error."""
    if form == "parquet":
        column = parquet.read_table(pa.BufferReader(data), columns=[ERROR]).column(ERROR)
        return len(column) - int(column.null_count)
    options = arrow_csv.ConvertOptions(include_columns=[ERROR], column_types={ERROR: pa.string()}, strings_can_be_null=False)
    parsing = arrow_csv.ParseOptions(newlines_in_values=True)
    texts = arrow_csv.read_csv(pa.BufferReader(data), parse_options=parsing, convert_options=options).column(ERROR)
    return sum(text != "" for text in texts.to_pylist())


def _printed(scores: Scores) -> Any:
    """float64 as an answer prints it: a float32 becomes the number that its shortest text names."""
    return scores if scores.dtype == np.float64 else np.array(numbers(scores), dtype=np.float64)


def _label_type(signature: Signature) -> pa.DataType:
    if signature.task == "regression":
        return pa.float64()
    kinds = {type(label) for label in signature.classes}
    return (
        {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(kinds.pop(), pa.string()) if len(kinds) == 1 else pa.string()
    )
