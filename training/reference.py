"""The distribution of the training rows in the manifest, the reference for drift while serving."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.artifacts.signature import Signature

BINS = 10
"""Number of bins of a histogram, unless values repeat."""


def reference(frame: pd.DataFrame, target: npt.NDArray[Any], signature: Signature) -> dict[str, Any]:
    """Histograms of the features, shares of the classes (or a histogram of a regression's target), over the training rows.

    `target` has the shape (rows,), or (rows, targets). For an outlier detection it holds the scores, for a clustering the clusters.

    The `edges` of a number are inner quantiles. `counts` has one more entry: the first counts values below the first edge, the last
    counts values at or above the last edge. Categories and booleans are counted by value, texts by their number of characters.
    """
    features = {feature.name: _feature(feature.kind, frame[feature.name]) for feature in signature.features if feature.is_compared}
    document: dict[str, Any] = {"rows": len(frame), "features": features}
    if signature.outputs:
        parts = enumerate(part for _, part in signature.parts)
        return {**document, "outputs": {part.target: _answers(target[:, at], part) for at, part in parts}}
    return {**document, **_answers(target, signature)}


def _answers(target: npt.NDArray[Any], signature: Signature) -> dict[str, Any]:
    """The distribution of one target, or of the answers for a model without a target."""
    if signature.task in ("regression", "outlier detection"):
        return {"target": _numbers(np.asarray(target, dtype=np.float64))}
    texts = np.array([str(label) for label in target.tolist()])
    return {"classes": {str(label): float(np.mean(texts == str(label))) for label in signature.classes}}


def _feature(kind: str, column: pd.Series[Any]) -> dict[str, Any]:
    filled = column.dropna()
    missing = len(column) - len(filled)
    if kind == "text":
        return {"kind": kind, **_numbers(filled.map(len).to_numpy(dtype=np.float64)), "missing": missing}
    if kind in ("number", "date"):
        return {"kind": kind, **_numbers(filled.to_numpy(dtype=np.float64)), "missing": missing}
    if kind == "boolean":
        true = int(filled.astype(bool).sum())
        return {"kind": kind, "counts": {"false": len(filled) - true, "true": true}, "missing": missing}
    return {"kind": kind, "counts": {str(k): int(v) for k, v in sorted(filled.value_counts().items())}, "missing": missing}


def _numbers(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}
