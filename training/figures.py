"""The figures of a run: confusion matrix or residuals, and the importance of features."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.signature import Signature
from serve_app.printable import printable
from training.importance import Importance

SHOWN = 20
"""Most features in the figure of importances."""


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[Any]) -> bytes:
    """The confusion matrix as PNG; rows are true classes, columns are predicted classes."""
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
    """A plot of predicted against true values as PNG."""
    figure, axes = _axes(4.5, 4.5)
    axes.scatter(target, predicted, s=12, alpha=0.6)
    ends = [float(min(target.min(), predicted.min())), float(max(target.max(), predicted.max()))]
    axes.plot(ends, ends, color="grey", linewidth=1)
    axes.set_xlabel("true")
    axes.set_ylabel("predicted")
    return _png(figure)


def importances(importance: Importance, signature: Signature) -> bytes:
    """The most important of the measured features, at most SHOWN, as PNG."""
    names = sorted(importance.mean, key=lambda name: importance.mean[name])[-SHOWN:]
    figure, axes = _axes(5.5, 1.2 + 0.3 * len(names))
    means, deviations = [importance.mean[name] for name in names], [importance.deviation[name] for name in names]
    axes.barh(range(len(names)), means, xerr=deviations, color="#4c72b0")
    axes.set_yticks(range(len(names)), [_label(name, 30) for name in names], parse_math=False)
    axes.set_xlabel("loss of accuracy" if signature.task == "classification" else "loss of R²")
    return _png(figure)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # pyplot would need a display and keep global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _label(name: object, length: int) -> str:
    """A name from the table as a label. It is drawn with `parse_math=False`, because a `$` in it must not start a formula."""
    return printable(str(name)[:length])


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # it draws a box; the card has the name as text
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
