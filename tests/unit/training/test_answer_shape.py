"""What an estimator answers, found by asking it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.cluster import DBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from serve_app.errors import UsageError
from tests.support.answers import MODELS, TARGETS, classes, fitted, numbers, rows
from training.answer_shape import answer_shape, check_shape, innermost_estimator

TASKS = {
    **dict.fromkeys(MODELS[:5], "outlier detection"),
    **dict.fromkeys(MODELS[5:10], "clustering"),
    **dict.fromkeys(MODELS[10:15], "regression"),
    **dict.fromkeys(MODELS[15:21], "classification"),
    **dict.fromkeys(MODELS[21:26], "regression"),
    **dict.fromkeys(MODELS[26:], "classification"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_shape_is_one_that_serving_computes(name: str) -> None:
    model = fitted(name)
    shape = answer_shape(model.estimator, rows()[:50], targets=model.targets)
    check_shape(model.estimator, shape, rows())
    assert shape.task == TASKS[name]
    assert tuple(output.name for output in shape.outputs) == model.targets
    assert shape.quantiles == {
        "quantile of boosting": (0.9,),
        "quantile of histograms": (0.1,),
        "quantile of a line": (0.5,),
        "three quantiles": (0.1, 0.5, 0.9),
        "two quantiles": (0.1, 0.9),
    }.get(name, ())
    assert shape.distance == (name in ("k-means", "mini-batch k-means", "birch"))


def test_targets_without_names_are_numbered() -> None:
    shape = answer_shape(fitted("forest of numbers").estimator, rows()[:5])
    assert [output.name for output in shape.outputs] == ["output_0", "output_1", "output_2"]


def test_a_threshold_of_the_estimator_becomes_that_of_the_signature() -> None:
    shape = answer_shape(fitted("threshold").estimator, rows())
    assert (shape.threshold, shape.positive, shape.probabilistic) == (0.2, "high", True)
    target = (numbers()[:, 0] > 4).astype(int)
    tuned = TunedThresholdClassifierCV(LogisticRegression(), cv=3, random_state=0).fit(rows(), target)
    assert answer_shape(tuned, rows()).threshold == pytest.approx(tuned.best_threshold_)


def test_a_threshold_is_kept_that_no_row_of_the_sample_shows() -> None:
    estimator = fitted("threshold").estimator
    share = estimator.predict_proba(rows())[:, list(estimator.classes_).index("high")]
    outside = rows()[(share < 0.2) | (share > 0.5)]
    assert 2 < len(outside) < len(rows())
    shape = answer_shape(estimator, outside)
    assert (shape.threshold, shape.positive) == (0.2, "high")


def test_a_threshold_of_a_margin_is_not_one_of_a_probability() -> None:
    target = (numbers()[:, 0] > 4).astype(int)
    by_margin = FixedThresholdClassifier(LogisticRegression(), threshold=0.3, response_method="decision_function")
    shape = answer_shape(by_margin.fit(rows(), target), rows())
    assert (shape.threshold, shape.probabilistic) == (None, False)


def test_labels_that_do_not_follow_from_probabilities_are_served_without_them() -> None:
    shape = answer_shape(fitted("label of a margin").estimator, rows())
    assert not shape.probabilistic
    assert len(shape.remarks) == 1


def test_the_estimator_that_answers_is_found_inside_others() -> None:
    search = GridSearchCV(make_pipeline(StandardScaler(), GradientBoostingRegressor(loss="quantile")), {}, cv=2)
    search.fit(rows(), numbers()[:, 0])
    assert type(innermost_estimator(search)) is GradientBoostingRegressor
    assert answer_shape(search, rows()[:9]).quantiles == (0.9,)


def test_a_single_column_of_values_is_one_target() -> None:
    shape = answer_shape(LinearRegression().fit(rows(), numbers()[:, :1]), rows()[:9])
    assert (shape.task, shape.outputs) == ("regression", ())


class Stubborn(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """An outlier detector whose label is not the sign of its score."""

    def predict(self, X: Any) -> Any:
        return np.where(X[:, 0] > 0, -1, 1)

    def decision_function(self, X: Any) -> Any:
        return X[:, 1]


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (lambda X: LocalOutlierFactor().fit(X), "novelty=True"),
        (lambda X: DBSCAN().fit(X), "new rows"),
        (lambda X: KernelDensity().fit(X), "predict"),
        (lambda X: PCA(2).fit(X), "predict"),
        (lambda X: StandardScaler().fit(X), "predict"),
        (lambda X: KMeans(2), "cannot predict"),
        (lambda X: RandomForestClassifier(), "cannot predict"),
        (lambda X: Stubborn(), "decision_function"),
        (lambda X: DummyClassifier().fit(X, np.zeros(len(X))), "one class"),
        (lambda X: RandomForestClassifier(3).fit(X, np.column_stack([classes()[:, 0], np.zeros(len(X))])), "'b'"),
        (lambda X: RandomForestClassifier(3).fit(X, classes()), "predicts 3 targets"),
    ],
    ids=range(11),
)
def test_what_cannot_be_served_is_said_in_one_sentence(estimator: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refusal:
        answer_shape(estimator(rows()), rows()[:20], targets=("a", "b"))
    assert "\n" not in str(refusal.value)
    assert len(TARGETS) == 3
