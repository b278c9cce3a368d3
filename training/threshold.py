"""The threshold of a classifier of two classes: a stated value, or the value with the lowest cost on rows outside the fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.decision import SLACK
from serve_app.artifacts.signature import Signature, label_text
from serve_app.errors import UsageError
from training import calibration, fit, search
from training.dataset import Dataset
from training.train_options import CalibrationMethod, ThresholdRule


def check(signature: Signature, rule: ThresholdRule) -> Signature:
    """The signature with the positive class of the rule and a preliminary threshold.

    Raises UsageError for a regression, for more than two classes, and for an unknown positive class.
    """
    if len(signature.classes) != 2:
        what = "a regression" if signature.task == "regression" else f"{len(signature.classes)} classes"
        what = "several targets" if signature.outputs else what
        raise UsageError(f"a threshold needs a target with two classes, but '{signature.target}' has {what}: omit the threshold")
    positive = signature.classes[1]
    if rule.positive is not None:
        texts = {label_text(label): label for label in signature.classes} | {str(label): label for label in signature.classes}
        if rule.positive not in texts:
            first, second = signature.class_names
            raise UsageError(f"--positive-class '{rule.positive}' is not a class of '{signature.target}': use {first} or {second}")
        positive = texts[rule.positive]
    return replace(signature, threshold=rule.threshold or 0.5, positive=positive)


def decide(
    dataset: Dataset,
    rule: ThresholdRule,
    estimator: str,
    params: Mapping[str, Any],
    *,
    random_state: int,
    calibrate: CalibrationMethod | None = None,
) -> tuple[Signature, dict[str, Any]]:
    """The signature with the threshold, and the record of the decision for the manifest. Raises UsageError.

    With costs, a cross-validation predicts the training rows; the held-out rows are not used. With `calibrate`, the probabilities
    are corrected as in the published model.
    """
    signature = check(dataset.signature, rule)
    label = signature.classes[signature.positive_position]
    if rule.costs is None:
        return signature, {"positive": label, "threshold": rule.threshold}
    truth = np.array([str(value) == str(label) for value in dataset.train_target.tolist()])
    probabilities = _cross_validated(dataset, signature, truth, estimator, params, random_state, calibrate)
    predicted = ~np.isnan(probabilities)
    threshold, cost = cheapest(probabilities[predicted], truth[predicted], *rule.costs)
    record = {
        "positive": label,
        "threshold": threshold,
        "cost_false_positive": rule.costs[0],
        "cost_false_negative": rule.costs[1],
        "cost_per_row": cost / len(truth),
        "rows": len(truth),
    }
    return replace(signature, threshold=threshold), record


def cheapest(
    probabilities: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_], false_positive: float, false_negative: float
) -> tuple[float, float]:
    """The threshold with the lowest cost over these rows, and that cost.

    The threshold lies half-way between two probabilities, so it equals no probability. Of thresholds with the same cost, the
    function takes the nearest to the threshold for calibrated probabilities, `false_positive / (false_positive + false_negative)`.
    """
    values, at = np.unique(probabilities, return_inverse=True)
    positives = np.bincount(at, weights=truth, minlength=len(values))
    negatives = np.bincount(at, weights=~truth, minlength=len(values))
    # Entry k: rows from the k-th value on are positive. Last entry: no row is positive.
    missed = np.concatenate([[0.0], np.cumsum(positives)])
    alarms = np.concatenate([np.cumsum(negatives[::-1])[::-1], [0.0]])
    costs = alarms * false_positive + missed * false_negative
    edges = np.concatenate([[values[0] / 2], (values[:-1] + values[1:]) / 2, [(values[-1] + 1.0) / 2]])
    usable = edges > np.concatenate([[0.0], values])  # no threshold excludes the probability 1 or includes the probability 0
    calibrated = false_positive / (false_positive + false_negative)
    best = usable & np.isclose(costs, costs[usable].min(), rtol=1e-12, atol=0.0)
    position = int(np.flatnonzero(best)[np.abs(edges[best] - calibrated).argmin()])
    threshold = float(edges[position])
    rounded = round(threshold, 6)
    low = values[position - 1] if position else 0.0
    high = values[position] if position < len(values) else 1.0
    return (rounded if low + 2 * SLACK < rounded < high else threshold), float(costs[position])


def _cross_validated(
    dataset: Dataset,
    signature: Signature,
    truth: npt.NDArray[np.bool_],
    estimator: str,
    params: Mapping[str, Any],
    random_state: int,
    calibrate: CalibrationMethod | None,
) -> npt.NDArray[np.float64]:
    """The probability of the positive class for each training row, from a model that was fitted without the row.

    NaN for the oldest rows of a dataset in time order, because there are no earlier rows for a fit.
    """
    if min(int(truth.sum()), int((~truth).sum())) < 2:
        raise UsageError("costs need at least two rows of each class besides the held-out ones: add rows, or use --threshold")
    probabilities = np.full(len(truth), np.nan)
    label = str(signature.classes[signature.positive_position])
    for train, test in search.folds(dataset, random_state):
        model = fit.build(signature, estimator, params, random_state=random_state, calibrate=calibrate)
        groups = None if dataset.groups is None else dataset.groups[train]
        part = replace(dataset, train=dataset.train.iloc[train], train_target=dataset.train_target[train], groups=groups)
        with calibration.cross_validation(fit.final_estimator(model), part, random_state):
            fit.fit(model, part.train, part.train_target)
        if not hasattr(model, "predict_proba"):
            raise UsageError(f"a threshold needs probabilities, which {estimator} does not have: use another --estimator")
        column = [str(known) for known in model.classes_].index(label)
        probabilities[test] = model.predict_proba(dataset.train.iloc[test])[:, column]
    return probabilities
