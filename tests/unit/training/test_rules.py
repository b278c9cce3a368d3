"""The verdict: every rule alone, and all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serve_app.artifacts.signature import Feature, Signature
from training import rules
from training.comparison import Comparison
from training.evaluate import ClassificationMetrics, Metrics, RegressionMetrics, measure
from training.rules import (
    VERDICT_RULES,
    Evidence,
    every_class_is_predicted,
    floors_are_met,
    judge,
    not_worse_than_served,
    replicas_can_open,
)

CLASSES = Signature((Feature("x"),), "classification", ("a", "b", "c"))
NUMBER = Signature((Feature("x"),), "regression")
NOT_COMPARED = Comparison(False, "no model is served yet")


def accuracy(value: float) -> ClassificationMetrics:
    return ClassificationMetrics(value, value, value, value, 100, {}, [])


def rmse(value: float) -> RegressionMetrics:
    return RegressionMetrics(value, value, 0.5, 100)


def evidence(new: Metrics, served: Metrics | None = None, **values: Any) -> Evidence:
    comparison = NOT_COMPARED if served is None else Comparison(True, version="4", new=new, served=served)
    return Evidence(**{"metrics": new, "comparison": comparison, "floors": {}, "tolerance": 0.0, **values})


def test_a_model_at_its_floor_is_accepted() -> None:
    assert list(floors_are_met(evidence(accuracy(0.9), floors={"accuracy": 0.9}))) == []


def test_the_reason_for_a_missed_floor_has_both_numbers() -> None:
    (reason,) = floors_are_met(evidence(accuracy(0.85), floors={"accuracy": 0.9}))
    assert "0.8500" in reason
    assert "0.9" in reason


def test_every_missed_floor_is_a_reason() -> None:
    reasons = floors_are_met(evidence(accuracy(0.5), floors={"accuracy": 0.9, "recall": 0.8, "precision": 0.4}))
    assert [reason.split()[0] for reason in reasons] == ["accuracy", "recall"]


@pytest.mark.parametrize(("ceiling", "met"), [(3.0, True), (2.0, False)])
def test_the_floor_of_an_error_is_a_ceiling(ceiling: float, met: bool) -> None:
    assert (list(floors_are_met(evidence(rmse(3.0), floors={"rmse": ceiling}))) == []) is met


def test_a_metric_that_is_not_a_number_misses_every_floor() -> None:
    assert list(floors_are_met(evidence(accuracy(float("nan")), floors={"accuracy": 0.5})))
    assert list(floors_are_met(evidence(rmse(float("nan")), floors={"rmse": 0.5})))


def test_a_model_as_good_as_the_served_one_is_accepted() -> None:
    assert list(not_worse_than_served(evidence(accuracy(0.9), accuracy(0.9)))) == []
    assert list(not_worse_than_served(evidence(rmse(2.0), rmse(2.0)))) == []


def test_without_a_comparison_nothing_is_worse() -> None:
    assert list(not_worse_than_served(evidence(accuracy(0.1)))) == []


def test_the_reason_against_a_worse_model_names_the_served_version_and_both_numbers() -> None:
    (reason,) = not_worse_than_served(evidence(accuracy(0.9), accuracy(0.95)))
    assert all(part in reason for part in ("0.9000", "0.9500", "version 4"))


@pytest.mark.parametrize(("tolerance", "accepted"), [(0.05, True), (0.04, False)])
def test_the_tolerance_allows_a_small_loss_of_accuracy(tolerance: float, accepted: bool) -> None:
    assert judge(evidence(accuracy(0.9), accuracy(0.95), tolerance=tolerance)).accepted is accepted


@pytest.mark.parametrize(("value", "accepted"), [(105.0, True), (106.0, False)])
def test_for_a_regression_the_tolerance_is_a_share_of_the_error(value: float, accepted: bool) -> None:
    assert judge(evidence(rmse(value), rmse(100.0), tolerance=0.05)).accepted is accepted


def test_a_model_that_replicas_would_refuse_is_refused() -> None:
    assert list(replicas_can_open(evidence(accuracy(0.9)))) == []
    assert len(list(replicas_can_open(evidence(accuracy(0.9), servable=False)))) == 1


def test_the_reason_against_an_adopted_model_names_no_option_of_training() -> None:
    adopted, trained = (
        " ".join(replicas_can_open(evidence(accuracy(0.9), servable=False, adopted=each))) for each in (True, False)
    )
    assert "IRIS_ALLOW_JOBLIB=true" in adopted
    assert "IRIS_ALLOW_JOBLIB=true" in trained
    assert "training" in trained
    assert "training" not in adopted
    assert "estimator" not in adopted


def test_the_verdict_has_the_reason_of_every_rule_that_refuses() -> None:
    verdict = judge(evidence(accuracy(0.5), accuracy(0.9), floors={"accuracy": 0.8}, servable=False))
    assert not verdict.accepted
    assert len(verdict.reasons) == 3
    assert verdict.to_dict()["reasons"] == list(verdict.reasons)
    assert verdict.to_dict()["comparison"]["version"] == "4"


def test_a_new_rule_is_one_function_in_the_tuple(monkeypatch: pytest.MonkeyPatch) -> None:
    def enough_rows(evidence: Evidence) -> Iterable[str]:
        if evidence.metrics.rows < 1000:
            yield "too few rows"

    monkeypatch.setattr(rules, "VERDICT_RULES", (*VERDICT_RULES, enough_rows))
    assert judge(evidence(accuracy(1.0))).reasons == ("too few rows",)


def test_without_a_floor_a_model_must_beat_the_constant_answer() -> None:
    target, constant = (np.array(list(texts), dtype=object) for texts in ("aaab", "aaaa"))
    metrics = measure(target, constant, CLASSES)
    assert isinstance(metrics, ClassificationMetrics)
    assert rules.default_floors(target, CLASSES, built_in=False) == {
        "balanced_accuracy": 0.5,
        "f1_score": pytest.approx(metrics.f1_score, abs=1e-6),
    }
    assert rules.default_floors(np.array([1.0, 2.0]), NUMBER, built_in=False) == {"r2": 0.0}
    assert rules.default_floors(target, CLASSES, built_in=True) == {"accuracy": 0.85}


def test_as_good_as_a_constant_answer_is_not_good_enough() -> None:
    as_good, better = accuracy(0.9), accuracy(0.91)
    floors = {"f1_score": 0.9}
    assert len(list(floors_are_met(evidence(as_good, floors=floors, constant={"f1_score"})))) == 1
    assert list(floors_are_met(evidence(better, floors=floors, constant={"f1_score"}))) == []
    assert list(floors_are_met(evidence(as_good, floors=floors))) == []


@pytest.mark.parametrize(("r2", "accepted"), [(0.0, False), (-0.1, False), (1e-9, False), (0.01, True)])
def test_a_regression_must_be_better_than_the_mean(r2: float, accepted: bool) -> None:
    constant = rules.constant_floors(NUMBER, (), built_in=False)
    metrics = RegressionMetrics(1.0, 1.0, r2, 100)
    assert judge(evidence(metrics, floors={"r2": 0.0}, constant=constant)).accepted is accepted


def test_a_floor_of_a_flag_is_met_when_it_is_reached() -> None:
    assert rules.constant_floors(NUMBER, {"r2"}, built_in=False) == frozenset()
    assert rules.constant_floors(CLASSES, {"f1_score"}, built_in=False) == {"balanced_accuracy"}
    assert rules.constant_floors(CLASSES, {"accuracy"}, built_in=False) == {"f1_score", "balanced_accuracy"}
    assert rules.constant_floors(CLASSES, (), built_in=True) == frozenset()


def test_each_class_that_is_never_predicted_is_a_reason() -> None:
    reasons = list(every_class_is_predicted(evidence(accuracy(0.9), never_predicted={"b": 4, "c": 9})))
    assert [("'b'" in reason, "'c'" in reason) for reason in reasons] == [(True, False), (False, True)]
    assert all("of 100" in reason for reason in reasons)


def test_a_floor_of_a_metric_that_is_not_known_is_missed() -> None:
    assert len(list(floors_are_met(evidence(accuracy(0.9), floors={"roc_auc": 0.5})))) == 1


@pytest.mark.parametrize(("ceiling", "met"), [(0.2, True), (0.05, False)])
def test_losses_of_probabilities_have_ceilings(ceiling: float, met: bool) -> None:
    metrics = replace(accuracy(0.9), log_loss=0.1, brier=0.1)
    for name in ("log_loss", "brier"):
        assert (list(floors_are_met(evidence(metrics, floors={name: ceiling}))) == []) is met


def test_models_with_a_threshold_are_compared_by_the_balanced_accuracy() -> None:
    new, served = replace(accuracy(0.8), balanced_accuracy=0.8), replace(accuracy(0.95), balanced_accuracy=0.5)
    assert judge(evidence(new, served, compared_by="balanced_accuracy")).accepted
    assert not judge(evidence(new, served)).accepted
    assert not judge(evidence(served, new, compared_by="balanced_accuracy")).accepted


def test_with_a_threshold_the_constant_answer_is_beaten_in_balanced_accuracy() -> None:
    signature = Signature((Feature("x"),), "classification", ("a", "b"), threshold=0.1)
    target = np.array(list("aaab"), dtype=object)
    assert rules.default_floors(target, signature, built_in=False) == {"balanced_accuracy": 0.5}
