"""Bulk scoring with models that take texts or a frame: the numbers of the served API."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from serve_app.artifacts.store import Store
from serve_app.batch.pool import in_process
from serve_app.batch.run import Outcome, score
from serve_app.batch.score_options import ScoreOptions
from serve_app.errors import UsageError
from tests.support.apps import HEADERS, client_of
from tests.support.frame_models import json_of, orders, orders_bundle
from tests.support.scoring import as_answers, results


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    store.publish(*orders_bundle())
    return store


def run(store: Store, data: Path, out: Path, **options: Any) -> Outcome:
    return score(ScoreOptions(data=str(data), out=str(out), model_dir=store.root, **options), lambda _: nullcontext(), in_process)


def answers(store: Store, table: pd.DataFrame) -> list[dict[str, Any]]:
    with client_of(store) as client:
        reply = client.post("/predict/batch", json={"instances": json_of(table)}, headers=HEADERS)
    predictions: list[dict[str, Any]] = reply.json()["predictions"]
    return predictions


def written(table: pd.DataFrame, path: Path) -> Path:
    plain = table.assign(placed=table.placed.astype(str).str.replace(" ", "T"), grade=table.grade.astype(str))
    if path.suffix == ".csv":
        plain.to_csv(path, index=False)
    else:
        plain.assign(size=plain["size"].astype(str)).to_parquet(path, index=False)
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_every_number_is_the_one_that_the_api_answers(store: Store, tmp_path: Path, ending: str) -> None:
    table = orders()
    outcome = run(store, written(table, tmp_path / f"orders.{ending}"), tmp_path / "out")
    assert (outcome.rows, outcome.errors) == (len(table), 0)
    assert as_answers(results(tmp_path / "out")) == answers(store, table)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_text_that_is_too_long_or_missing_is_named_by_its_row(store: Store, tmp_path: Path, ending: str) -> None:
    table = orders()[:10].copy()
    table.loc[3, "note"] = "x" * 201
    table.loc[5, "note"] = None
    path = written(table, tmp_path / f"orders.{ending}")
    with pytest.raises(UsageError, match="row 4: note: must have at most 200 characters"):
        run(store, path, tmp_path / "out")
    run(store, path, tmp_path / "kept", on_error="keep")
    errors = [row["error"] for row in results(tmp_path / "kept")]
    assert [at for at, error in enumerate(errors) if error] == [3, 5]


def test_a_column_of_numbers_is_no_column_of_texts(store: Store, tmp_path: Path) -> None:
    path = written(orders()[:5].assign(note=1.5), tmp_path / "orders.parquet")
    with pytest.raises(UsageError, match="note"):
        run(store, path, tmp_path / "out")


def test_a_text_in_the_names_of_folders_is_read_for_every_row(store: Store, tmp_path: Path) -> None:
    table = orders()[:10].assign(note="late")
    folder = tmp_path / "data" / "note=late"
    folder.mkdir(parents=True)
    written(table.drop(columns="note"), folder / "orders.csv")
    run(store, tmp_path / "data", tmp_path / "out")
    assert as_answers(results(tmp_path / "out")) == answers(store, table)
