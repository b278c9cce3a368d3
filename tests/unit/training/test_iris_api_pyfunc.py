"""The logged model on tables of every kind: it answers what the served model answers, and refuses what cannot be answered."""

from __future__ import annotations

from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier

from serve_app.artifacts.decision import SLACK
from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.store import Store
from tests.support import tables
from tests.support.scoring import served
from training import iris_api_pyfunc
from training.iris_api_pyfunc import TableModel
from training.pipeline import train
from training.tracking import example
from training.train_options import TrainOptions


def visitors(rows: int = 240) -> pd.DataFrame:
    """Whole numbers with and without gaps, numbers, booleans with gaps, texts with gaps."""
    table = tables.customers(rows)
    table["visits"] = np.arange(rows) % 7
    table["calls"] = pd.Series(np.arange(rows) % 5, dtype=object).mask(np.arange(rows) % 11 == 0)
    return table


def model(folder: Path, table: pd.DataFrame, target: str, **options: Any) -> tuple[Store, TableModel]:
    values: dict[str, Any] = {"data": str(tables.written(table, folder)), "force": True, "no_tracking": True, **options}
    outcome = train(TrainOptions(target=target, model_dir=folder / "models", **values), lambda _: nullcontext())
    assert outcome.entry is not None
    assert outcome.manifest.signature is not None
    return Store(folder / "models"), TableModel(joblib.load(outcome.entry.folder / JOBLIB), outcome.manifest.signature.to_dict())


@pytest.mark.parametrize(
    ("table", "target", "options"),
    [
        (visitors(), "stays", {"n_estimators": 10}),
        (visitors(), "stays", {"estimator": "logistic-regression", "threshold": 0.4, "positive_class": "no"}),
        (visitors(), "newsletter", {"estimator": "logistic-regression", "drop_rows_without_target": True}),
        (tables.spam(), "spam", {"n_estimators": 10}),
        (tables.houses(), "price", {"n_estimators": 10}),
    ],
    ids=["texts, whole numbers and gaps", "threshold", "booleans", "classes that are numbers", "regression"],
)
def test_it_answers_to_its_training_table_what_is_served(
    tmp_path: Path, table: pd.DataFrame, target: str, options: dict[str, Any]
) -> None:
    store, logged = model(tmp_path, table, target, **options)
    expected = [answer["prediction"] for answer in served(store, pd.read_csv(tmp_path / "table.csv"))]
    predicted = logged.predict(pd.read_csv(tmp_path / "table.csv"))
    if target == "price":
        assert predicted == pytest.approx(np.array(expected))
    else:
        assert predicted.tolist() == expected


def test_the_form_of_a_column_does_not_matter(tmp_path: Path) -> None:
    _, logged = model(tmp_path, visitors(), "stays", n_estimators=10)
    table = pd.read_csv(tmp_path / "table.csv")
    expected = logged.predict(table).tolist()
    forms: dict[str, Any] = {
        "visits": table["visits"].astype("int8"),
        "calls": table["calls"].astype("Int64"),
        "age": table["age"].astype("Float32").astype("Float64"),
        "spent": table["spent"].map(lambda value: Decimal(repr(value))),
        "plan": table["plan"].astype("category"),
        "newsletter": table["newsletter"].astype("boolean"),
    }
    assert logged.predict(table.assign(**forms)).tolist() == expected
    assert logged.predict(table[table.columns[::-1]].set_index("spent", drop=False)).tolist() == expected
    nothing: dict[str, Any] = {"plan": None, "newsletter": None, "age": None}
    assert logged.predict(table.assign(**nothing)).tolist() == logged.predict(table.drop(columns=list(nothing))).tolist()
    assert logged.predict(table.assign(plan="NA")).tolist() == logged.predict(table.assign(plan=None)).tolist()


@pytest.mark.parametrize("spoil", [lambda table: table.drop(columns="spent"), lambda table: table.assign(spent=None)])
def test_a_row_that_serving_refuses_is_an_error_that_names_the_column(tmp_path: Path, spoil: Any) -> None:
    _, logged = model(tmp_path, visitors(), "stays", n_estimators=10)
    with pytest.raises(ValueError, match="'spent'"):
        logged.predict(spoil(pd.read_csv(tmp_path / "table.csv")))


def test_the_class_is_that_of_the_highest_probability_as_in_serving() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"x": random.normal(size=60)})
    truth = np.where(frame["x"] + random.normal(0, 0.8, 60) > 0, "b", "a")
    classifier = FixedThresholdClassifier(LogisticRegression(), threshold=0.1).fit(frame, truth)
    features = [{"name": "x", "kind": "number", "nullable": False, "categories": []}]
    logged = TableModel(classifier, {"features": features, "task": "classification", "classes": ["a", "b"]})
    best = classifier.predict_proba(frame).argmax(axis=1)
    expected = [["a", "b"][at] for at in best]
    assert logged.predict(frame).tolist() == expected
    assert classifier.predict(frame).tolist() != expected


def test_a_threshold_is_reached_as_in_serving() -> None:
    assert iris_api_pyfunc.SLACK == SLACK


def test_the_example_is_no_row_of_the_table_and_is_answered(tmp_path: Path) -> None:
    store, logged = model(tmp_path, visitors(), "stays", n_estimators=10)
    bundle = store.current()
    assert bundle is not None
    assert bundle.signature is not None
    row = example(bundle.signature)
    assert len(logged.predict(row)) == 1
    assert row["visits"].dtype == np.int64
    rows = pd.read_csv(tmp_path / "table.csv")[list(row.columns)].astype(object)
    assert not (rows == row.astype(object).iloc[0]).all(axis=1).any()
