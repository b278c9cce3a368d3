"""The permutation importance of each feature: the loss of the model when the feature is shuffled, within a time limit."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.pipeline import Pipeline

from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import Signature
from serve_app.inference.backends import Score
from serve_app.progress import bar
from training import evaluate
from training.fit import final_estimator

ROWS = 500
"""Most held-out rows for the importances."""

REPEATS = 5
"""Number of shuffles of each feature."""

SECONDS = 10.0
"""Default seconds for all features together."""

_INPUT = re.compile(
    r"(?:.*__)?x([0-9]+)(?:_.*)?", re.DOTALL
)  # scikit-learn's name for the output of a step from column 12: numbers__x12


@dataclass(frozen=True, slots=True)
class Importance:
    """The mean loss of accuracy or R² by feature, and its standard deviation; both have only the measured features."""

    mean: Mapping[str, float]
    deviation: Mapping[str, float]

    def by_feature(self, names: Sequence[str]) -> dict[str, float | None]:
        """The mean loss of every feature, None for one that was not measured."""
        return {name: round(self.mean[name], 6) if name in self.mean else None for name in names}


def measure(
    estimator: Any,
    score: Score,
    matrix: Matrix,
    target: npt.NDArray[Any],
    signature: Signature,
    *,
    random_state: int,
    seconds: float = SECONDS,
) -> Importance:
    """Shuffle one feature after another in the held-out rows until the time is over; calls `score` at least once.

    The order of the features is the estimator's own ranking. `score` computes the same as `estimator`, but faster.
    """
    deadline = time.monotonic() + seconds
    random = np.random.default_rng(random_state)
    rows = random.permutation(len(matrix))[:ROWS]
    shuffled, truth = matrix[rows], target[rows]  # copies
    mean: dict[str, float] = {}
    deviation: dict[str, float] = {}
    if seconds <= 0:
        return Importance(mean, deviation)
    best = _quality(score, shuffled, truth, signature)
    order = ranking(estimator, len(signature.names))
    with bar(len(order), "importance", " features", delay=0.5) as progress:
        for column in order:
            losses = [best - quality for quality in _shuffles(score, shuffled, truth, signature, column, random, deadline)]
            if len(losses) < REPEATS:
                break
            mean[signature.names[column]], deviation[signature.names[column]] = float(np.mean(losses)), float(np.std(losses))
            progress.update()
    return Importance(mean, deviation)


def ranking(estimator: Any, features: int) -> list[int]:
    """The columns of the coded matrix, sorted by their weight in the estimator's `feature_importances_` or `coef_`.

    The order of the table applies to an estimator without both, or with steps that make columns of unknown origin.
    """
    weights = np.zeros(features)
    try:
        for column, weight in zip(_origins(estimator, features), _own_weights(final_estimator(estimator)), strict=True):
            weights[column] += weight
    except (AttributeError, TypeError, ValueError, IndexError):
        return list(range(features))
    return [int(column) for column in np.argsort(-weights, kind="stable")]


def _own_weights(model: Any) -> npt.NDArray[np.float64]:
    """The weights of the columns in the final estimator; raises AttributeError when it has no weights."""
    weights = model.feature_importances_ if hasattr(model, "feature_importances_") else model.coef_
    weights = np.abs(np.asarray(weights, dtype=np.float64))
    sums: npt.NDArray[np.float64] = np.nan_to_num(weights.reshape(-1, weights.shape[-1])).sum(axis=0)
    return sums


def _origins(estimator: Any, features: int) -> list[int]:
    """For each column of the final estimator, the column of the coded matrix from which it is made; raises ValueError."""
    if not isinstance(estimator, Pipeline) or len(estimator) == 1:
        return list(range(features))
    matches = [_INPUT.fullmatch(name) for name in estimator[:-1].get_feature_names_out([f"x{at}" for at in range(features)])]
    columns = [int(match[1]) for match in matches if match]
    if len(columns) < len(matches):
        raise ValueError("a step makes columns of its own")
    return columns


def _shuffles(
    score: Score,
    matrix: Matrix,
    truth: npt.NDArray[Any],
    signature: Signature,
    column: int,
    random: np.random.Generator,
    deadline: float,
) -> Iterator[float]:
    """The quality for each shuffle of the column, until the deadline; restores the matrix at the end."""
    values = matrix[:, column].copy()
    for _ in range(REPEATS):
        if time.monotonic() >= deadline:
            break
        matrix[:, column] = random.permutation(values)
        yield _quality(score, matrix, truth, signature)
    matrix[:, column] = values


def _quality(score: Score, matrix: Matrix, truth: npt.NDArray[Any], signature: Signature) -> float:
    metrics = evaluate.measure(truth, evaluate.predictions(score(matrix), signature), signature)
    return metrics.scalars()["accuracy" if signature.task == "classification" else "r2"]
