from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, r2_score

from serve_app.artifacts.signature import Feature, Signature
from training import evaluate
from training.evaluate import ClassificationMetrics, RegressionMetrics

CLASSES = ("a", "b", "c")
SIGNATURE = Signature((Feature("x"),), "classification", CLASSES)
NUMBER = Signature((Feature("x"),), "regression")


def labels(texts: str) -> np.ndarray[Any, Any]:
    return np.array(list(texts), dtype=object)


@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1))
def test_the_metrics_of_classes_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = np.array([a for a, _ in pairs], dtype=object), np.array([b for _, b in pairs], dtype=object)
    metrics = evaluate.measure(truth, predicted, SIGNATURE)
    assert isinstance(metrics, ClassificationMetrics)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)
    assert metrics.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert (metrics.precision, metrics.recall, metrics.f1_score) == pytest.approx((precision, recall, f1))
    assert sum(row.support for row in metrics.per_class.values()) == len(pairs)
    assert np.sum(metrics.confusion_matrix) == len(pairs)


def test_the_metrics_of_numbers_are_those_of_scikit_learn() -> None:
    truth, predicted = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    metrics = evaluate.measure(truth, predicted, NUMBER)
    assert isinstance(metrics, RegressionMetrics)
    assert metrics.mae == pytest.approx(0.5)
    assert metrics.rmse == pytest.approx(np.sqrt(1.25 / 3))
    assert metrics.r2 == pytest.approx(r2_score(truth, predicted))


def test_a_prediction_is_the_class_of_the_highest_probability() -> None:
    assert evaluate.predictions(np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]), SIGNATURE).tolist() == ["b", "a"]


def test_classes_that_are_booleans_are_measured() -> None:
    signature = Signature((Feature("x"),), "classification", (False, True))
    metrics = evaluate.measure(np.array([True, False, True]), np.array([True, True, True], dtype=object), signature)
    assert isinstance(metrics, ClassificationMetrics)
    assert metrics.accuracy == pytest.approx(2 / 3)
    assert set(metrics.per_class) == {"False", "True"}


def test_a_classifier_without_probabilities_is_scored_by_its_positions() -> None:
    signature = Signature((Feature("x"),), "classification", CLASSES, probabilistic=False)
    assert evaluate.predictions(np.array([2.0, 0.0]), signature).tolist() == ["c", "a"]
    assert not hasattr(RidgeClassifier(), "predict_proba")


def test_the_document_of_the_metrics_has_the_written_keys() -> None:
    metrics = evaluate.measure(labels("aab"), labels("abb"), SIGNATURE)
    document = metrics.to_dict()
    assert set(document) == {"accuracy", "precision", "recall", "f1_score", "rows", "per_class", "confusion_matrix"}
    assert set(document["per_class"]["a"]) == {"precision", "recall", "f1_score", "support"}
    assert metrics.scalars() == {name: document[name] for name in ("accuracy", "precision", "recall", "f1_score")}
    number = evaluate.measure(np.array([1.0, 2.0]), np.array([1.0, 3.0]), NUMBER)
    assert set(number.to_dict()) == {"mae", "rmse", "r2", "rows"}
