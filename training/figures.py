"""The figures of a run: which predictions are wrong, and which features matter most."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import Signature
from serve_app.inference.backends import Score
from serve_app.printable import printable
from training import evaluate
from training.evaluate import ClassificationMetrics

IMPORTANCE_ROWS = 500
"""Held-out rows on which importances are measured, at most."""

IMPORTANCE_REPEATS = 5
"""Times that each feature is shuffled."""


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[Any]) -> bytes:
    """The confusion matrix as PNG; rows are true classes, columns predicted ones."""
    counts = np.array(matrix)
    size = min(12.0, 3.0 + 0.6 * len(classes))
    figure, axes = _axes(size, size)
    axes.imshow(counts, cmap="Blues")
    labels = [_label(label, 20) for label in classes]
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(labels) <= 30:
        for row, column in np.ndindex(*counts.shape):
            dark = counts[row, column] > counts.max() / 2
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color="white" if dark else "black")
    return _png(figure)


def residuals(target: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> bytes:
    """Predicted against true values as PNG."""
    figure, axes = _axes(4.5, 4.5)
    axes.scatter(target, predicted, s=12, alpha=0.6)
    ends = [float(min(target.min(), predicted.min())), float(max(target.max(), predicted.max()))]
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    return _png(figure)


def importance(
    estimator: Any, score: Score, matrix: Matrix, target: npt.NDArray[Any], signature: Signature, *, random_state: int
) -> tuple[bytes, dict[str, float]]:
    """The loss of accuracy or R² when one feature is shuffled over the held-out rows: a PNG, and the mean loss by feature.

    `score` computes the same as `estimator`, and faster.
    """
    from sklearn.inspection import permutation_importance

    def quality(_: Any, rows: Matrix, truth: npt.NDArray[Any]) -> float:
        metrics = evaluate.measure(truth, evaluate.predictions(score(rows), signature), signature)
        return metrics.accuracy if isinstance(metrics, ClassificationMetrics) else metrics.r2

    rows = np.random.default_rng(random_state).permutation(len(matrix))[:IMPORTANCE_ROWS]
    importances = permutation_importance(
        estimator, matrix[rows], target[rows], scoring=quality, n_repeats=IMPORTANCE_REPEATS, random_state=random_state
    )
    order = np.argsort(importances.importances_mean)[-20:]
    figure, axes = _axes(5.5, 1.2 + 0.3 * len(order))
    axes.barh(range(len(order)), importances.importances_mean[order], xerr=importances.importances_std[order], color="#4c72b0")
    axes.set_yticks(range(len(order)), [_label(signature.names[at], 30) for at in order], parse_math=False)
    axes.set_xlabel("loss of accuracy" if signature.task == "classification" else "loss of R²")
    means = {name: round(float(value), 6) for name, value in zip(signature.names, importances.importances_mean, strict=True)}
    return _png(figure), means


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _label(name: object, length: int) -> str:
    """A name of the table as a label. It is drawn with `parse_math=False`: a `$` in it is a dollar sign and begins no formula."""
    return printable(str(name)[:length])


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # it draws a box; the card has the name as text
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
