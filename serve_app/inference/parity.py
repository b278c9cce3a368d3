"""When two ways of computing give the same answers."""

from __future__ import annotations

import numpy as np

from serve_app.artifacts.decision import predicted_positions
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Signature

TOLERANCE = 1e-5
"""Largest difference between two backends of one model, in probability (regression: relative to the largest value)."""


def same_scores(expected: Scores, actual: Scores, signature: Signature) -> bool:
    """True when the labels are equal and no probability differs by more than TOLERANCE (regression: relative to the scale)."""
    if signature.task == "classification" and signature.probabilistic:
        same_labels = np.array_equal(predicted_positions(expected, signature), predicted_positions(actual, signature))
        return bool(same_labels and np.all(np.abs(expected - actual) <= TOLERANCE))
    if signature.task == "classification":
        return bool(np.array_equal(expected, actual))
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    return bool(np.all(np.abs(expected - actual) <= TOLERANCE * scale))
