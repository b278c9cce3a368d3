from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from sklearn.linear_model import RidgeClassifier

from serve_app.artifacts.bundle import GOLDEN, JOBLIB, METRICS, ONNX
from serve_app.artifacts.store import Store
from serve_app.errors import UsageError
from serve_app.inference.predictor import LoadPolicy, open_predictor
from tests.support import tables
from tests.support.native import answer_row
from training import card, convert, figures, publish
from training.candidate import Candidate, fit_candidate
from training.dataset import load
from training.reference import reference
from training.tracking_uri import resolve

OF_OLD = {
    *("feature_names", "target_names", "model_type", "n_estimators", "max_depth", "random_state", "n_features", "n_samples"),
    *("mlflow_run_uri", "mlflow_experiment_name", "mlflow_run_name", "mlflow_run_id", "mlflow_relative_path"),
    *("mlflow_model_name", "mlflow_model_version", "local_model_path"),
}


def candidate(folder: Path, table: Any = tables.customers, target: str = "stays", estimator: str = "random-forest") -> Candidate:
    return fit_candidate(load(tables.written(table(), folder), target=target), estimator, {"n_estimators": 20}, random_state=1)


def described(made: Candidate, **facts: Any) -> dict[str, Any]:
    return publish.describe(
        made, estimator="random-forest", random_state=1, onnx={"available": False, "reason": "untried", **facts}
    )


@pytest.mark.parametrize("prefer", ["onnx", "scikit-learn"])
@pytest.mark.parametrize(("table", "target"), [(tables.customers, "stays"), (tables.houses, "price"), (tables.spam, "spam")])
def test_what_is_published_opens_and_repeats_its_golden_examples(tmp_path: Path, table: Any, target: str, prefer: Any) -> None:
    made = candidate(tmp_path, table, target)
    converted = convert.convert(made.tail, made.signature, made.train, made.held_out)
    store = Store(tmp_path / "models")
    store.publish(publish.files(made, converted.model), described(made, **converted.facts))
    bundle = store.current()
    assert bundle is not None
    predictor = open_predictor(bundle, LoadPolicy(prefer=prefer))
    assert predictor.kind.startswith(prefer)
    answer = orjson.loads(answer_row(predictor, orjson.dumps(made.rows[0])))
    assert answer["prediction"] == made.predictions[0]


def test_a_classifier_without_probabilities_is_published_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = types.ModuleType("estimators_of_a_user")
    mine.ridge = RidgeClassifier  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, mine.__name__, mine)
    dataset = load(tables.written(tables.customers(), tmp_path), target="stays")
    made = fit_candidate(dataset, "estimators_of_a_user:ridge", {}, random_state=1)
    converted = convert.convert(made.tail, made.signature, made.train, made.held_out)
    store = Store(tmp_path / "models")
    store.publish(publish.files(made, converted.model), described(made, **converted.facts))
    bundle = store.current()
    assert bundle is not None
    predictor = open_predictor(bundle)
    answer = orjson.loads(answer_row(predictor, orjson.dumps(made.rows[0])))
    assert answer == {"prediction": made.predictions[0], "confidence": None, "probabilities": None}


def test_the_metadata_hold_every_key_of_old(tmp_path: Path) -> None:
    assert set(described(candidate(tmp_path))) >= OF_OLD


def test_the_files_are_the_agreed_ones(tmp_path: Path) -> None:
    assert set(publish.files(candidate(tmp_path), b"onnx")) == {JOBLIB, METRICS, GOLDEN, ONNX}


def test_golden_examples_hold_every_class_category_and_gap(tmp_path: Path) -> None:
    made = candidate(tmp_path)
    rows = orjson.loads(publish.files(made, None)[GOLDEN])["rows"]
    for name in ("age", "plan", "newsletter"):
        assert None in {row[name] for row in rows}
    assert {"basic", "gold", "silver"} < {row["plan"] for row in rows}
    assert len(rows) <= publish.GOLDEN_ROWS


def test_golden_examples_hold_the_rarest_class() -> None:
    rows = [{"x": float(at)} for at in range(400)]
    signature = load(None).signature
    target = np.array(["setosa"] * 397 + ["versicolor", "virginica", "setosa"], dtype=object)
    signature = type(signature)((type(signature.features[0])("x"),), "classification", signature.classes)
    assert {397, 398} < set(publish.golden_choice(rows, target, signature))


def test_the_reference_counts_every_training_row(tmp_path: Path) -> None:
    made = candidate(tmp_path)
    found = reference(made.dataset.train, made.dataset.train_target, made.signature)
    for name, feature in found["features"].items():
        counts = feature["counts"]
        total = sum(counts.values() if isinstance(counts, dict) else counts)
        assert total + feature["missing"] == len(made.dataset.train), name
        if feature["kind"] == "number":
            assert len(counts) == len(feature["edges"]) + 1
            assert sorted(feature["edges"]) == feature["edges"]
    assert sum(found["classes"].values()) == pytest.approx(1.0)
    assert orjson.loads(orjson.dumps(found)) == found


def test_the_reference_of_a_regression_has_its_target(tmp_path: Path) -> None:
    made = candidate(tmp_path, tables.houses, "price")
    found = reference(made.dataset.train, made.dataset.train_target, made.signature)
    assert sum(found["target"]["counts"]) == len(made.dataset.train)


def test_the_card_is_one_page_that_loads_nothing(tmp_path: Path) -> None:
    made = candidate(tmp_path)
    verdict = {"accepted": False, "reasons": ["<b>too bad</b>"], "comparison": {"compared": False, "why": "no model is served yet"}}
    image = figures.confusion(made.metrics["confusion_matrix"], made.signature.classes)
    page = card.render(
        {**described(made), "verdict": verdict, "forced": True}, made.metrics, {"confusion_matrix.png": image}
    ).decode()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page)
    assert "data:image/png;base64," in page
    assert made.dataset.sha256 in page
    assert "&lt;b&gt;too bad" in page
    assert "published by force" in page


@pytest.mark.parametrize(("table", "target"), [(tables.customers, "stays"), (tables.houses, "price")])
def test_pictures_are_png_and_importance_names_what_matters(tmp_path: Path, table: Any, target: str) -> None:
    from serve_app.inference.predictor import sklearn_scores

    made = candidate(tmp_path, table, target)
    score = sklearn_scores(made.tail, made.signature)
    picture, means = figures.importance(made.tail, score, made.held_out, made.target, made.signature, random_state=0)
    assert picture.startswith(b"\x89PNG")
    assert max(means, key=lambda name: means[name]) in {"age", "area"}
    if target == "price":
        assert figures.residuals(made.target, made.predictions).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("uri", "tracking", "root"),
    [
        (None, "sqlite:///mlflow.db", None),
        ("", "sqlite:///mlflow.db", None),
        ("gs://bucket/mlruns/", "sqlite:///mlflow.db", "gs://bucket/mlruns"),
        ("http://mlflow:5000", "http://mlflow:5000", None),
        ("postgresql+psycopg://u:p@host/db", "postgresql+psycopg://u:p@host/db", None),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db", None),
    ],
)
def test_a_bucket_is_a_place_for_files_and_never_a_tracking_server(uri: str | None, tracking: str, root: str | None) -> None:
    assert resolve(uri) == (tracking, root)


@pytest.mark.parametrize("uri", ["foo://bar", "mlruns", "/data/mlruns", "file:///data/mlruns", "localhost:5000"])
def test_an_address_where_mlflow_records_nothing_is_a_mistake(uri: str) -> None:
    with pytest.raises(UsageError, match="is no MLflow server: use http://HOST:PORT"):
        resolve(uri)
