"""Fitted models of many sorts: each is adopted with one command, and what is served equals what the model itself says."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest, RandomForestClassifier, RandomForestRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler

from serve_app.artifacts.store import Store
from tests.support.apps import HEADERS, client_of
from tests.support.fitted_models import (
    FITTED,
    MIXED,
    classifier,
    of_array,
    of_one_text,
    of_texts,
    regressor,
    sample_of_regressor,
    table,
)

ROOT = Path(__file__).resolve().parents[2]
ASKED = 20
"""Rows that are sent one by one."""


@dataclass(frozen=True)
class Pipeline:
    """A fitted model, its sample with the target, what may compute it, and how its author makes the table that it is asked with."""

    model: Any
    sample: pd.DataFrame
    target: str | None
    flags: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("onnx",)
    ask: Callable[[pd.DataFrame], Any] = field(default=lambda frame: frame)


def mixed(name: str, *backends: str) -> Pipeline:
    return Pipeline(classifier(name), table()[[*MIXED, "unused", "label"]], "label", backends=backends or ("onnx",))


def numbers() -> pd.DataFrame:
    return table()[["size", "age"]].fillna(30.0)


def author_steps() -> Any:
    """The module of the author, under the name that it has beside the author's script."""
    folder = str(ROOT / "tests" / "support")
    sys.path.append(folder)
    try:
        return importlib.import_module("own_steps")
    finally:
        sys.path.remove(folder)


def of_own_code() -> Pipeline:
    frame = table()[["size", "age", "day", "value"]].fillna({"age": 30.0})
    steps = author_steps()
    model = make_pipeline(steps.age_and_size(), StandardScaler(), RandomForestRegressor(5, random_state=0))
    package = ("--package", str(ROOT / "tests/support/own_steps.py"))
    return Pipeline(model.fit(frame[:FITTED].drop(columns="value"), frame.value[:FITTED]), frame, "value", package, ("frame",))


def several_targets() -> Pipeline:
    frame = numbers().assign(a=lambda rows: (rows["size"] > 10).astype(int), b=lambda rows: np.where(rows.age > 30, "old", "young"))
    model = RandomForestClassifier(5, random_state=0).fit(frame[["size", "age"]], frame[["a", "b"]].astype(str).to_numpy())
    return Pipeline(model, frame.astype({"a": str}), "a,b", backends=("onnx", "scikit-learn"))


def of_category_dtypes(kind: str) -> Pipeline:
    frame = table()[[*MIXED, "label"]].astype({"city": "category", "plan": "category"})
    X, y = frame[:FITTED].drop(columns="label"), frame.label[:FITTED]
    if kind == "lightgbm":
        from lightgbm import LGBMClassifier

        return Pipeline(LGBMClassifier(n_estimators=20, verbose=-1).fit(X, y), frame, "label")
    if kind == "xgboost":
        from xgboost import XGBClassifier

        coded = frame.assign(label=(frame.label == "yes").astype(int))
        model = XGBClassifier(n_estimators=20, enable_categorical=True)
        return Pipeline(model.fit(X, coded.label[:FITTED]), coded, "label", backends=("onnx", "xgboost"))
    from catboost import CatBoostClassifier

    texts = table()[[*MIXED, "label"]].fillna({"city": "unknown"})
    cat = CatBoostClassifier(iterations=20, verbose=0, allow_writing_files=False, cat_features=["city", "plan"])
    return Pipeline(cat.fit(texts[:FITTED].drop(columns="label"), texts.label[:FITTED]), texts, "label", backends=("catboost",))


