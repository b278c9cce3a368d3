"""The verdict on a candidate: rules over one record of evidence.

A new rule needs one function, and its name in VERDICT_RULES.
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
from training.evaluate import AnyMetrics, ClassificationMetrics, RegressionMetrics, SeveralMetrics, baseline_f1_score
from training.unlabelled import INLIER, OUTLIER, UNLABELLED, AnswerShares

LOWER_IS_BETTER = frozenset(
    {"mae", "rmse", "log_loss", "brier", "interval_width", "set_size", "outlier_share", "largest_cluster_share"}
)
"""Metrics whose floor is a ceiling."""

MAX_SHARE_CHANGE = 0.1
"""Largest difference of the share of outliers from that of the served model on the same rows."""

IRIS_ACCURACY = 0.85
"""The accuracy that a model of the built-in iris flowers must reach."""

_ROUNDING = 1e-12  # equal metrics may differ by this much
_BARELY = 1e-6  # a metric must exceed that of a constant answer by more than this


@dataclass(frozen=True, slots=True)
class CoverageEvidence:
    """The coverage of `level` on the held-out rows: the covered share, and the smallest share that chance explains."""

    level: float
    share: float
    rows: int
    least: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The facts for a verdict.

    `metrics` are the candidate's on all held-out rows; `floors` by metric; `tolerance` is the accuracy that may be lost against the
    served model, or the share by which rmse may grow. A floor in `constant` is what a constant answer reaches: the metric must be
    better. `compared_by` is what two classifiers are compared by. `never_predicted` are classes that the model does not predict,
    with their held-out rows. `servable` is whether replicas with the trainer's load policy open the candidate: it has an ONNX form
    that is proven equal or is a booster in the format of its library, or pickles are allowed. `coverage` is None for a model
    without one. `adopted`: the model was fitted elsewhere, so that flags of training are no remedy.
    """

    metrics: AnyMetrics
    comparison: Comparison
    floors: Mapping[str, float]
    tolerance: float
    constant: Collection[str] = ()
    compared_by: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    never_predicted: Mapping[str, int] = field(default_factory=dict)
    servable: bool = True
    coverage: CoverageEvidence | None = None
    adopted: bool = False

    @property
    def rows(self) -> str:
        """The name of the rows on which the candidate was measured."""
        return "rows of the sample" if self.adopted else "held-out rows"


Rule = Callable[[Evidence], Iterable[str]]
"""Yields the reasons to refuse the candidate; none when the rule holds."""


def floors_are_met(evidence: Evidence) -> Iterable[str]:
    """Every metric with a floor reaches it; errors and losses do not exceed it. A NaN or unknown metric fails."""
    scalars = evidence.metrics.scalars()
    for name, floor in evidence.floors.items():
        value = scalars.get(name, math.nan)
        if name not in scalars:
            yield f"{name} is unknown, because the model has no probabilities or the {evidence.rows} have only one class"
        elif _base(name, evidence.metrics) in LOWER_IS_BETTER and not value <= floor:
            yield f"{name} is {value:.4f}, above the allowed {floor:g}"
        elif name in evidence.constant and not value > floor + _BARELY:
            yield f"{name} is {value:.4f}, not better than the {floor:.4f} of a constant answer"
        elif _base(name, evidence.metrics) not in LOWER_IS_BETTER and not value >= floor:
            yield f"{name} is {value:.4f}, below the required {floor:g}"


def _base(name: str, metrics: AnyMetrics) -> str:
    """The name of a metric without the name of a target."""
    targets = metrics.per_target if isinstance(metrics, SeveralMetrics) else {}
    return next((name.removesuffix(f"_{target}") for target in targets if name.endswith(f"_{target}")), name)


def every_class_is_predicted(evidence: Evidence) -> Iterable[str]:
    """The model predicts every class at least once."""
    for label, rows in evidence.never_predicted.items():
        yield (
            f"class '{label}' is never predicted, although {rows} of {evidence.metrics.rows} {evidence.rows} have it "
            "(--allow-unpredicted-classes accepts that)"
        )


def not_worse_than_served(evidence: Evidence) -> Iterable[str]:
    """On the rows that both models predict, the accuracy or rmse of the new model is not worse, within the tolerance.

    With a threshold, the rule compares the balanced accuracy, because a threshold finds more of a rare class at the cost of
    accuracy.
    """
    new, served = evidence.comparison.new, evidence.comparison.served
    if isinstance(new, ClassificationMetrics) and isinstance(served, ClassificationMetrics):
        name: str = evidence.compared_by
        value, other = (metrics.scalars()[name] for metrics in (new, served))
        worse = value < other - evidence.tolerance - _ROUNDING
    elif isinstance(new, SeveralMetrics) and isinstance(served, SeveralMetrics):
        name = "the mean accuracy" if "accuracy" in new.means else "the mean r2"
        value, other = (metrics.means[name.rpartition(" ")[2]] for metrics in (new, served))
        worse = value < other - evidence.tolerance - _ROUNDING
    elif isinstance(new, RegressionMetrics) and isinstance(served, RegressionMetrics):
        name, value, other = "rmse", new.rmse, served.rmse
        worse = value > other * (1.0 + evidence.tolerance) + _ROUNDING
    else:
        return
    if worse:
        version = evidence.comparison.version
        yield f"{name} is {value:.4f}, worse than the {other:.4f} of the served version {version} on the same rows"


