"""Measures for a model without true answers: shares of its answers, and their difference from those of the served model.

An outlier detection and a clustering have no accuracy. The gate makes technical checks (proof, golden rows, finite scores), and
checks that the answers are not all the same and that the share of outliers is near that of the served model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.decision import outliers, predicted_positions
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Signature, Task

UNLABELLED: frozenset[Task] = frozenset({"outlier detection", "clustering"})
"""The tasks without a target."""

OUTLIER, INLIER = "outlier", "inlier"


@dataclass(frozen=True, slots=True)
class AnswerShares:
    """The share of the held-out rows by answer: `outlier` and `inlier`, or the clusters by number as text."""

    rows: int
    shares: Mapping[str, float]

    @property
    def largest(self) -> str:
        """The most frequent answer."""
        return max(self.shares, key=lambda answer: self.shares[answer])

    def scalars(self) -> dict[str, float]:
        """The share of outliers, or of the largest cluster."""
        if OUTLIER in self.shares:
            return {"outlier_share": self.shares[OUTLIER]}
        return {"largest_cluster_share": self.shares[self.largest]}

    def to_dict(self) -> dict[str, Any]:
        """Return the shares for JSON."""
        return {**self.scalars(), "rows": self.rows, "shares": dict(self.shares)}


def answer_shares(scores: Scores, signature: Signature) -> AnswerShares:
    """The shares of the answers to rows with these scores."""
    labels = answers(scores, signature)
    known = (OUTLIER, INLIER) if signature.task == "outlier detection" else signature.class_names
    return AnswerShares(len(labels), {name: float(np.mean(labels == name)) for name in known})


def answers(scores: Scores, signature: Signature) -> npt.NDArray[Any]:
    """The answer to each row as text, shape (rows,)."""
    if signature.task == "outlier detection":
        return np.where(outliers(scores), OUTLIER, INLIER)
    names = np.array(signature.class_names, dtype=object)
    named: npt.NDArray[Any] = names[predicted_positions(scores, signature)]
    return named


def agreement(first: npt.NDArray[Any], second: npt.NDArray[Any], signature: Signature) -> float:
    """The agreement of two models on the same rows.

    For outlier detections, the share of rows with the same flag. For clusterings, the adjusted Rand index, because cluster numbers
    are arbitrary: 1 for the same clusters, 0 for an agreement by chance.
    """
    if signature.task == "outlier detection":
        return float(np.mean(first == second))
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(first, second))
