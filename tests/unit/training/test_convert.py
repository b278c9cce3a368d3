from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from serve_app.artifacts.manifest import OnnxConversion
from serve_app.artifacts.signature import Feature, Signature
from serve_app.inference.backends.onnx_backend import OnnxBackend
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from tests.support import tables
from tests.support.estimators import INSTALLED, OF_SCIKIT_LEARN
from training import convert
from training.candidate import Candidate, fit_candidate
from training.convert import Converted
from training.dataset import load
from training.onnx_float64 import converters


def difference(converted: Converted) -> float:
    assert converted.model is not None
    assert converted.facts.largest_difference is not None
    return converted.facts.largest_difference


CASES = {
    "three classes": (None, None),
    "every kind of column": (tables.customers, "stays"),
    "classes that are numbers": (tables.spam, "spam"),
    "a regression": (tables.houses, "price"),
}


def candidate(case: str, estimator: str, folder: Path, **params: Any) -> Candidate:
    table, target = CASES[case]
    dataset = load(tables.written(table(), folder) if table else None, target=target)
    return fit_candidate(dataset, estimator, params, random_state=1)


@pytest.mark.parametrize("estimator", OF_SCIKIT_LEARN)
@pytest.mark.parametrize("case", CASES)
def test_every_built_in_estimator_converts_to_the_last_bit_or_nearly(case: str, estimator: str, tmp_path: Path) -> None:
    fitted = candidate(case, estimator, tmp_path)
    converted = convert.convert(fitted.estimator, fitted.signature, fitted.train, fitted.held_out)
    assert converted.model is not None
    assert difference(converted) <= (1e-12 if fitted.signature.task == "classification" else 1e-9)


def test_a_forest_gives_the_very_numbers_of_scikit_learn(tmp_path: Path) -> None:
    fitted = candidate("three classes", "random-forest", tmp_path)
    converted = convert.convert(fitted.estimator, fitted.signature, fitted.train, fitted.held_out)
    assert converted.model is not None
    rows = np.vstack([convert.probe_rows(fitted.signature, fitted.train), np.random.default_rng(1).uniform(0, 8, (3000, 4))])
    scores = OnnxBackend(converted.model, fitted.signature, rounded=bool(converted.facts.rounded)).scores(rows)
    np.testing.assert_array_equal(scores, fitted.estimator.predict_proba(rows))


def test_classes_that_are_booleans_convert(tmp_path: Path) -> None:
    frame = tables.spam()
    frame["spam"] = frame["spam"].astype(bool)
    dataset = load(tables.written(frame, tmp_path), target="spam")
    for estimator in INSTALLED:
        fitted = fit_candidate(dataset, estimator, {}, random_state=1)
        assert convert.convert(fitted.estimator, fitted.signature, fitted.train, fitted.held_out).model is not None


def test_a_lone_leaf_is_a_tree_too() -> None:
    signature = Signature((Feature("x"),), "classification", (0, 1))
    matrix, target = np.zeros((20, 1)), np.arange(20) % 2
    forest = RandomForestClassifier(3, random_state=0).fit(matrix, target)
    assert {member.tree_.node_count for member in forest.estimators_} == {1}
    assert difference(convert.convert(forest, signature, matrix, matrix)) == 0.0


@pytest.mark.parametrize("kind", [ExtraTreesClassifier, ExtraTreesRegressor])
def test_forests_of_one_s_own_convert_as_well(kind: type) -> None:
    random = np.random.default_rng(0)
    matrix = random.normal(size=(200, 3))
    classes = kind is ExtraTreesClassifier
    target = (matrix[:, 0] > 0).astype(int) if classes else matrix[:, 0] * 3
    signature = Signature(
        tuple(Feature(name) for name in "abc"), "classification" if classes else "regression", (0, 1) if classes else ()
    )
    model = kind(20, random_state=0).fit(matrix, target)
    assert difference(convert.convert(model, signature, matrix, matrix)) <= 1e-12


