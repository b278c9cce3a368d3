"""From scores to answers: the predicted class (the highest probability, or by a threshold), outliers, intervals, sets of classes.

Training, serving, scoring and telemetry all use these functions, so their answers agree.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Coverage, Signature

SLACK = 1e-6
"""Tolerance of the threshold: backends compute 0.3 as 0.29999998 or 0.30000001, and a forest of ten trees often gives 0.3."""


def predicted_positions(scores: Scores, signature: Signature) -> npt.NDArray[np.intp]:
    """The position of the predicted class or cluster of each row, shape (rows,).

    `scores` are those of a classification of one target, or of a clustering (see `Scores`).
    """
    if signature.task == "clustering":
        return scores[:, 0].astype(np.intp)
    if not signature.probabilistic:
        return scores.astype(np.intp)
    bound = decision_bound(signature)
    if bound is None:
        best: npt.NDArray[np.intp] = scores.argmax(axis=1)
        return best
    position = signature.positive_position
    return np.where(scores[:, position] >= bound, position, 1 - position).astype(np.intp, copy=False)


def decision_bound(signature: Signature) -> float | None:
    """The smallest probability for which the positive class is predicted; None when the highest probability decides."""
    return None if signature.threshold is None else signature.threshold - SLACK


def outliers(scores: Scores) -> npt.NDArray[np.bool_]:
    """Whether each row is an outlier, shape (rows,); `scores` are those of an outlier detection.

    The outlier detectors of scikit-learn predict -1 by the same rule.
    """
    return scores < 0


def interval(scores: Scores, coverage: Coverage) -> tuple[Scores, Scores]:
    """The lower and the upper ends of the intervals around the values of a regression, each of shape (rows,)."""
    return scores - coverage.bound, scores + coverage.bound


def prediction_sets(scores: Scores, signature: Signature, coverage: Coverage) -> npt.NDArray[np.bool_]:
    """Whether each class is in the prediction set of each row, shape (rows, classes); the predicted class always is."""
    members: npt.NDArray[np.bool_] = scores >= 1.0 - coverage.bound - SLACK
    members[np.arange(len(scores)), predicted_positions(scores, signature)] = True
    return members


def single_value(signature: Signature) -> int | None:
    """The column of a regression's scores that holds the prediction: the median, or the only value; None without a median."""
    if len(signature.quantiles) < 2:
        return 0
    return signature.quantiles.index(0.5) if 0.5 in signature.quantiles else None


def outcomes(scores: Scores, signature: Signature) -> npt.NDArray[np.float64]:
    """One number for the answer of each row, shape (rows,); shape (rows, targets) for several targets.

    The number is the value of a regression (the median of quantiles, or the level nearest to it), the score of an outlier
    detection, or the position of the predicted class or cluster.
    """
    if signature.outputs:
        return np.column_stack([outcomes(scores[:, at], part) for at, part in signature.parts])
    if signature.task in ("classification", "clustering"):
        return predicted_positions(scores, signature).astype(np.float64)
    if len(signature.quantiles) > 1:
        scores = scores[:, int(np.argmin(np.abs(np.array(signature.quantiles) - 0.5)))]
    return scores.ravel().astype(np.float64)