PIPELINES: dict[str, Callable[[], Pipeline]] = {
    "one-hot and logistic regression": lambda: mixed("one-hot and logistic regression"),
    "ordinal codes and a forest": lambda: mixed("ordinal codes and a forest"),
    "imputed texts": lambda: mixed("imputed texts", "onnx", "scikit-learn"),
    "stacking": lambda: mixed("stacking", "onnx", "scikit-learn"),
    "fixed threshold": lambda: mixed("fixed threshold"),
    "calibrated": lambda: mixed("calibrated", "onnx", "scikit-learn"),
    "no probabilities": lambda: mixed("no probabilities", "scikit-learn"),
    "array without names": lambda: Pipeline(
        of_array(), numbers().assign(label=table().label), "label", ask=lambda frame: frame.to_numpy()
    ),
    "target on a logarithmic scale": lambda: Pipeline(
        regressor(), sample_of_regressor(), "value", backends=("onnx", "scikit-learn")
    ),
    "text beside a number": lambda: Pipeline(of_texts(), table()[["note", "size", "label"]], "label", backends=("scikit-learn",)),
    "text alone": lambda: Pipeline(
        of_one_text(), table()[["note", "label"]], "label", backends=("scikit-learn",), ask=lambda frame: frame["note"]
    ),
    "own code over a date": of_own_code,
    "several targets": several_targets,
    "isolation forest": lambda: Pipeline(
        make_pipeline(RobustScaler(), IsolationForest(n_estimators=20, random_state=0)).fit(numbers()),
        numbers(),
        None,
        backends=("onnx", "scikit-learn"),
    ),
    "clusters": lambda: Pipeline(
        make_pipeline(StandardScaler(), KMeans(3, random_state=0, n_init=1)).fit(numbers()), numbers(), None
    ),
    "lightgbm": lambda: of_category_dtypes("lightgbm"),
    "xgboost": lambda: of_category_dtypes("xgboost"),
    "catboost": lambda: of_category_dtypes("catboost"),
}


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_fitted_model_is_adopted_with_one_command_and_served_with_its_own_answers(
    name: str, kind: str, tmp_path: Path, lines: list[str]
) -> None:
    if name in ("lightgbm", "xgboost", "catboost") and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    if kind == "csv" and name not in ("one-hot and logistic regression", "target on a logarithmic scale", "lightgbm"):
        pytest.skip("the sort is tried with Parquet")
    pipeline = PIPELINES[name]()
    output = adopted(pipeline, tmp_path, kind)
    client = client_of(Store(tmp_path / "models"))
    predictor = client.app_state["slot"].predictor
    assert predictor.kind in pipeline.backends
    difference = largest_difference(pipeline, client)
    assert difference <= (1e-5 if predictor.kind in ("onnx", "xgboost") else 1e-12)
    size = sum(file.stat().st_size for file in next((tmp_path / "models" / "bundles").iterdir()).iterdir())
    own, given = row_times(output)
    shown = f"{name} (CSV)" if kind == "csv" else name
    lines.append(f"{shown:36} {predictor.kind:13} {size / 1000:6.0f} kB {own:>10} {given:>12} {difference:11.2g}")


def adopted(pipeline: Pipeline, folder: Path, kind: str) -> str:
    """Run the command; returns what it printed."""
    joblib.dump(pipeline.model, folder / "model.joblib")
    sample = folder / f"sample.{kind}"
    pipeline.sample.to_csv(sample, index=False) if kind == "csv" else pipeline.sample.to_parquet(sample, index=False)
    target = () if pipeline.target is None else ("--target", pipeline.target)
    command = [sys.executable, "-m", "serve_app", "adopt", str(folder / "model.joblib"), "--sample", str(sample), *target]
    gate = ["--no-tracking", "--importance-seconds", "0", "--model-dir", str(folder / "models"), "--force"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *pipeline.flags, *gate], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def row_times(output: str) -> tuple[str, str]:
    line = next(line for line in output.splitlines() if line.strip().startswith("one row"))
    own, _, rest = line.partition("one row")[2].partition(";")
    return own.strip(), rest.partition("takes")[2].partition("for")[0].strip()


def sent(value: Any) -> Any:
    """A cell as clients send it."""
    if pd.isna(value):
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return value.item() if isinstance(value, np.generic) else value


def largest_difference(pipeline: Pipeline, client: Any) -> float:
    """Between the served answers and the author's, row by row; labels must be equal."""
    targets = [] if pipeline.target is None else pipeline.target.split(",")
    features = pipeline.sample.drop(columns=targets).tail(ASKED).reset_index(drop=True)
    asked = pipeline.ask(features)
    predicted = np.asarray(pipeline.model.predict(asked))
    worst = 0.0
    for at in range(ASKED):
        row = {name: sent(value) for name, value in features.iloc[at].items()}
        response = client.post("/predict", json=row, headers=HEADERS)
        assert response.status_code == 200, response.text
        answer = response.json()
        if "outlier" in answer:
            score = pipeline.model.decision_function(asked)[at]
            assert answer["outlier"] == (score < 0)
            worst = max(worst, abs(answer["score"] - score))
        elif "outputs" in answer:
            served = [output.get("prediction", output) for output in answer["outputs"].values()]
            assert [str(value) for value in served] == [str(value) for value in predicted[at]]
        elif "cluster" in answer:
            assert answer["cluster"] == predicted[at]
            worst = max(worst, abs(answer["distance"] - pipeline.model.transform(asked)[at].min()))
        elif answer.get("probabilities"):
            assert str(answer["prediction"]) == str(predicted[at])
            own = np.asarray(pipeline.model.predict_proba(asked))[at]
            worst = max(worst, float(np.abs(np.array(list(answer["probabilities"].values())) - own).max()))
        elif isinstance(answer["prediction"], str):
            assert answer["prediction"] == predicted[at]
        else:
            worst = max(worst, abs(answer["prediction"] - predicted[at]) / max(1.0, abs(predicted[at])))
    return worst
