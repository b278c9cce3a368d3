from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
)

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
    assert set(document) == {
        "accuracy",
        "precision",
        "recall",
        "f1_score",
        "rows",
        "per_class",
        "confusion_matrix",
        "balanced_accuracy",
    }
    assert set(document["per_class"]["a"]) == {"precision", "recall", "f1_score", "support"}
    assert metrics.scalars() == {
        name: document[name] for name in ("accuracy", "precision", "recall", "f1_score", "balanced_accuracy")
    }
    number = evaluate.measure(np.array([1.0, 2.0]), np.array([1.0, 3.0]), NUMBER)
    assert set(number.to_dict()) == {"mae", "rmse", "r2", "rows"}


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_the_metrics_of_probabilities_are_those_of_scikit_learn(classes: tuple[str, ...]) -> None:
    random = np.random.default_rng(0)
    true = random.integers(0, len(classes), 200)
    scores = random.dirichlet(np.ones(len(classes)), 200) + np.eye(len(classes))[true]
    scores /= scores.sum(axis=1, keepdims=True)
    signature = Signature((Feature("x"),), "classification", classes)
    target = np.array(classes, dtype=object)[true]
    metrics = evaluate.measure(target, evaluate.predictions(scores, signature), signature, scores)
    assert isinstance(metrics, ClassificationMetrics)
    ranked = scores[:, 1] if len(classes) == 2 else scores
    assert metrics.roc_auc == pytest.approx(roc_auc_score(true, ranked, multi_class="ovr"))
    assert metrics.log_loss == pytest.approx(log_loss(true, scores))
    assert metrics.brier == pytest.approx(brier_score_loss(true, ranked))
    assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(true, scores.argmax(axis=1)))
    assert list(metrics.scalars()) == [name for name in ClassificationMetrics.NAMES if name not in ("coverage", "set_size")]


def test_metrics_that_the_held_out_rows_do_not_tell_are_left_out() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1]])
    one_class = evaluate.measure(labels("aa"), evaluate.predictions(scores, SIGNATURE), SIGNATURE, scores)
    assert "roc_auc" not in one_class.scalars()
    two_classes = evaluate.measure(labels("ab"), evaluate.predictions(scores, SIGNATURE), SIGNATURE, scores)
    assert two_classes.scalars()["roc_auc"] == 1.0
    assert "log_loss" not in evaluate.measure(labels("ab"), labels("ab"), SIGNATURE).to_dict()


def test_a_class_that_no_row_is_predicted_as_is_named_with_its_rows() -> None:
    metrics = evaluate.measure(labels("aabbbc"), labels("aaaaac"), SIGNATURE)
    assert isinstance(metrics, ClassificationMetrics)
    assert metrics.never_predicted == {1: 3}
