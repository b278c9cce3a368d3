from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from sklearn.linear_model import RidgeClassifier

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.manifest import OnnxConversion, Verdict
from serve_app.artifacts.names import GOLDEN, JOBLIB, METRICS, ONNX
from serve_app.artifacts.store import Store
from serve_app.errors import UsageError
from serve_app.inference.predictor import open_predictor
from tests.support import tables
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL, load_policy
from training import card, figures, importance
from training import publication as bundles
from training.candidate import Candidate, fit_candidate
from training.convert import Converted, convert
from training.dataset import load
from training.evaluate import ClassificationMetrics
from training.publication import Publication
from training.reference import reference
from training.tracking_uri import resolve
from training.train_options import TrainOptions

NOT_COMPARED = {"compared": False, "why": "no model is served yet"}
VERDICT = Verdict(accepted=True, comparison=NOT_COMPARED)
NOT_CONVERTED = Converted(None, OnnxConversion(available=False, reason="not tried"))

LEGACY_KEYS = {
    *("feature_names", "target_names", "model_type", "n_estimators", "max_depth", "random_state", "n_features", "n_samples"),
    *("mlflow_run_uri", "mlflow_experiment_name", "mlflow_run_name", "mlflow_run_id", "mlflow_relative_path"),
    *("mlflow_model_name", "mlflow_model_version", "local_model_path"),
}


def candidate(folder: Path, table: Any = tables.customers, target: str = "stays", estimator: str = "random-forest") -> Candidate:
    return fit_candidate(load(tables.written(table(), folder), target=target), estimator, {"n_estimators": 20}, random_state=1)


def publication(candidate: Candidate, converted: Converted = NOT_CONVERTED) -> Publication:
    options = TrainOptions(estimator="random-forest", no_tracking=True)
    return Publication(candidate, options, {}, 1, converted, plots={}, importance={})


def published(store: Store, publication: Publication) -> Bundle:
    manifest = bundles.manifest(publication, VERDICT, None)
    store.publish(bundles.files(publication, manifest), manifest)
    bundle = store.current()
    assert bundle is not None
    return bundle


@pytest.mark.parametrize("prefer", ["onnx", "scikit-learn"])
@pytest.mark.parametrize(("table", "target"), [(tables.customers, "stays"), (tables.houses, "price"), (tables.spam, "spam")])
def test_what_is_published_opens_and_repeats_its_golden_examples(tmp_path: Path, table: Any, target: str, prefer: Any) -> None:
    fitted = candidate(tmp_path, table, target)
    converted = convert(fitted.estimator, fitted.signature, fitted.train, fitted.held_out)
    bundle = published(Store(tmp_path / "models"), publication(fitted, converted))
    predictor = open_predictor(bundle, load_policy(backend=prefer))
    assert predictor.kind.startswith(prefer)
    answer = orjson.loads(answer_row(predictor, orjson.dumps(fitted.rows[0])))
    assert answer["prediction"] == fitted.predictions[0]


def test_a_classifier_without_probabilities_is_published_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = types.ModuleType("estimators_of_a_user")
    mine.ridge = RidgeClassifier  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, mine.__name__, mine)
    dataset = load(tables.written(tables.customers(), tmp_path), target="stays")
    fitted = fit_candidate(dataset, "estimators_of_a_user:ridge", {}, random_state=1)
    converted = convert(fitted.estimator, fitted.signature, fitted.train, fitted.held_out)
    bundle = published(Store(tmp_path / "models"), publication(fitted, converted))
    predictor = open_predictor(bundle, ALLOW_ALL)
    answer = orjson.loads(answer_row(predictor, orjson.dumps(fitted.rows[0])))
    assert answer == {"prediction": fitted.predictions[0], "confidence": None, "probabilities": None}


def test_the_manifest_has_every_key_of_the_legacy_layout(tmp_path: Path) -> None:
    assert set(bundles.manifest(publication(candidate(tmp_path)), VERDICT, None).to_dict()) >= LEGACY_KEYS


