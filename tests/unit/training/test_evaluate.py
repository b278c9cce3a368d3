from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, r2_score

from serve_app.artifacts.manifest import Verdict
from serve_app.artifacts.signature import Feature, Signature
from tests.support.bundles import bundle
from tests.support.models import iris
from training import evaluate

CLASSES = ("a", "b", "c")
SIGNATURE = Signature((Feature("x"),), "classification", CLASSES)
NUMBER = Signature((Feature("x"),), "regression")
NOT_COMPARED = {"compared": False, "why": "no model is served yet"}


def labels(texts: str) -> np.ndarray[Any, Any]:
    return np.array(list(texts), dtype=object)


@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(CLASSES)), min_size=1))
def test_the_metrics_of_classes_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, found = np.array([a for a, _ in pairs], dtype=object), np.array([b for _, b in pairs], dtype=object)
    metrics = evaluate.measure(truth, found, SIGNATURE)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, found, average="weighted", zero_division=0)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, found))
    assert (metrics["precision"], metrics["recall"], metrics["f1_score"]) == pytest.approx((precision, recall, f1))
    assert sum(row["support"] for row in metrics["per_class"].values()) == len(pairs)
    assert np.sum(metrics["confusion_matrix"]) == len(pairs)


def test_the_metrics_of_numbers_are_those_of_scikit_learn() -> None:
    truth, found = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    metrics = evaluate.measure(truth, found, NUMBER)
    assert metrics["mae"] == pytest.approx(0.5)
    assert metrics["rmse"] == pytest.approx(np.sqrt(1.25 / 3))
    assert metrics["r2"] == pytest.approx(r2_score(truth, found))


def test_a_prediction_is_the_class_of_the_highest_probability() -> None:
    assert evaluate.predictions(np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]]), SIGNATURE).tolist() == ["b", "a"]


def test_classes_that_are_booleans_are_measured() -> None:
    signature = Signature((Feature("x"),), "classification", (False, True))
    metrics = evaluate.measure(np.array([True, False, True]), np.array([True, True, True], dtype=object), signature)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert set(metrics["per_class"]) == {"False", "True"}


class TestVerdict:
    def judge(self, metrics: dict[str, Any], served: dict[str, Any] | None = None, **options: Any) -> Verdict:
        given = {"limits": {}, "comparison": {"version": "4"}, "tolerance": 0.0, **options}
        return evaluate.judge(metrics, metrics if served else None, served, **given)

    def test_a_model_at_its_floor_is_accepted(self) -> None:
        assert self.judge({"accuracy": 0.9}, limits={"accuracy": 0.9}).accepted

    def test_a_model_below_its_floor_is_refused_with_both_numbers(self) -> None:
        verdict = self.judge({"accuracy": 0.85}, limits={"accuracy": 0.9})
        assert verdict.reasons == ("accuracy is 0.8500, below the required 0.9",)

    def test_an_error_has_a_ceiling(self) -> None:
        assert self.judge({"rmse": 3.0}, limits={"rmse": 3.0}).accepted
        assert "above the allowed 2" in self.judge({"rmse": 3.0}, limits={"rmse": 2.0}).reasons[0]

    def test_a_metric_that_is_no_number_is_never_good_enough(self) -> None:
        assert not self.judge({"accuracy": float("nan")}, limits={"accuracy": 0.5}).accepted
        assert not self.judge({"rmse": float("nan")}, limits={"rmse": 0.5}).accepted

    def test_as_good_as_the_served_model_is_enough(self) -> None:
        assert self.judge({"accuracy": 0.9}, {"accuracy": 0.9}).accepted

    def test_worse_than_the_served_model_is_refused_and_names_it(self) -> None:
        verdict = self.judge({"accuracy": 0.9}, {"accuracy": 0.95})
        assert "worse than the 0.9500 of version 4" in verdict.reasons[0]

    def test_the_tolerance_allows_a_small_loss(self) -> None:
        assert self.judge({"accuracy": 0.9}, {"accuracy": 0.95}, tolerance=0.05).accepted
        assert not self.judge({"accuracy": 0.9}, {"accuracy": 0.95}, tolerance=0.04).accepted

    def test_for_a_regression_the_tolerance_is_a_share(self) -> None:
        assert self.judge({"rmse": 105.0}, {"rmse": 100.0}, tolerance=0.05).accepted
        assert not self.judge({"rmse": 106.0}, {"rmse": 100.0}, tolerance=0.05).accepted

    def test_every_reason_is_given(self) -> None:
        assert len(self.judge({"accuracy": 0.5}, {"accuracy": 0.9}, limits={"accuracy": 0.8}).reasons) == 2


