from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serve_app.artifacts.decision import outcomes
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from serve_app.inference.predictor import open_predictor
from serve_app.inference.slot import Slot
from serve_app.telemetry.collector import MetricsCollector
from serve_app.telemetry.drift import MAX_BINS, MAX_FEATURES, Bins, read_reference
from tests.support import answers
from tests.support.bundles import bundle
from tests.support.models import diabetes_signature, forest, iris, iris_signature, linear
from tests.support.policies import ALLOW_ALL
from tests.unit.telemetry.test_collector import values
from training.reference import reference

X, y = iris()
SIGNATURE = iris_signature()
FRAME = pd.DataFrame(X, columns=list(SIGNATURE.names))
REFERENCE = reference(FRAME, y, SIGNATURE)


def psi(bins: Bins, column: Any) -> float:
    """The population stability index as monitoring/rules compute it."""
    counts = bins.count(column) + 0.5
    shares, expected = counts / counts.sum(), np.array(bins.expected)
    return float(((shares - expected) * np.log(shares / expected)).sum())


def test_the_rows_of_training_fill_the_bins_as_the_reference_says() -> None:
    drift_reference = read_reference(REFERENCE, SIGNATURE)
    assert drift_reference is not None
    assert drift_reference.rows == 150
    assert [bins.name for bins in drift_reference.features] == list(SIGNATURE.names)
    for bins in drift_reference.features:
        assert sum(bins.expected) == pytest.approx(1)
        assert psi(bins, X[:, bins.column]) == pytest.approx(0, abs=1e-9)
    assert drift_reference.predictions is not None
    assert drift_reference.predictions.labels == ("setosa", "versicolor", "virginica")
    assert drift_reference.predictions.expected == pytest.approx((1 / 3, 1 / 3, 1 / 3))


@pytest.mark.parametrize("name", ["isolation forest", "k-means", "forest of classes", "forest of numbers", "calibrated"])
def test_answers_of_every_shape_are_compared_with_the_reference(name: str) -> None:
    model, rows = answers.fitted(name), answers.rows()
    signature = answers.signature_of(model)
    scores = SklearnBackend(model.estimator, signature).scores(rows)
    frame = pd.DataFrame(rows, columns=list(signature.names))
    target = {
        "isolation forest": scores,
        "k-means": model.estimator.predict(rows),
        "forest of classes": model.estimator.predict(rows),
        "forest of numbers": model.estimator.predict(rows),
        "calibrated": model.estimator.predict(rows),
    }[name]
    drift_reference = read_reference(reference(frame, target, signature), signature)
    assert drift_reference is not None
    bins = drift_reference.predictions
    assert bins is not None
    assert sum(bins.expected) == pytest.approx(1)
    assert bins.count(outcomes(scores, signature)).sum() == len(rows) * max(1, len(signature.outputs))
    assert psi(bins, outcomes(scores, signature)) < 0.001
    extreme = scores.copy()
    extreme[:] = scores[scores.reshape(len(scores), -1)[:, 0].argmin()]
    assert psi(bins, outcomes(extreme, signature)) > 0.5  # all rows get one answer


def test_shifted_values_are_far_from_the_reference() -> None:
    drift_reference = read_reference(REFERENCE, SIGNATURE)
    assert drift_reference is not None
    random = np.random.default_rng(0)
    again = X[random.integers(0, len(X), 1000)]
    for bins in drift_reference.features:
        assert psi(bins, again[:, bins.column]) < 0.1
        assert psi(bins, again[:, bins.column] * 2.54) > 1  # somebody sends inches


def test_every_value_falls_into_exactly_one_bin_whatever_it_is() -> None:
    features = (
        Feature("height", nullable=True),
        Feature("colour", "category", categories=("blue", "green", "red"), nullable=True),
        Feature("new", "boolean"),
    )
    signature = Signature(features, "classification", classes=(0, 1))
    frame = pd.DataFrame(
        {"height": [1.0, 2.0, None, 4.0], "colour": ["red", "red", None, "blue"], "new": [True, False, True, True]}
    )
    drift_reference = read_reference(reference(frame, np.array([0, 1, 1, 1]), signature), signature)
    assert drift_reference is not None
    height, colour, new = drift_reference.features
    assert height.labels[-1] == "missing"
    assert colour.labels == ("blue", "green", "red", "other", "missing")
    assert new.labels == ("false", "true")
    assert dict(zip(colour.labels, colour.count(np.array([2.0, 2.0, -1.0, math.nan, 0.0])), strict=True)) == {
        "blue": 1,
        "green": 0,
        "red": 2,
        "other": 1,
        "missing": 1,
    }
    odd = np.array([-math.inf, -1e300, 0.0, 2.0, 1e300, math.inf, math.nan])
    assert height.count(odd).sum() == len(odd)
    assert height.count(np.array([math.nan]))[-1] == 1
    assert list(new.count(np.array([0.0, 1.0, 1.0]))) == [1, 2]