def test_the_files_are_the_agreed_ones(tmp_path: Path) -> None:
    complete = publication(
        candidate(tmp_path), Converted(b"onnx", OnnxConversion(available=True, largest_difference=0.0, rows_compared=1))
    )
    manifest = bundles.manifest(complete, VERDICT, None)
    assert set(bundles.files(complete, manifest)) == {JOBLIB, METRICS, GOLDEN, ONNX, "card.html"}


def test_golden_examples_hold_every_class_category_and_gap(tmp_path: Path) -> None:
    unconverted = publication(candidate(tmp_path))
    manifest = bundles.manifest(unconverted, VERDICT, None)
    rows = orjson.loads(bundles.files(unconverted, manifest)[GOLDEN])["rows"]
    for name in ("age", "plan", "newsletter"):
        assert None in {row[name] for row in rows}
    assert {"basic", "gold", "silver"} < {row["plan"] for row in rows}
    assert len(rows) <= bundles.GOLDEN_ROWS


def test_golden_examples_hold_the_rarest_class() -> None:
    rows = [{"x": float(at)} for at in range(400)]
    signature = load(None).signature
    target = np.array(["setosa"] * 397 + ["versicolor", "virginica", "setosa"], dtype=object)
    signature = type(signature)((type(signature.features[0])("x"),), "classification", signature.classes)
    assert {397, 398} < set(bundles.select_golden_rows(rows, target, signature))


def test_the_reference_counts_every_training_row(tmp_path: Path) -> None:
    fitted = candidate(tmp_path)
    document = reference(fitted.dataset.train, fitted.dataset.train_target, fitted.signature)
    for name, feature in document["features"].items():
        counts = feature["counts"]
        total = sum(counts.values() if isinstance(counts, dict) else counts)
        assert total + feature["missing"] == len(fitted.dataset.train), name
        if feature["kind"] == "number":
            assert len(counts) == len(feature["edges"]) + 1
            assert sorted(feature["edges"]) == feature["edges"]
    assert sum(document["classes"].values()) == pytest.approx(1.0)
    assert orjson.loads(orjson.dumps(document)) == document


def test_the_reference_of_a_regression_has_its_target(tmp_path: Path) -> None:
    fitted = candidate(tmp_path, tables.houses, "price")
    document = reference(fitted.dataset.train, fitted.dataset.train_target, fitted.signature)
    assert sum(document["target"]["counts"]) == len(fitted.dataset.train)


def test_the_card_is_one_page_that_loads_nothing(tmp_path: Path) -> None:
    fitted = candidate(tmp_path)
    verdict = Verdict(accepted=False, reasons=("<b>too bad</b>",), comparison=NOT_COMPARED)
    assert isinstance(fitted.metrics, ClassificationMetrics)
    image = figures.confusion(fitted.metrics.confusion_matrix, fitted.signature.classes)
    forced = replace(publication(fitted), options=TrainOptions(force=True, no_tracking=True))
    manifest = bundles.manifest(forced, verdict, None)
    page = card.render(manifest, fitted.metrics.to_dict(), {"confusion_matrix.png": image}).decode()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page)
    assert "data:image/png;base64," in page
    assert fitted.dataset.sha256 in page
    assert "&lt;b&gt;too bad" in page
    assert "published by force" in page


@pytest.mark.parametrize(("table", "target"), [(tables.customers, "stays"), (tables.houses, "price")])
def test_figures_are_png_and_importance_names_what_matters(tmp_path: Path, table: Any, target: str) -> None:
    from serve_app.inference.backends.sklearn_backend import SklearnBackend

    fitted = candidate(tmp_path, table, target)
    score = SklearnBackend(fitted.estimator, fitted.signature).scores
    measured = importance.measure(
        fitted.estimator, score, fitted.held_out, fitted.target, fitted.signature, random_state=0, seconds=60
    )
    assert figures.importances(measured, fitted.signature).startswith(b"\x89PNG")
    assert tuple(measured.by_feature(fitted.signature.names)) == fitted.signature.names
    assert max(measured.mean, key=lambda name: measured.mean[name]) in {"age", "area"}
    if target == "price":
        assert figures.residuals(fitted.target, fitted.predictions).startswith(b"\x89PNG")


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
def test_an_address_where_mlflow_records_nothing_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match=re.escape(uri)):
        resolve(uri)
