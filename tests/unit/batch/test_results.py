"""The cells of a CSV file of scores: a spreadsheet runs none of them."""

from __future__ import annotations

import csv
import io

import pyarrow as pa
from pyarrow import parquet

from serve_app.batch.results import encode_tables

TEXTS = {
    "=1+1": "'=1+1",
    "@SUM(A1)": "'@SUM(A1)",
    "+cmd|' /C calc'!A0": "'+cmd|' /C calc'!A0",
    "-x": "'-x",
    "\t=1": "'\t=1",
    "\r=1": "'\r=1",
    "＝1": "'＝1",  # noqa: RUF001
    "-1.5\n=1": "'-1.5\n=1",
    "-1.5": "-1.5",
    "+4e3": "+4e3",
    "a=b": "a=b",
    "": "",
}
SCHEMA = pa.schema([("=id", pa.string()), ("number", pa.float64()), ("kind", pa.dictionary(pa.int32(), pa.string()))])


def scores() -> pa.Table:
    count = len(TEXTS)
    return pa.table([list(TEXTS), [-1.5] * count, pa.array(["=d"] * count).dictionary_encode()], schema=SCHEMA)


def test_a_text_that_begins_a_formula_begins_with_an_apostrophe_in_csv() -> None:
    data, rows, _ = encode_tables([scores()], SCHEMA, "csv")
    header, *cells = csv.reader(io.StringIO(data.to_pybytes().decode(), newline=""))
    assert (header, rows) == (["'=id", "number", "kind"], len(TEXTS))
    assert cells == [[shown, "-1.5", "'=d"] for shown in TEXTS.values()]


def test_parquet_keeps_every_text() -> None:
    data, _, _ = encode_tables([scores()], SCHEMA, "parquet")
    assert parquet.read_table(pa.BufferReader(data)).column("=id").to_pylist() == list(TEXTS)
