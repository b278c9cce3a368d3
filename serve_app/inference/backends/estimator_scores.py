"""From a fitted scikit-learn estimator to the function that computes its scores, for every task.

The load of a model selects the function once. The function passes its rows to the estimator unchanged, so it works with coded
matrices and with data frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Label, Signature
from serve_app.errors import BundleRefused

EstimatorScores = Callable[[Any], Scores]
"""Returns the scores (see `Scores`) of rows in the form that the estimator takes."""


def estimator_scores(estimator: Any, signature: Signature) -> EstimatorScores:
    """The function from rows to the scores of this signature.

    Raises BundleRefused `signature` when the estimator does not match the signature.
    """
    if signature.outputs:
        return _of_outputs(estimator, signature)
    if signature.task == "outlier detection":
        _require(estimator, "decision_function", "score of outliers")
        return lambda rows: np.asarray(estimator.decision_function(rows), dtype=np.float64).ravel()
    if signature.task == "clustering":
        return _of_clusters(estimator, signature)
    if signature.task == "regression":
        return _of_values(estimator, signature)
    order = class_order(list(estimator.classes_), signature.classes)
    if not signature.probabilistic:
        position = _positions(estimator.classes_, order)
        return lambda rows: np.array([position[label] for label in estimator.predict(rows)], dtype=np.float64)
    _require(estimator, "predict_proba", "probabilities")
    if order == list(range(len(order))):
        return lambda rows: estimator.predict_proba(rows)
    return lambda rows: estimator.predict_proba(rows)[:, order]


def class_order(known: Sequence[Any], classes: Sequence[Label]) -> list[int]:
    """Positions in the estimator's classes, in the order of the signature's; raises BundleRefused `signature` for other classes."""
    labels = [label.item() if hasattr(label, "item") else label for label in known]
    if sorted(map(str, labels)) == sorted(map(str, classes)):
        texts = [str(label) for label in labels]
        return [texts.index(str(label)) for label in classes]
    if labels == list(range(len(classes))):  # numbers that stand for target_names, as in a legacy layout
        return labels
    raise BundleRefused("signature", "the model's classes are not those of its signature")


def classes_of_outputs(estimator: Any, count: int) -> list[list[Any]]:
    """The classes of each of `count` targets; estimators of indicators have a single array, with 0 and 1 or with the targets."""
    known = estimator.classes_
    if isinstance(known, list):
        return [list(classes) for classes in known]
    return [[0, 1]] * count


def _require(estimator: Any, method: str, what: str) -> None:
    if not hasattr(estimator, method):
        raise BundleRefused("signature", f"the model gives no {what}, but its signature says that it does")


def _positions(known: Sequence[Any], order: Sequence[int]) -> dict[Any, int]:
    """The position in the signature for each class of the estimator."""
    return {label: order.index(at) for at, label in enumerate(known)}


def _of_values(estimator: Any, signature: Signature) -> EstimatorScores:
    levels = len(signature.quantiles)
    if levels < 2:
        return lambda rows: np.asarray(estimator.predict(rows), dtype=np.float64).ravel()
    return lambda rows: np.asarray(estimator.predict(rows), dtype=np.float64).reshape(-1, levels)


def _of_clusters(estimator: Any, signature: Signature) -> EstimatorScores:
    position = {label: at for at, label in enumerate(signature.classes)}
    clusters = len(signature.classes)

    def numbers(rows: Any) -> Scores:
        return np.array([position[int(label)] for label in estimator.predict(rows)], dtype=np.float64)

    if signature.probabilistic:
        _require(estimator, "predict_proba", "probabilities")

        def with_probabilities(rows: Any) -> Scores:
            probabilities = np.asarray(estimator.predict_proba(rows), dtype=np.float64).reshape(-1, clusters)
            return np.column_stack([numbers(rows), probabilities])

        return with_probabilities
    if not signature.distance:
        return lambda rows: numbers(rows).reshape(-1, 1)
    _require(estimator, "transform", "distances")
    return lambda rows: np.column_stack([numbers(rows), np.asarray(estimator.transform(rows), dtype=np.float64).min(axis=1)])


def _of_outputs(estimator: Any, signature: Signature) -> EstimatorScores:
    outputs = signature.outputs
    if signature.task == "regression":
        return lambda rows: np.asarray(estimator.predict(rows), dtype=np.float64).reshape(-1, len(outputs))
    known = classes_of_outputs(estimator, len(outputs))
    if len(known) != len(outputs):
        raise BundleRefused("signature", f"the model predicts {len(known)} targets, but the signature names {len(outputs)}")
    orders = [class_order(classes, output.classes) for classes, output in zip(known, outputs, strict=True)]
    if all(output.probabilistic for output in outputs):
        _require(estimator, "predict_proba", "probabilities")
        return lambda rows: np.hstack(
            [block[:, order] for block, order in zip(blocks(estimator.predict_proba(rows)), orders, strict=True)]
        )
    if any(output.probabilistic for output in outputs):
        raise BundleRefused("signature", "the targets of the signature must all have probabilities, or all have no probabilities")
    positions = [_positions(classes, order) for classes, order in zip(known, orders, strict=True)]

    def labels(rows: Any) -> Scores:
        columns = np.asarray(estimator.predict(rows), dtype=object).T
        return np.array(
            [[position[label] for label in column] for position, column in zip(positions, columns, strict=True)], dtype=np.float64
        ).T

    return labels


def blocks(probabilities: Any) -> list[Scores]:
    """The probabilities of each target, shape (rows, classes), from the result of `predict_proba` for several targets.

    The result is a list with an array for each target, or the probability of 1 for each target of two classes, shape (rows,
    targets).
    """
    if isinstance(probabilities, list):
        return [np.asarray(block) for block in probabilities]
    return [np.column_stack([1.0 - column, column]) for column in np.asarray(probabilities).T]
