"""Intervals and prediction sets that hold the true value for a stated share of the rows: split conformal prediction.

Some training rows are held back from the fit. The sorted errors of the model on these rows give a bound; the wanted share of new
errors is below it for every model and distribution (Vovk et al., Algorithmic Learning in a Random World, 2005). The error of a
regression is the distance to the true value; the error of a classification is 1 - the probability of the true class (Sadinle, Lei
and Wasserman, Least Ambiguous Set-Valued Classifiers, 2019).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom  # type: ignore[import-untyped]
from sklearn.model_selection import GroupShuffleSplit

from serve_app.artifacts.decision import interval, prediction_sets
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Coverage, Signature
from serve_app.errors import UsageError
from training.dataset import Dataset
from training.evaluate import ClassificationMetrics, Metrics, RegressionMetrics

SHARE = 0.25
"""Share of the training rows to hold back, unless the level needs more."""

CHANCE = 0.001
"""Probability, for a correct coverage, of a covered share below the limit at which the gate refuses a model."""


def hold_back(dataset: Dataset, level: float, random_state: int) -> Dataset:
    """The dataset with some of its training rows as calibration rows: random rows, the newest, or those of whole groups.

    Each class keeps a training row. Raises UsageError when the task has no coverage, or for too few rows.
    """
    signature = dataset.signature
    if signature.outputs or signature.task not in ("classification", "regression"):
        raise UsageError("--coverage needs one target of classes or numbers: omit it")
    rows, needed = len(dataset.train), least_rows(level)
    count = max(math.ceil(SHARE * rows), needed)
    if count > rows // 2:
        raise UsageError(
            f"--coverage {level:g} needs {needed} rows outside the fit and the test, more than half of the {rows} training rows: "
            "add rows, or lower the coverage"
        )
    calibration = _positions(dataset, count, random_state)
    if len(calibration) < needed:
        raise UsageError(
            f"--coverage {level:g} needs {needed} rows to find its bound, but only {len(calibration)} can be held back: add rows"
        )
    kept = np.setdiff1d(np.arange(rows), calibration)
    groups = None if dataset.groups is None else dataset.groups[kept]
    return replace(
        dataset,
        train=dataset.train.iloc[kept].reset_index(drop=True),
        train_target=dataset.train_target[kept],
        groups=groups,
        calibration=dataset.train.iloc[calibration].reset_index(drop=True),
        calibration_target=dataset.train_target[calibration],
        remarks=(*dataset.remarks, f"the fit does not use {len(calibration)} rows, which give the bound of the coverage"),
    )


def least_rows(level: float) -> int:
    """The fewest calibration rows that give a bound for this level."""
    return math.ceil(level / (1.0 - level) - 1e-9)


def with_coverage(signature: Signature, scores: Scores, target: npt.NDArray[Any], level: float) -> Signature:
    """The signature with the bound from these scores of calibration rows; raises UsageError without probabilities."""
    if signature.task == "classification" and not signature.probabilistic:
        raise UsageError("--coverage needs probabilities, which the estimator does not have: use another --estimator")
    return replace(signature, coverage=Coverage(level, conformal_bound(_errors(scores, target, signature), level)))


def conformal_bound(errors: npt.NDArray[np.float64], level: float) -> float:
    """The error at rank ceil((rows + 1) * level): a new error is at most this large with a probability of at least `level`."""
    rank = min(len(errors), math.ceil((len(errors) + 1) * level - 1e-9))
    return float(np.sort(errors)[rank - 1])


def covered(scores: Scores, target: npt.NDArray[Any], signature: Signature) -> npt.NDArray[np.bool_]:
    """Whether the interval or the prediction set of each row holds the true value, shape (rows,)."""
    assert signature.coverage is not None
    if signature.task == "regression":
        low, high = interval(scores, signature.coverage)
        inside: npt.NDArray[np.bool_] = (low <= target) & (target <= high)
        return inside
    members = prediction_sets(scores, signature, signature.coverage)
    found: npt.NDArray[np.bool_] = members[np.arange(len(target)), _true_positions(target, signature)]
    return found


def least_share(level: float, rows: int, calibration_rows: int) -> float:
    """The share of `rows` that a correct coverage reaches with a probability of 1 - CHANCE.

    The calibration rows are a sample, too, so the number of covered rows has a beta-binomial distribution.
    """
    rank = min(calibration_rows, math.ceil((calibration_rows + 1) * level - 1e-9))
    return float(betabinom.ppf(CHANCE, rows, rank, calibration_rows + 1 - rank)) / rows


def measured(metrics: Metrics, scores: Scores, target: npt.NDArray[Any], signature: Signature) -> Metrics:
    """The metrics with the share of covered rows, and the width of the intervals or the mean size of the sets.

    The metrics stay the same for a model without a coverage.
    """
    if signature.coverage is None:
        return metrics
    share = float(np.mean(covered(scores, target, signature)))
    if isinstance(metrics, RegressionMetrics):
        return replace(metrics, coverage=share, interval_width=2.0 * signature.coverage.bound)
    assert isinstance(metrics, ClassificationMetrics)
    size = float(prediction_sets(scores, signature, signature.coverage).sum(axis=1).mean())
    return replace(metrics, coverage=share, set_size=size)


def _errors(scores: Scores, target: npt.NDArray[Any], signature: Signature) -> npt.NDArray[np.float64]:
    if signature.task == "regression":
        distances: npt.NDArray[np.float64] = np.abs(np.asarray(target, dtype=np.float64) - scores)
        return distances
    own = scores[np.arange(len(target)), _true_positions(target, signature)]
    return np.clip(1.0 - np.asarray(own, dtype=np.float64), 0.0, 1.0)


def _true_positions(target: npt.NDArray[Any], signature: Signature) -> npt.NDArray[np.intp]:
    order = {str(label): position for position, label in enumerate(signature.classes)}
    return np.array([order[str(label)] for label in target.tolist()], dtype=np.intp)


def _positions(dataset: Dataset, count: int, random_state: int) -> npt.NDArray[np.intp]:
    """The positions of the calibration rows among the training rows, ascending."""
    rows = len(dataset.train)
    if dataset.by_time:
        chosen = np.arange(rows - count, rows)
    elif dataset.groups is not None:
        if len(np.unique(dataset.groups)) < 2:
            raise UsageError("--coverage with --group-column needs two groups besides the held-out ones: add rows")
        splitter = GroupShuffleSplit(1, test_size=count / rows, random_state=random_state)
        _, chosen = next(splitter.split(np.zeros(rows), groups=dataset.groups))
    else:
        chosen = np.random.default_rng(random_state).permutation(rows)[:count]
    if dataset.signature.task == "classification":
        chosen = _leave_classes(dataset, np.sort(chosen))
    return np.sort(chosen)


def _leave_classes(dataset: Dataset, chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The chosen rows without the first row of each class that would lose its last training row."""
    labels = np.array([str(label) for label in dataset.train_target.tolist()])
    left = set(np.delete(labels, chosen).tolist())
    missing = [label for label in np.unique(labels[chosen]).tolist() if label not in left]
    if missing and (dataset.by_time or dataset.groups is not None):
        raise UsageError(f"--coverage holds back all rows of the class '{missing[0]}': add rows, or omit --coverage")
    first = [int(chosen[labels[chosen] == label][0]) for label in missing]
    return np.setdiff1d(chosen, first)
