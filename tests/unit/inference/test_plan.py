from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from serve_app.inference.plan import compile_plan
from tests.support.models import diabetes, iris

X, y = iris()
D, d = diabetes()
TWO = y != "virginica"
NOISE = np.random.default_rng(1).normal(0, 3, (200, 4))
"""Rows far from the table: a plan is compared where it was not compiled."""


@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestClassifier(20, max_depth=5, random_state=0),
        RandomForestClassifier(20, class_weight="balanced", random_state=0),
        ExtraTreesClassifier(20, random_state=0),
        LogisticRegression(C=0.01, max_iter=500),
        make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)),
        make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=0)),
        make_pipeline(make_pipeline(StandardScaler()), LogisticRegression(C=0.01, max_iter=500))[1:],
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [slice(None), TWO], ids=["three classes", "two classes"])
def test_a_plan_gives_a_classifiers_probabilities_bit_for_bit(estimator: Any, rows: Any) -> None:
    estimator.fit(X[rows], y[rows])
    plan = compile_plan(estimator, estimator.predict_proba, X[::7])
    assert plan is not None
    for table in (X, NOISE):
        np.testing.assert_array_equal(plan(table), estimator.predict_proba(table))
        np.testing.assert_array_equal(plan(table[:1]), estimator.predict_proba(table[:1]))


@pytest.mark.parametrize(
    "estimator",
    [
        RandomForestRegressor(20, random_state=0),
        ExtraTreesRegressor(20, random_state=0),
        LinearRegression(),
        Ridge(),
        make_pipeline(StandardScaler(), Ridge()),
    ],
    ids=str,
)
def test_a_plan_gives_a_regressors_values_bit_for_bit(estimator: Any) -> None:
    estimator.fit(D, d)
    plan = compile_plan(estimator, estimator.predict, D[::7])
    assert plan is not None
    for row in range(0, len(D), 9):
        np.testing.assert_array_equal(plan(D[row : row + 1]), estimator.predict(D[row : row + 1]))


def test_a_plan_does_not_change_what_it_is_given() -> None:
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(X, y)
    plan = compile_plan(pipeline, pipeline.predict_proba, X[:5])
    assert plan is not None
    before = X[:5].copy()
    first = plan(before)
    np.testing.assert_array_equal(plan(before), first)
    np.testing.assert_array_equal(before, X[:5])


class Cautious(LogisticRegression):  # type: ignore[misc]
    """Looks like one that has a plan, and computes something else."""

    def predict_proba(self, X: Any) -> Any:
        return super().predict_proba(X) * 0.5 + 1 / 6


class Constant(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    def fit(self, X: Any, y: Any) -> Constant:
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: Any) -> Any:
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


@pytest.mark.parametrize(
    "estimator",
    [
        GaussianNB(),
        GradientBoostingClassifier(n_estimators=2),
        Cautious(C=0.01, max_iter=500),
        Constant(),
        make_pipeline(MinMaxScaler(), LogisticRegression(C=0.01, max_iter=500)),
        make_pipeline(StandardScaler(with_mean=False), LogisticRegression(C=0.01, max_iter=500)),
    ],
    ids=str,
)
def test_what_no_plan_is_known_for_has_none(estimator: Any) -> None:
    estimator.fit(X, y)
    assert compile_plan(estimator, estimator.predict_proba, X[:5]) is None


def test_several_outputs_have_no_plan() -> None:
    for estimator in (LinearRegression(), RandomForestRegressor(2)):
        estimator.fit(D, np.column_stack([d, d]))
        assert compile_plan(estimator, estimator.predict, D[:5]) is None


def test_a_plan_that_differs_in_one_bit_is_not_used() -> None:
    forest = RandomForestClassifier(5, random_state=0).fit(X, y)
    for other in (
        lambda table: np.nextafter(forest.predict_proba(table), 2),
        lambda table: forest.predict_proba(table)[:, [2, 0, 1]],
    ):
        assert compile_plan(forest, other, X[::7]) is None


def test_an_estimator_that_was_never_fitted_has_no_plan() -> None:
    for estimator in (LogisticRegression(), RandomForestClassifier(), StandardScaler()):
        assert compile_plan(estimator, lambda table: table, X[:5]) is None
