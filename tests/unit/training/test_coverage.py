"""Intervals and prediction sets that hold the true value for a stated share of the rows."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serve_app.artifacts.signature import Coverage, Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.batch.pool import in_process
from serve_app.batch.run import score
from serve_app.batch.score_options import ScoreOptions
from serve_app.errors import UsageError
from tests.support import tables
from tests.support.scoring import results, served
from training import coverage
from training.dataset import load
from training.pipeline import Outcome, train
from training.train_options import TrainOptions

NUMBER = Signature((Feature("x"),), "regression")
CLASSES = Signature((Feature("x"),), "classification", ("a", "b", "c"))


def rooms(rows: int = 600, *, noise: float = 1.0) -> pd.DataFrame:
    """A number and a class that follow from two columns, with noise."""
    random = np.random.default_rng(5)
    x, group = random.uniform(0, 10, rows).round(3), np.arange(rows) // 10
    y = (3 * x + random.normal(0, noise, rows)).round(3)
    grade = np.where(y > 20, "high", np.where(y > 10, "middle", "low"))
    swapped = random.random(rows) < 0.2
    grade[swapped] = random.choice(["high", "middle", "low"], swapped.sum())
    return pd.DataFrame({"x": x, "z": random.normal(0, 1, rows).round(3), "group": group, "y": y, "grade": grade})


def run(folder: Path, table: pd.DataFrame, target: str, **options: Any) -> Outcome:
    drop = [
        name for name in ("y", "grade", "group") if name not in (target, options.get("time_column"), options.get("group_column"))
    ]
    values = {"no_tracking": True, "importance_seconds": 0.0, "n_estimators": 20, "drop": drop, **options}
    path = tables.written(table, folder)
    return train(TrainOptions(data=str(path), target=target, model_dir=folder / "models", **values), lambda _: nullcontext())


@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 100)), st.floats(0.05, 0.95))
def test_the_bound_has_the_wanted_number_of_errors_below_it(errors: Any, level: float) -> None:
    bound = coverage.conformal_bound(errors, level)
    assert bound in errors
    wanted = min(len(errors), np.ceil((len(errors) + 1) * level - 1e-9))
    assert np.count_nonzero(errors <= bound) >= wanted
    assert np.count_nonzero(errors < bound) < wanted


@pytest.mark.parametrize(("level", "rows"), [(0.9, 9), (0.5, 1), (0.95, 19), (0.99, 99), (0.8, 4)])
def test_so_many_rows_are_needed_for_a_bound(level: float, rows: int) -> None:
    assert coverage.least_rows(level) == rows


def test_new_rows_are_covered_as_often_as_promised() -> None:
    random = np.random.default_rng(0)
    shares, rejected = [], 0
    for _ in range(400):
        errors = random.exponential(1.0, 60)
        signature = replace(NUMBER, coverage=Coverage(0.9, coverage.conformal_bound(errors, 0.9)))
        new = random.exponential(1.0, 200)
        share = float(np.mean(coverage.covered(np.zeros(200), new, signature)))
        shares.append(share)
        rejected += share < coverage.least_share(0.9, 200, 60)
    assert 0.9 <= np.mean(shares) < 0.92
    assert rejected <= 4


def test_the_set_of_a_row_holds_the_likely_classes_and_the_predicted_one() -> None:
    signature = replace(CLASSES, coverage=Coverage(0.9, 0.7))
    scores = np.array([[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [0.2, 0.5, 0.3]])
    assert coverage.covered(scores, np.array(["b", "c", "a"]), signature).tolist() == [True, True, False]
    narrow = replace(CLASSES, coverage=Coverage(0.9, 0.1))
    assert coverage.covered(scores, np.array(["a", "a", "c"]), narrow).tolist() == [True, True, False]


def test_an_interval_is_served_scored_and_measured(tmp_path: Path) -> None:
    table = rooms()
    outcome = run(tmp_path, table, "y", coverage=0.8)
    assert outcome.entry is not None
    assert outcome.manifest.signature is not None
    promised = outcome.manifest.signature.coverage
    assert promised is not None
    assert promised.level == 0.8
    metrics = outcome.metrics.to_dict()
    assert metrics["interval_width"] == pytest.approx(2 * promised.bound)
    assert 0.6 < metrics["coverage"] < 0.95
    store = Store(tmp_path / "models")
    answers = served(store, table)
    for answer in answers:
        low, high = answer["interval"]
        assert (low, high) == (answer["prediction"] - promised.bound, answer["prediction"] + promised.bound)
    options = ScoreOptions(data=str(tmp_path / "table.csv"), out=str(tmp_path / "out"), model_dir=tmp_path / "models")
    score(options, lambda _: nullcontext(), in_process)
    scored = [(row["prediction"], [row["interval_low"], row["interval_high"]]) for row in results(tmp_path / "out")]
    assert scored == [(answer["prediction"], answer["interval"]) for answer in answers]


@pytest.mark.parametrize("backend", ["onnx", "scikit-learn"])
def test_a_prediction_set_is_served_scored_and_measured(tmp_path: Path, backend: Any) -> None:
    table = rooms()
    outcome = run(tmp_path, table, "grade", coverage=0.9, estimator="logistic-regression", n_estimators=None)
    assert outcome.entry is not None
    assert outcome.manifest.signature is not None
    promised = outcome.manifest.signature.coverage
    assert promised is not None
    metrics = outcome.metrics.to_dict()
    assert 0.8 < metrics["coverage"] <= 1.0
    assert 1.0 <= metrics["set_size"] <= 3.0
    answers = served(Store(tmp_path / "models"), table)
    for answer in answers:
        members = [name for name, share in answer["probabilities"].items() if share >= 1.0 - promised.bound - 1e-6]
        assert answer["prediction_set"][0] == answer["prediction"]
        assert sorted(answer["prediction_set"]) == sorted({*members, answer["prediction"]})
    sizes = {len(answer["prediction_set"]) for answer in answers}
    assert len(sizes) > 1
    options = ScoreOptions(
        data=str(tmp_path / "table.csv"), out=str(tmp_path / "out"), model_dir=tmp_path / "models", prefer=backend
    )
    score(options, lambda _: nullcontext(), in_process)
    for row, answer in zip(results(tmp_path / "out"), answers, strict=True):
        assert {name for name in ("high", "low", "middle") if row[f"in_set_{name}"]} == set(answer["prediction_set"])


@pytest.mark.parametrize("flags", [{}, {"time_column": "x"}, {"group_column": "group"}], ids=["random", "time", "groups"])
def test_rows_that_give_the_bound_are_neither_fitted_nor_tested(tmp_path: Path, flags: dict[str, Any]) -> None:
    path = tables.written(rooms(), tmp_path)
    whole = load(path, target="y", drop=["grade"], **flags)
    dataset = coverage.hold_back(whole, 0.9, 1)
    assert dataset.calibration is not None
    assert dataset.rows == whole.rows == 600
    assert len(dataset.calibration) == pytest.approx(0.25 * len(whole.train), abs=10)
    parts = [dataset.train, dataset.test, dataset.calibration]
    keys = [set(zip(part["x"], part["z"], strict=True)) for part in parts]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    if "time_column" in flags:
        assert dataset.train["x"].max() <= dataset.calibration["x"].min()


def test_each_class_keeps_a_row_to_learn_from(tmp_path: Path) -> None:
    table = rooms(200)
    table.loc[:2, "grade"] = "rare"
    whole = load(tables.written(table, tmp_path), target="grade", drop=["y", "group"], random_state=3)
    for seed in range(10):
        dataset = coverage.hold_back(whole, 0.9, seed)
        assert set(dataset.train_target) == {"high", "low", "middle", "rare"}


def test_a_coverage_that_is_missed_by_more_than_chance_is_refused(tmp_path: Path) -> None:
    table = rooms()
    newest = table["x"].rank() > 480
    table.loc[newest, "y"] += np.where(np.arange(newest.sum()) % 2, 300.0, 0.0)  # the newest rows are of another kind
    outcome = run(tmp_path, table, "y", coverage=0.9, time_column="x", floor=[], tolerance=1.0)
    assert outcome.entry is None
    assert any("coverage" in reason for reason in outcome.verdict.reasons)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("y", {"coverage": 0.9, "calibrate": "sigmoid"}),
        ("grade", {"coverage": 0.999}),
        ("y,x", {"coverage": 0.9}),
        ("grade", {"floor_name": "coverage"}),
        ("grade", {"coverage": 0.9, "estimator": "sklearn.svm:LinearSVC", "n_estimators": None}),
    ],
    ids=["calibrated numbers", "too few rows", "several targets", "floor without coverage", "no probabilities"],
)
def test_flags_that_do_not_fit_are_refused(tmp_path: Path, target: str, options: dict[str, Any]) -> None:
    from training.train_options import Floor

    floors = [Floor(options.pop("floor_name"), 0.9)] if "floor_name" in options else []
    with pytest.raises(UsageError):
        run(tmp_path, rooms(200).drop(columns="group"), target, floor=floors, drop=[], **options)
    assert not (tmp_path / "models" / "current").exists()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 9.0])
def test_a_coverage_is_a_share(share: float) -> None:
    with pytest.raises(UsageError):
        TrainOptions(coverage=share)
