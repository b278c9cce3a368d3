"""Tables as bodies of Arrow IPC streams and Parquet files, and such bodies that are meant to do harm."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet


def stream(*tables: pa.Table | pa.RecordBatch, compression: str | None = None) -> bytes:
    """An Arrow IPC stream of these tables, which have one schema."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, tables[0].schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for table in tables:
            writer.write(table)
    return bytes(sink.getvalue())


def file(table: pa.Table, **options: Any) -> bytes:
    """A Parquet file."""
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, **options)
    return bytes(sink.getvalue())


def numbers(rows: Sequence[Sequence[float]], names: Sequence[str] = ("a", "b")) -> pa.Table:
    """A table of float64 columns."""
    return pa.table({name: pa.array([row[at] for row in rows], pa.float64()) for at, name in enumerate(names)})


def claiming_rows(body: bytes, rows: int, claimed: int) -> bytes:
    """An Arrow IPC stream of one batch of so many rows, whose metadata says that there are others."""
    length = struct.pack("<q", rows)
    assert length in body
    return body.replace(length, struct.pack("<q", claimed))


def bombs(names: Sequence[str] = ("a", "b")) -> dict[str, tuple[str, bytes]]:
    """Small bodies that are unpacked to much more: what they do, their format ("arrow" or "parquet"), and the body."""
    row = numbers([[0.0] * len(names)], names)
    many = _alike(names, pa.nulls(2_000_000, pa.float64()).fill_null(0.0))
    zeros = pa.array(["\0" * 40_000_000])
    text = _alike(names, pa.DictionaryArray.from_arrays(pa.array([0] * 900, pa.int32()), pa.array(["x" * 1_000_000])))
    growing = {"use_dictionary": False, "column_encoding": dict.fromkeys(names, "DELTA_BYTE_ARRAY"), "write_statistics": False}
    return {
        "rows": ("arrow", stream(many, compression="zstd")),
        "rows without values": ("arrow", stream(_alike(names, pa.nulls(2_000_000)))),
        "claimed rows": ("arrow", claiming_rows(stream(numbers([[1.0] * len(names)] * 7, names)), 7, 2**62)),
        "compressed zeros": ("arrow", stream(row.append_column("zip", zeros), compression="zstd")),
        "one text for all rows": ("arrow", stream(text)),
        "batches": ("arrow", stream(*row.to_batches() * 3000)),
        "rows in a file": ("parquet", file(many, compression="zstd")),
        "compressed zeros in a file": ("parquet", file(_alike(names, zeros), compression="zstd", write_statistics=False)),
        "one text for all rows of a file": ("parquet", file(text, write_statistics=False)),
        "growing texts in a file": ("parquet", file(_alike(names, pa.array(["x" * 500_000] * 100)), **growing)),
        "row groups": ("parquet", file(numbers([[1.0] * len(names)] * 1500, names), row_group_size=1)),
    }


def _alike(names: Sequence[str], column: pa.Array) -> pa.Table:
    """A table of this column, once for each name."""
    return pa.table([column] * len(names), names=list(names))
