"""The verdict: every rule alone, and all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from serve_app.artifacts.signature import Feature, Signature
from training import rules
from training.comparison import Comparison
from training.evaluate import ClassificationMetrics, Metrics, RegressionMetrics, measure
from training.rules import VERDICT_RULES, Evidence, floors_are_met, judge, not_worse_than_served, replicas_can_open

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


def test_the_verdict_has_the_reason_of_every_rule_that_refuses() -> None:
    verdict = judge(evidence(accuracy(0.5), accuracy(0.9), floors={"accuracy": 0.8}, servable=False))
    assert not verdict.accepted
    assert len(verdict.reasons) == len(VERDICT_RULES) == 3
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
    assert rules.default_floors(target, CLASSES, built_in=False) == {"f1_score": pytest.approx(metrics.f1_score, abs=1e-6)}
    assert rules.default_floors(np.array([1.0, 2.0]), NUMBER, built_in=False) == {"r2": 0.0}
    assert rules.default_floors(target, CLASSES, built_in=True) == {"accuracy": 0.85}
