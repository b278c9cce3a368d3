"""Whether a candidate may be served: rules over one record of evidence.

A new rule is one function, and its name in VERDICT_RULES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from serve_app.artifacts.manifest import Verdict
from serve_app.artifacts.signature import Signature
from training.comparison import Comparison
from training.evaluate import ClassificationMetrics, Metrics, RegressionMetrics, baseline_f1_score

LOWER_IS_BETTER = frozenset({"mae", "rmse"})
"""Metrics whose floor is a ceiling."""

IRIS_ACCURACY = 0.85
"""The accuracy that a model of the built-in iris flowers must reach."""

_ROUNDING = 1e-12  # equal metrics may differ by this much


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that a verdict depends on.

    `metrics` are the candidate's on all held-out rows; `floors` by metric; `tolerance` is the accuracy that may be lost against the
    served model, or the share by which rmse may grow. `servable` is whether replicas with the trainer's load policy open the
    candidate: it has an ONNX form that is proven equal, or pickles are allowed.
    """

    metrics: Metrics
    comparison: Comparison
    floors: Mapping[str, float]
    tolerance: float
    servable: bool = True


Rule = Callable[[Evidence], Iterable[str]]
"""Yields the reasons to refuse the candidate; none when the rule holds."""


def floors_are_met(evidence: Evidence) -> Iterable[str]:
    """Every metric with a floor reaches it; mae and rmse do not exceed it. A metric that is NaN fails."""
    scalars = evidence.metrics.scalars()
    for name, floor in evidence.floors.items():
        value = scalars[name]
        if name in LOWER_IS_BETTER and not value <= floor:
            yield f"{name} is {value:.4f}, above the allowed {floor:g}"
        elif name not in LOWER_IS_BETTER and not value >= floor:
            yield f"{name} is {value:.4f}, below the required {floor:g}"


def not_worse_than_served(evidence: Evidence) -> Iterable[str]:
    """On the rows that both models predict, accuracy or rmse is not worse than the served model's, within the tolerance."""
    new, served = evidence.comparison.new, evidence.comparison.served
    if isinstance(new, ClassificationMetrics) and isinstance(served, ClassificationMetrics):
        name, value, other = "accuracy", new.accuracy, served.accuracy
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


VERDICT_RULES: tuple[Rule, ...] = (floors_are_met, not_worse_than_served, replicas_can_open)


def judge(evidence: Evidence) -> Verdict:
    """The verdict with every reason of every rule, in the order of VERDICT_RULES."""
    reasons = tuple(reason for rule in VERDICT_RULES for reason in rule(evidence))
    return Verdict(accepted=not reasons, reasons=reasons, comparison=evidence.comparison.to_dict())


def default_floors(target: npt.NDArray[Any], signature: Signature, *, built_in: bool) -> dict[str, float]:
    """The floors when none is set: better than a constant answer; for the built-in iris flowers an accuracy of 0.85."""
    if signature.task == "regression":
        return {"r2": 0.0}
    if built_in:
        return {"accuracy": IRIS_ACCURACY}
    return {"f1_score": round(baseline_f1_score(target, signature), 6)}
