"""Whether a candidate may be served: rules over one record of evidence.

A new rule is one function, and its name in VERDICT_RULES.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.manifest import Verdict
from serve_app.artifacts.signature import Signature
from training.comparison import Comparison
from training.evaluate import ClassificationMetrics, Metrics, RegressionMetrics, baseline_f1_score

LOWER_IS_BETTER = frozenset({"mae", "rmse", "log_loss", "brier"})
"""Metrics whose floor is a ceiling."""

IRIS_ACCURACY = 0.85
"""The accuracy that a model of the built-in iris flowers must reach."""

_ROUNDING = 1e-12  # equal metrics may differ by this much
_BARELY = 1e-6  # a metric that is better than a constant answer is better by more


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that a verdict depends on.

    `metrics` are the candidate's on all held-out rows; `floors` by metric; `tolerance` is the accuracy that may be lost against the
    served model, or the share by which rmse may grow. A floor in `constant` is what a constant answer reaches: the metric must be
    better. `compared_by` is what two classifiers are compared by. `never_predicted` are classes that the model does not predict,
    with their held-out rows. `servable` is whether replicas with the trainer's load policy open the candidate: it has an ONNX form
    that is proven equal, or pickles are allowed.
    """

    metrics: Metrics
    comparison: Comparison
    floors: Mapping[str, float]
    tolerance: float
    constant: Collection[str] = ()
    compared_by: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    never_predicted: Mapping[str, int] = field(default_factory=dict)
    servable: bool = True


Rule = Callable[[Evidence], Iterable[str]]
"""Yields the reasons to refuse the candidate; none when the rule holds."""


def floors_are_met(evidence: Evidence) -> Iterable[str]:
    """Every metric with a floor reaches it; errors and losses do not exceed it. A metric that is NaN or not known fails."""
    scalars = evidence.metrics.scalars()
    for name, floor in evidence.floors.items():
        value = scalars.get(name, math.nan)
        if name not in scalars:
            yield f"{name} is not known, because the model gives no probabilities or the held-out rows have one class only"
        elif name in LOWER_IS_BETTER and not value <= floor:
            yield f"{name} is {value:.4f}, above the allowed {floor:g}"
        elif name in evidence.constant and not value > floor + _BARELY:
            yield f"{name} is {value:.4f}, not better than the {floor:.4f} of always giving the same answer"
        elif name not in LOWER_IS_BETTER and not value >= floor:
            yield f"{name} is {value:.4f}, below the required {floor:g}"


def every_class_is_predicted(evidence: Evidence) -> Iterable[str]:
    """There is no class that the model never predicts."""
    for label, rows in evidence.never_predicted.items():
        yield (
            f"class '{label}' is never predicted, although {rows} of {evidence.metrics.rows} held-out rows have it "
            "(--allow-unpredicted-classes accepts that)"
        )


def not_worse_than_served(evidence: Evidence) -> Iterable[str]:
    """On the rows that both models predict, the new one is not worse in accuracy or rmse, within the tolerance.

    With a threshold it is the balanced accuracy: a threshold is set to find more of a rare class, which costs accuracy.
    """
    new, served = evidence.comparison.new, evidence.comparison.served
    if isinstance(new, ClassificationMetrics) and isinstance(served, ClassificationMetrics):
        name: str = evidence.compared_by
        value, other = (metrics.scalars()[name] for metrics in (new, served))
        worse = value < other - evidence.tolerance - _ROUNDING
    elif isinstance(new, RegressionMetrics) and isinstance(served, RegressionMetrics):
        name, value, other = "rmse", new.rmse, served.rmse
        worse = value > other * (1.0 + evidence.tolerance) + _ROUNDING
    else:
        return
    if worse:
        version = evidence.comparison.version
        yield f"{name} is {value:.4f}, worse than the {other:.4f} of version {version}, which is served now, on the same rows"


def replicas_can_open(evidence: Evidence) -> Iterable[str]:
    """The load policy that the trainer shares with the replicas opens the candidate."""
    if not evidence.servable:
        yield (
            "the model has no ONNX form that is proven equal, and IRIS_ALLOW_JOBLIB=false makes replicas refuse models that "
            "scikit-learn computes; choose another estimator, or set IRIS_ALLOW_JOBLIB=true for training and serving"
        )


VERDICT_RULES: tuple[Rule, ...] = (floors_are_met, every_class_is_predicted, not_worse_than_served, replicas_can_open)


def judge(evidence: Evidence) -> Verdict:
    """The verdict with every reason of every rule, in the order of VERDICT_RULES."""
    reasons = tuple(reason for rule in VERDICT_RULES for reason in rule(evidence))
    return Verdict(accepted=not reasons, reasons=reasons, comparison=evidence.comparison.to_dict())


def default_floors(target: npt.NDArray[Any], signature: Signature, *, built_in: bool) -> dict[str, float]:
    """The floors when none is set: what a constant answer reaches on the held-out rows; for the built-in iris an accuracy of 0.85.

    With a threshold, which is set to find more of one class at the cost of the other, the F1 does not count.
    """
    if signature.task == "regression":
        return {"r2": 0.0}
    if built_in:
        return {"accuracy": IRIS_ACCURACY}
    floors = {"balanced_accuracy": round(1.0 / len(np.unique(target.astype(str))), 6)}
    if signature.threshold is None:
        floors["f1_score"] = round(baseline_f1_score(target, signature), 6)
    return floors


def constant_floors(signature: Signature, own: Collection[str], *, built_in: bool) -> frozenset[str]:
    """The metrics that must be better than those of a constant answer: the default floors, except those that a flag sets."""
    if signature.task == "regression":
        return frozenset({"r2"}) - frozenset(own)
    if built_in:
        return frozenset()
    return frozenset({"f1_score", "balanced_accuracy"}) - frozenset(own)