def test_without_a_floor_a_model_must_beat_the_constant_answer() -> None:
    floors = evaluate.default_floors(labels("aaab"), SIGNATURE, built_in=False)
    constant = evaluate.measure(labels("aaab"), labels("aaaa"), SIGNATURE)
    assert floors == {"f1_score": pytest.approx(constant["f1_score"], abs=1e-6)}
    assert evaluate.default_floors(np.array([1.0, 2.0]), NUMBER, built_in=False) == {"r2": 0.0}


class TestServedModel:
    """What the served model says to the same raw rows."""

    matrix, target = iris()

    def rows(self) -> list[dict[str, float]]:
        names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
        return [dict(zip(names, map(float, row), strict=True)) for row in self.matrix]

    def signature(self, **changes: Any) -> Signature:
        names = ("petal_width", "sepal_length", "sepal_width", "petal_length")  # the order is not part of the contract
        given = {"task": "classification", "classes": ("setosa", "versicolor", "virginica"), **changes}
        return Signature(tuple(Feature(name) for name in given.pop("names", names)), **given)

    @pytest.mark.parametrize("onnx", [False, True])
    def test_it_is_asked_the_way_clients_ask(self, onnx: bool) -> None:
        model = RandomForestClassifier(10, random_state=0).fit(self.matrix, self.target)
        found, about = evaluate.served_predictions(bundle(model, onnx=onnx), self.rows(), self.signature())
        assert about["compared"]
        assert found is not None
        assert found.tolist() == model.predict(self.matrix).tolist()

    def test_nothing_served_yet(self) -> None:
        assert evaluate.served_predictions(None, self.rows(), self.signature()) == (None, NOT_COMPARED)

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"names": ("a", "b")}, "other features"),
            ({"classes": ("setosa", "versicolor")}, "other classes"),
            ({"task": "regression", "classes": ()}, "another task"),
        ],
    )
    def test_another_signature_is_not_compared(self, changes: dict[str, Any], why: str) -> None:
        model = LogisticRegression(max_iter=500).fit(self.matrix, self.target)
        found, about = evaluate.served_predictions(bundle(model), self.rows(), self.signature(**changes))
        assert found is None
        assert why in about["why"]

    def test_a_model_that_cannot_be_opened_is_not_compared(self) -> None:
        model = LogisticRegression(max_iter=500).fit(self.matrix, self.target)
        broken = bundle(model, libraries={"scikit-learn": "0.1.0"})
        found, about = evaluate.served_predictions(broken, self.rows(), self.signature())
        assert found is None
        assert "cannot be opened here" in about["why"]

    def test_rows_that_it_refuses_are_not_compared(self) -> None:
        model = LogisticRegression(max_iter=500).fit(self.matrix, self.target)
        rows = [{**row, "sepal_length": 500.0} for row in self.rows()]
        found, about = evaluate.served_predictions(bundle(model), rows, self.signature())
        assert found is None
        assert "takes no such rows" in about["why"]


def test_rows_that_only_one_of_two_gets_right_are_counted() -> None:
    found = evaluate.paired(labels("aabb"), labels("abbb"), labels("aaab"))
    assert found == {"only_new_right": 1, "only_served_right": 0}


def test_a_classifier_without_probabilities_is_scored_by_its_positions() -> None:
    signature = Signature((Feature("x"),), "classification", CLASSES, probabilistic=False)
    assert evaluate.predictions(np.array([2.0, 0.0]), signature).tolist() == ["c", "a"]
    assert not hasattr(RidgeClassifier(), "predict_proba")