def replicas_can_open(evidence: Evidence) -> Iterable[str]:
    """The load policy of trainer and replicas allows the candidate."""
    if not evidence.servable:
        remedy = "choose another estimator, or set IRIS_ALLOW_JOBLIB=true for training and serving"
        if evidence.adopted:
            remedy = (
                "fit it again with steps that have an ONNX form (--dry-run reports the other steps), "
                "or set IRIS_ALLOW_JOBLIB=true for adopting and serving"
            )
        yield (
            "the model has no ONNX form that is proven equal, and with IRIS_ALLOW_JOBLIB=false, replicas refuse models that "
            f"scikit-learn computes; {remedy}"
        )


def coverage_is_reached(evidence: Evidence) -> Iterable[str]:
    """Intervals or prediction sets hold the true value in the promised share of rows, within the limits of chance."""
    coverage = evidence.coverage
    if coverage is not None and coverage.share < coverage.least:
        yield (
            f"the coverage is {coverage.share:.4f} on {coverage.rows} held-out rows, below {coverage.least:.4f}, the "
            f"lowest share that chance explains for {coverage.level:g}: these rows differ from the calibration rows"
        )


def answers_differ(evidence: Evidence) -> Iterable[str]:
    """A model without labels does not give the same answer to all rows, unless the answer is `inlier`."""
    shares = evidence.metrics
    if isinstance(shares, AnswerShares) and len(shares.shares) > 1 and shares.shares[shares.largest] == 1.0:
        if shares.largest == OUTLIER:
            yield f"all {shares.rows} {evidence.rows} are outliers"
        elif shares.largest != INLIER:
            yield f"all {shares.rows} {evidence.rows} are in the cluster {shares.largest}"


def outliers_stay_as_rare(evidence: Evidence) -> Iterable[str]:
    """The share of outliers is near that of the served model on the same rows, because no label shows which of them is right."""
    new, served = evidence.comparison.new, evidence.comparison.served
    if isinstance(new, AnswerShares) and isinstance(served, AnswerShares) and OUTLIER in new.shares:
        share, other = new.shares[OUTLIER], served.shares[OUTLIER]
        if abs(share - other) > MAX_SHARE_CHANGE:
            yield (
                f"{share:.4f} of the {evidence.rows} are outliers, and {other:.4f} for the served version "
                f"{evidence.comparison.version}: the difference is more than {MAX_SHARE_CHANGE:g} (--force accepts that)"
            )


VERDICT_RULES: tuple[Rule, ...] = (
    floors_are_met,
    every_class_is_predicted,
    not_worse_than_served,
    replicas_can_open,
    coverage_is_reached,
    answers_differ,
    outliers_stay_as_rare,
)


def judge(evidence: Evidence) -> Verdict:
    """The verdict with every reason of every rule, in the order of VERDICT_RULES."""
    reasons = tuple(reason for rule in VERDICT_RULES for reason in rule(evidence))
    return Verdict(accepted=not reasons, reasons=reasons, comparison=evidence.comparison.to_dict())


def default_floors(target: npt.NDArray[Any], signature: Signature, *, built_in: bool) -> dict[str, float]:
    """The default floors: the metrics of a constant answer on the held-out rows; an accuracy of 0.85 for the built-in iris.

    With a threshold, the F1 has no floor, because a threshold finds more of one class at the cost of the other.
    """
    if signature.task in UNLABELLED:
        return {}
    if signature.outputs:
        parts = enumerate(part for _, part in signature.parts)
        by_target = {part.target: default_floors(target[:, at], part, built_in=False) for at, part in parts}
        return {f"{metric}_{name}": floor for name, own in by_target.items() for metric, floor in own.items()}
    if signature.task == "regression":
        return {"r2": 0.0}
    if built_in:
        return {"accuracy": IRIS_ACCURACY}
    floors = {"balanced_accuracy": round(1.0 / len(np.unique(target.astype(str))), 6)}
    if signature.threshold is None:
        floors["f1_score"] = round(baseline_f1_score(target, signature), 6)
    return floors


def constant_floors(signature: Signature, own: Collection[str], *, built_in: bool) -> frozenset[str]:
    """The metrics that must be better than those of a constant answer: the default floors, except floors from flags."""
    if signature.task in UNLABELLED:
        return frozenset()
    if signature.outputs:
        names = [f"{name}_{part.target}" for _, part in signature.parts for name in constant_floors(part, (), built_in=False)]
        return frozenset(names) - frozenset(own)
    if signature.task == "regression":
        return frozenset({"r2"}) - frozenset(own)
    if built_in:
        return frozenset()
    return frozenset({"f1_score", "balanced_accuracy"}) - frozenset(own)
