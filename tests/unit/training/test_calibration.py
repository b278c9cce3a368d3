"""Calibrated probabilities: they say how often the class is right, and cost one model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV

from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.store import Store
from serve_app.errors import UsageError
from tests.support import tables
from tests.support.scoring import served
from training.pipeline import Outcome, train
from training.train_options import TrainOptions


def shoppers(rows: int = 800) -> pd.DataFrame:
    """Two classes that nobody can tell apart for sure: a forest is too sure of itself."""
    random = np.random.default_rng(1)
    age, visits = random.integers(18, 90, rows), random.integers(0, 12, rows)
    buys = random.random(rows) < 1 / (1 + np.exp(-(visits - 6) / 4))
    return pd.DataFrame(
        {"age": age, "visits": visits, "day": np.arange(rows), "shop": np.arange(rows) % 40, "buys": np.where(buys, "yes", "no")}
    )


def run(folder: Path, table: pd.DataFrame, target: str = "buys", **options: Any) -> Outcome:
    drop = [name for name in ("day", "shop") if name not in (options.get("time_column"), options.get("group_column"))]
    values = {"no_tracking": True, "importance_seconds": 0.0, "n_estimators": 20, "drop": drop, "force": True, **options}
    path = tables.written(table, folder)
    return train(TrainOptions(data=str(path), target=target, model_dir=folder / "models", **values), lambda _: nullcontext())


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_calibrated_probabilities_are_closer_to_what_happens(tmp_path: Path, method: Any) -> None:
    (tmp_path / "raw").mkdir()
    raw = run(tmp_path / "raw", shoppers()).metrics.scalars()
    outcome = run(tmp_path, shoppers(), calibrate=method)
    metrics = outcome.metrics.scalars()
    assert metrics["brier"] < raw["brier"] - 0.01
    assert metrics["log_loss"] < raw["log_loss"] - 0.05
    manifest = outcome.manifest
    assert manifest.calibration == {"method": method}
    assert (manifest.model_type, manifest.n_estimators) == ("RandomForestClassifier", 20)
    assert manifest.onnx is not None
    assert manifest.onnx.available == (method == "sigmoid"), manifest.onnx.reason
    model = stored(outcome)
    assert isinstance(model, CalibratedClassifierCV)
    assert len(model.calibrated_classifiers_) == 1
    expected = model.predict_proba(shoppers()[["age", "visits"]].astype(float)).tolist()
    answers = [
        [answer["probabilities"][name] for name in ("no", "yes")] for answer in served(Store(tmp_path / "models"), shoppers())
    ]
    assert np.allclose(answers, expected, atol=1e-12)


def test_the_bundle_does_not_hold_the_positions_of_training_rows(tmp_path: Path) -> None:
    outcome = run(tmp_path, shoppers(4000), calibrate="sigmoid", n_estimators=3)
    model = stored(outcome)
    assert model.cv is None
    assert model.calibrated_classifiers_[0].estimator.n_jobs is None


@pytest.mark.parametrize("flags", [{"time_column": "day"}, {"group_column": "shop"}], ids=["time", "groups"])
def test_rows_of_time_and_groups_are_calibrated_too(tmp_path: Path, flags: dict[str, Any]) -> None:
    outcome = run(tmp_path, shoppers(), calibrate="sigmoid", coverage=0.9, **flags)
    assert outcome.entry is not None
    assert outcome.metrics.scalars()["log_loss"] < 0.75
    assert outcome.manifest.calibration is not None
    assert outcome.manifest.calibration["rows"] > 100


def test_costs_decide_the_threshold_on_calibrated_probabilities(tmp_path: Path) -> None:
    outcome = run(tmp_path, shoppers(), calibrate="sigmoid", cost_false_positive=1.0, cost_false_negative=4.0)
    assert outcome.manifest.signature is not None
    assert outcome.manifest.signature.threshold is not None
    # Of calibrated probabilities the cheapest threshold is near 1 / (1 + 4).
    assert 0.05 < outcome.manifest.signature.threshold < 0.45


def test_a_regression_and_a_class_with_one_row_cannot_be_calibrated(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run(tmp_path, shoppers(), "age", task="regression", calibrate="sigmoid")
    few = shoppers(40)
    few["buys"] = "no"
    few.loc[[0, 39], "buys"] = "yes"  # one of the two is held out
    with pytest.raises(UsageError, match="two rows of each class"):
        run(tmp_path, few, calibrate="sigmoid", time_column="day")


def stored(outcome: Outcome) -> Any:
    assert outcome.entry is not None
    return joblib.load(outcome.entry.folder / JOBLIB)
