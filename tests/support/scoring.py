"""Scorings without Ray, part after part in this process, and what the served API answers to the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet

from serve_app.artifacts.store import Store
from serve_app.inference.predictor import open_predictor
from serve_app.tables.dialect import DialectFlags
from serve_app.tables.header import Header, csv_header
from serve_app.tables.location import Location, sources
from serve_app.tables.splits import Part, csv_parts, last_byte, scan_range, split_ranges
from tests.support.apps import HEADERS, client_of
from tests.support.policies import ALLOW_ALL
from training.dataset import json_rows
from training.pipeline import train
from training.train_options import TrainOptions


def trained(folder: Path, table: Path, target: str, **options: Any) -> Store:
    """A store with a model of this table."""
    options = {"force": True, "no_tracking": True, **options}
    train(TrainOptions(data=str(table), target=target, model_dir=folder / "models", **options), lambda _: nullcontext())
    return Store(folder / "models")


def split(path: Path, part_bytes: int, flags: DialectFlags | None = None) -> tuple[Location, Header, list[Part]]:
    """A CSV file as workers get it: its location, header and parts."""
    location = Location(str(path))
    _, (source,) = sources(location)
    header = csv_header(location, source.path, source.size, flags or DialectFlags())
    scans = [(byte_range, scan_range(location, byte_range)) for byte_range in split_ranges(source, header, part_bytes)]
    return location, header, csv_parts(source, header, scans, last_byte(location, source, header), 0)


def served(store: Store, table: pd.DataFrame, **options: Any) -> list[dict[str, Any]]:
    """The answers of /predict/batch to the rows of a table."""
    bundle = store.current()
    assert bundle is not None
    body = {"instances": json_rows(table, open_predictor(bundle, ALLOW_ALL).signature)}
    with client_of(store, **options) as client:
        reply = client.post("/predict/batch", json=body, headers=HEADERS)
    assert reply.status_code == 200, reply.text
    predictions: list[dict[str, Any]] = reply.json()["predictions"]
    return predictions


def results(out: Path) -> list[dict[str, Any]]:
    """The rows of an output, in the order of its parts."""
    rows: list[dict[str, Any]] = []
    for path in sorted(out.glob("part-*")):
        rows += (csv.read_csv(path) if path.suffix == ".csv" else parquet.read_table(path)).to_pylist()
    return rows


def as_answers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an output in the shape of an answer."""
    answers = []
    for row in rows:
        answer = {"prediction": row["prediction"]}
        if "confidence" in row:
            named = {name.removeprefix("probability_"): value for name, value in row.items() if name.startswith("probability_")}
            answer |= {"confidence": row["confidence"], "probabilities": named or None}
        answers.append(answer)
    return answers


def everything(out: Path) -> dict[str, bytes]:
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def texts(table: pa.Table) -> dict[str, list[str]]:
    """The columns of a table by name."""
    return {name: table.column(name).to_pylist() for name in table.column_names}
