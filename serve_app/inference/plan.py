"""Scikit-learn's numbers without scikit-learn's per-call work.

One row through a forest costs milliseconds of validation, joblib and warning filters around microseconds of arithmetic. A
plan repeats that arithmetic step by step on the fitted attributes; it is used only after it gave bit for bit the same
numbers as the estimator on sample rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit  # type: ignore[import-untyped]
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from serve_app.artifacts.matrix import Matrix, Scores

Step = Callable[[Any], Any]


def compile_plan(estimator: Any, probe: Callable[[Matrix], Scores], sample: Matrix) -> Callable[[Matrix], Scores] | None:
    """A faster function equal to `probe` on `sample`, shape (rows, features), and on each of its rows; None when there is none."""
    try:
        steps = _steps(estimator)
    except AttributeError:  # never fitted
        return None
    if steps is None:
        return None

    def run(matrix: Matrix) -> Scores:
        values: Any = matrix
        for step in steps:
            values = step(values)
        scores: Scores = values
        return scores

    try:
        same = np.array_equal(run(sample), probe(sample), equal_nan=True) and all(
            np.array_equal(run(sample[i : i + 1]), probe(sample[i : i + 1]), equal_nan=True) for i in range(min(len(sample), 16))
        )
    except Exception:  # whatever goes wrong in a shortcut, the way round it is still there
        return None
    return run if same else None


def _steps(estimator: Any) -> list[Step] | None:
    steps: list[Step] = []
    parts = [part for _, part in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    for part in parts:
        step = _step(part)
        if step is None:
            return None
        steps.append(step)
    return steps


def _step(part: Any) -> Step | None:
    kind = type(part)  # exactly these: a subclass may compute something else
    if kind is StandardScaler and part.with_mean and part.with_std:
        mean, scale = part.mean_, part.scale_
        return lambda x: (x - mean) / scale
    if kind is LogisticRegression:
        weights, bias = part.coef_.T, part.intercept_
        return (lambda x: _binary(x @ weights + bias)) if part.coef_.shape[0] == 1 else (lambda x: _softmax(x @ weights + bias))
    if kind in (LinearRegression, Ridge) and part.coef_.ndim == 1:
        line, offset = part.coef_, part.intercept_
        return lambda x: x @ line + offset
    if kind in (RandomForestClassifier, ExtraTreesClassifier) and part.n_outputs_ == 1:
        return _forest([tree.tree_.predict for tree in part.estimators_])
    if kind in (RandomForestRegressor, ExtraTreesRegressor) and part.n_outputs_ == 1:
        mean_of = _forest([tree.tree_.predict for tree in part.estimators_])
        return lambda x: mean_of(x)[:, 0]
    return None


def _forest(trees: list[Callable[[Any], Any]]) -> Step:
    def mean(x: Matrix) -> Scores:
        narrow = np.ascontiguousarray(x, dtype=np.float32)  # what the trees compare
        total = trees[0](narrow).copy()
        for tree in trees[1:]:
            total += tree(narrow)
        total /= len(trees)
        scores: Scores = total
        return scores

    return mean


def _softmax(decision: Matrix) -> Matrix:
    decision -= decision.max(axis=1, keepdims=True)
    np.exp(decision, out=decision)
    decision /= decision.sum(axis=1, keepdims=True)
    return decision


def _binary(decision: Matrix) -> Matrix:
    positive = expit(decision[:, 0])
    return np.stack([1.0 - positive, positive], axis=1)
