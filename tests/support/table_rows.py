"""A signature with every kind of column, rows for it, and these rows in every form in which clients send tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.fields import Unknown, UnknownFields
from serve_app.artifacts.signature import Feature, Signature
from serve_app.protocols.codec import CodecContext

ORDER = Signature(
    (
        Feature("age", "number", 0.0, 120.0, nullable=True),
        Feature("pieces", "number", 1.0, 9.0),
        Feature("city", "category", categories=("Bern", "Rome", 'Zürich, "old"'), nullable=True),
        Feature("member", "boolean"),
        Feature("placed", "date", date=DateForm()),
        Feature("note", "text", nullable=True, max_length=40),
    ),
    "regression",
)
NUMBERS = Signature((Feature("a"), Feature("b", "number", -5.0, 5.0)), "regression")
NAMES = ORDER.names

ROWS: list[dict[str, Any]] = [
    {"age": 20.5, "pieces": 3, "city": "Rome", "member": True, "placed": "2025-01-31", "note": 'broken, "twice"'},
    {"age": None, "pieces": 1, "city": 'Zürich, "old"', "member": False, "placed": "2024-02-29", "note": None},
    {"age": 0.1, "pieces": 9, "city": None, "member": True, "placed": "1999-12-31", "note": "two\nlines, naïve 🚚"},
    {"age": 1e-300, "pieces": 2.5, "city": "Bern", "member": False, "placed": "2025-06-01", "note": "x" * 40},
]


def context(
    signature: Signature = ORDER,
    *,
    max_rows: int = 1000,
    max_row_bytes: int = 10_000,
    unknown: Unknown = "refuse",
    unknown_fields: UnknownFields = "ignore",
) -> CodecContext:
    return CodecContext(
        signature=signature,
        model_name="orders",
        model_version="7",
        max_rows=max_rows,
        max_row_bytes=max_row_bytes,
        max_body_bytes=16 * 1024 * 1024,
        unknown=unknown,
        unknown_fields=unknown_fields,
    )


def values(rows: Sequence[dict[str, Any]] = ROWS, names: Sequence[str] = NAMES) -> list[list[Any]]:
    return [[row[name] for name in names] for row in rows]


def json_forms(rows: Sequence[dict[str, Any]] = ROWS, names: Sequence[str] = NAMES) -> dict[str, Any]:
    """The same table in every form of a JSON object, by what is special about it."""
    back = list(reversed(names))
    columns = {name: [row[name] for row in rows] for name in back}
    return {
        "instances, objects": {"instances": list(rows)},
        "instances, lists": {"instances": values(rows, names)},
        "instances, both": {"instances": [rows[0], *values(rows[1:], names)]},
        "inputs, objects": {"inputs": list(rows), "params": {"a": [1, 2], "b": {}}},
        "inputs, lists": {"signature_name": "x", "inputs": values(rows, names)},
        "inputs, columns": {"inputs": columns},
        "inputs, columns of [rows, 1]": {"inputs": {name: [[value] for value in column] for name, column in columns.items()}},
        "records": {"dataframe_records": [{**row, "zip": ["1", {}]} for row in rows]},
        "split": {"dataframe_split": {"columns": list(names), "index": list(range(len(rows))), "data": values(rows, names)}},
        "split, another order": {"dataframe_split": {"index": ["a", "b"], "columns": back, "data": values(rows, back)}},
        "split, data first": {"dataframe_split": {"data": values(rows, back), "index": None, "columns": back}},
        "split, a further column": {
            "dataframe_split": {"columns": ["zip", *back], "data": [[{"no": 1}, *row] for row in values(rows, back)]}
        },
        "split without columns": {"dataframe_split": {"data": values(rows, names)}},
        "split, numbered columns": {"dataframe_split": {"columns": list(range(len(names))), "data": values(rows, names)}},
        "input_data": {"input_data": {"columns": back, "index": [], "data": values(rows, back)}, "params": {}},
        "input_data, a list": {"input_data": values(rows, names)},
    }


def csv_text(rows: Sequence[dict[str, Any]] = ROWS, names: Sequence[str] = NAMES, *, header: bool = True, end: str = "\n") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end)
    if header:
        writer.writerow(names)
    for row in values(rows, names):
        writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in row])
    return text.getvalue().encode()


def lines(rows: Sequence[Any] = ROWS, end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()
