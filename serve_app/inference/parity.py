"""The comparison of scores from two backends of one model."""

from __future__ import annotations

import numpy as np

from serve_app.artifacts.decision import outliers, predicted_positions
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Signature

TOLERANCE = 1e-5
"""Largest allowed difference between two backends of one model: of probabilities, or relative to the largest value."""


def same_scores(expected: Scores, actual: Scores, signature: Signature) -> bool:
    """Whether the labels are equal and no score differs by more than TOLERANCE, for numbers relative to the scale.

    The scale is the largest absolute value among `expected`, at least 1. Labels are classes, clusters and the flags of outliers.
    """
    if signature.outputs:
        return all(same_scores(expected[:, at], actual[:, at], part) for at, part in signature.parts)
    if signature.task == "clustering":
        return _same_clusters(expected, actual, signature)
    if signature.task == "classification" and signature.probabilistic:
        same_labels = np.array_equal(predicted_positions(expected, signature), predicted_positions(actual, signature))
        return bool(same_labels and np.all(np.abs(expected - actual) <= TOLERANCE))
    if signature.task == "classification":
        return bool(np.array_equal(expected, actual))
    if signature.task == "outlier detection" and not np.array_equal(outliers(expected), outliers(actual)):
        return False
    return _close(expected, actual)


def _same_clusters(expected: Scores, actual: Scores, signature: Signature) -> bool:
    if not np.array_equal(expected[:, 0], actual[:, 0]):
        return False
    if signature.probabilistic:
        return bool(np.all(np.abs(expected[:, 1:] - actual[:, 1:]) <= TOLERANCE))
    return _close(expected[:, 1:], actual[:, 1:])


def _close(expected: Scores, actual: Scores) -> bool:
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    return bool(np.all(np.abs(expected - actual) <= TOLERANCE * scale))