def test_gaps_take_the_way_that_scikit_learn_learnt() -> None:
    random = np.random.default_rng(0)
    matrix = random.normal(size=(400, 3))
    matrix[random.random(matrix.shape) < 0.2] = np.nan
    target = np.where(np.isnan(matrix[:, 0]), 5.0, matrix[:, 0])
    signature = Signature(tuple(Feature(name, nullable=True) for name in "abc"), "regression")
    model = HistGradientBoostingRegressor(max_iter=30).fit(matrix, target)
    converted = convert.convert(model, signature, matrix, matrix)
    assert difference(converted) <= 1e-12


def test_a_boosting_with_a_link_function_is_left_to_scikit_learn() -> None:
    matrix = np.random.default_rng(0).uniform(1, 9, (100, 2))
    signature = Signature((Feature("a"), Feature("b")), "regression")
    model = HistGradientBoostingRegressor(loss="poisson", max_iter=5).fit(matrix, matrix[:, 0])
    converted = convert.convert(model, signature, matrix, matrix)
    assert converted.model is None
    assert "link function" in str(converted.facts.reason)


def test_a_classifier_without_probabilities_is_left_to_scikit_learn() -> None:
    data = load(None)
    signature = Signature(data.signature.features, "classification", data.signature.classes, probabilistic=False)
    converted = convert.convert(
        RidgeClassifier().fit(data.train, data.train_target), signature, np.asarray(data.train), np.asarray(data.test)
    )
    assert converted.model is None
    assert converted.facts == OnnxConversion(available=False, reason="the estimator has no probabilities")


def test_a_form_that_answers_otherwise_is_not_kept() -> None:
    """Nearest neighbours with a metric of the user's: no converter knows it."""
    data = load(None)
    matrix = data.train.to_numpy()
    model = KNeighborsClassifier(metric=lambda a, b: float(np.abs(a - b).max())).fit(matrix, data.train_target)
    converted = convert.convert(model, data.signature, matrix, data.test.to_numpy())
    assert converted.model is None
    assert converted.facts.reason


def test_probes_sit_on_both_sides_of_every_threshold_of_a_small_table() -> None:
    signature = Signature(
        (Feature("a"), Feature("b", "boolean", nullable=True), Feature("c", "category", categories=("x", "y"))), "regression"
    )
    train = np.column_stack([np.arange(20) / 7, np.arange(20) % 2, np.arange(20) % 2]).astype(np.float64)
    probes = convert.probe_rows(signature, train)
    middles = (train[1:, 0] + train[:-1, 0]) / 2
    for middle in middles:
        assert (probes[:, 0] == middle).any()
        assert ((probes[:, 0] > middle) & (probes[:, 0] < middle + 1e-6)).any()
        assert ((probes[:, 0] < middle) & (probes[:, 0] > middle - 1e-6)).any()
    assert np.isnan(probes[:, 1]).any()
    assert (probes[:, 2] == -1.0).any()
    assert not np.isnan(probes[:, [0, 2]]).any()


def test_the_stock_converter_would_not_do(tmp_path: Path) -> None:
    """The reason for our own operators: without them a forest's numbers are float32."""
    fitted = candidate("three classes", "random-forest", tmp_path)
    stock = OnnxBackend(
        convert.to_onnx(fitted.estimator, fitted.signature, "float64", float64_operators=False), fitted.signature, rounded=True
    ).scores
    expected = SklearnBackend(fitted.estimator, fitted.signature).scores(fitted.held_out)
    assert 0 < np.abs(stock(fitted.held_out) - expected).max() < 1e-6
    assert RandomForestClassifier in converters()


def test_wide_tables_are_probed_within_limits() -> None:
    train = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 600))).to_numpy()
    signature = Signature(tuple(Feature(f"x{at}") for at in range(600)), "regression")
    assert len(convert.probe_rows(signature, train)) <= convert.MAX_PROBES