def test_an_empty_bin_of_the_training_rows_is_joined_with_its_neighbour() -> None:
    raw = {"rows": 9, "features": {"x": {"kind": "number", "edges": [1.0, 2.0, 3.0], "counts": [0, 4, 0, 5], "missing": 0}}}
    signature = Signature((Feature("x"),), "regression")
    drift_reference = read_reference(raw, signature)
    assert drift_reference is not None
    (bins,) = drift_reference.features
    assert bins.labels == ("< 2.0", ">= 2.0")
    assert list(bins.count(np.array([0.0, 1.5, 2.0]))) == [2, 1]
    constant = {"rows": 9, "features": {"x": {"kind": "number", "edges": [7.0], "counts": [0, 9], "missing": 0}}}
    only = read_reference(constant, signature)
    assert only is not None
    assert only.features[0].labels == ("any",)
    assert list(only.features[0].count(np.array([1.0, 9.0]))) == [2]


def test_rare_categories_and_wide_tables_are_bounded() -> None:
    names = tuple(f"c{i:03}" for i in range(200))
    features = tuple(Feature(f"f{i}", "category", categories=names) for i in range(MAX_FEATURES + 20))
    signature = Signature(features, "regression")
    counts = {name: len(names) - place for place, name in enumerate(names)}
    column = {"kind": "category", "counts": counts, "missing": 0}
    drift_reference = read_reference({"rows": 1, "features": {feature.name: column for feature in features}}, signature)
    assert drift_reference is not None
    assert len(drift_reference.features) == MAX_FEATURES
    bins = drift_reference.features[0]
    assert bins.labels == (*names[:MAX_BINS], "other")
    assert bins.count(np.array([0.0, 199.0, -1.0]))[-1] == 2
    assert bins.expected[-1] == pytest.approx(sum(counts[name] for name in names[MAX_BINS:]) / sum(counts.values()), rel=0.01)


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {},
        {"features": None},
        {"features": {"sepal_length": 3}},
        {"features": {"sepal_length": {"edges": [2, 1], "counts": [1, 1, 1], "missing": 0}}},
        {"features": {"sepal_length": {"edges": [1, math.nan], "counts": [1, 1, 1], "missing": 0}}},
        {"features": {"sepal_length": {"edges": [1], "counts": [1], "missing": 0}}, "rows": "many", "classes": []},
    ],
    ids=str,
)
def test_a_bundle_without_a_usable_reference_is_served_without_drift(raw: Any) -> None:
    drift_reference = read_reference(raw, SIGNATURE)
    assert drift_reference is None or (drift_reference.features, drift_reference.predictions) == ((), None)


def samples_after(tmp_path: Path, bundled: Any, rows: Any) -> dict[Any, float]:
    """The exported samples after these rows were predicted."""
    slot = Slot(Store(tmp_path), policy=ALLOW_ALL)
    accounts = MetricsCollector(slot)
    slot.predictor = open_predictor(bundled, ALLOW_ALL)
    for part in np.array_split(rows, 3):
        accounts.flush()
        accounts.predicted(slot.predictor, part, slot.predictor.scores(part))
    return values(accounts)


def test_a_replica_exports_its_rows_by_bin_and_the_expected_shares(tmp_path: Path) -> None:
    samples = samples_after(tmp_path, bundle(forest(), reference=REFERENCE), X)
    counts = {dict(labels)["bin"]: value for (name, labels), value in samples.items() if name == "model_prediction_bin_total"}
    assert counts == dict(Counter(forest().predict(X)))
    for name in SIGNATURE.names:
        rows_of_feature = [
            value
            for (metric, labels), value in samples.items()
            if metric == "model_input_bin_total" and dict(labels)["feature"] == name
        ]
        assert sum(rows_of_feature) == 150
        expected = [
            value
            for (metric, labels), value in samples.items()
            if metric == "model_input_bin_expected" and dict(labels)["feature"] == name
        ]
        assert sum(expected) == pytest.approx(1)
    assert samples["model_reference_rows", (("model_version", "1"),)] == 150


def test_a_regression_is_counted_by_the_bins_of_its_target(tmp_path: Path) -> None:
    signature = diabetes_signature()
    rows = np.zeros((30, 10))
    frame = pd.DataFrame(rows, columns=list(signature.names))
    target_reference = reference(frame, np.linspace(0.0, 300.0, 100), signature)
    samples = samples_after(tmp_path, bundle(linear(), signature, reference=target_reference), rows)
    bins = {dict(labels)["bin"]: value for (name, labels), value in samples.items() if name == "model_prediction_bin_total"}
    assert len(bins) == 10
    assert sum(bins.values()) == 30
    assert max(bins.values()) == 30
