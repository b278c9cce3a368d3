"""From probabilities to the predicted class: the highest one, or the threshold of the signature.

This is the one place that decides; training, serving, scoring and telemetry call it, so that they answer the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Signature

SLACK = 1e-6
"""A probability so little below the threshold reaches it: backends compute 0.3 as 0.29999998 or 0.30000001, and a forest of ten
trees gives it often."""


def predicted_positions(scores: Scores, signature: Signature) -> npt.NDArray[np.intp]:
    """The position of the predicted class of each row, shape (rows,); `scores` are those of a classification (see `Scores`)."""
    if not signature.probabilistic:
        return scores.astype(np.intp)
    bound = decision_bound(signature)
    if bound is None:
        best: npt.NDArray[np.intp] = scores.argmax(axis=1)
        return best
    position = signature.positive_position
    return np.where(scores[:, position] >= bound, position, 1 - position).astype(np.intp, copy=False)


def decision_bound(signature: Signature) -> float | None:
    """The smallest probability of the positive class that predicts it; None when the highest probability decides."""
    return None if signature.threshold is None else signature.threshold - SLACK
