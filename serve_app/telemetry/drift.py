"""Drift: the difference between the rows of requests and the training rows.

The reference in a bundle holds the distribution of the training rows over bins. A replica counts the rows of requests in the same
bins. Prometheus adds up the counts of all replicas and compares the sum with the reference
(monitoring/base/rules/recording.yaml, group `iris-drift`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import Feature, Signature, label_text

MAX_FEATURES = 100
"""Most features that are counted, the first of a wider table, so that the number of series stays bounded."""
MAX_BINS = 20
"""Most categories or classes counted by name; the rarest share the bin `other`."""

MAX_TARGETS = 20
"""Most targets that are counted."""

OTHER = "other"
MISSING = "missing"

Positions = npt.NDArray[np.intp]
Binner = Callable[[Matrix], Positions]
"""From the values of a column, shape (rows,), to the positions of their bins, shape (rows,)."""


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins of one column: its name and position, the labels of the bins, their shares at training, and the binner."""

    name: str
    column: int
    labels: tuple[str, ...]
    expected: tuple[float, ...]
    binner: Binner

    def count(self, values: Matrix) -> npt.NDArray[np.float64]:
        """The number of values in each bin, shape (bins,), for the values of the column, shape (rows,)."""
        return np.bincount(self.binner(values), minlength=len(self.labels)).astype(np.float64)


def stability_index(rows: npt.NDArray[np.float64], expected: Sequence[float]) -> float:
    """The population stability index of rows per bin, shape (bins,), against the expected shares: 0 for the same distribution.

    The function adds half a row to each bin, like the reference and the recording rules.
    """
    shares, reference = (rows + 0.5) / (rows.sum() + 0.5 * len(rows)), np.array(expected)
    return float(np.sum((shares - reference) * np.log(shares / reference)))


@dataclass(frozen=True, slots=True)
class Reference:
    """The distribution of the training table: its number of rows, the bins of the features, and the bins of the target."""

    rows: int
    features: tuple[Bins, ...]
    predictions: Bins | None


def read_reference(raw: Mapping[str, Any] | None, signature: Signature) -> Reference | None:
    """The reference of a manifest; None when the manifest has no reference. Parts that cannot be read are left out."""
    if raw is None:
        return None
    columns = raw.get("features")
    features = []
    for column, feature in enumerate(signature.features[:MAX_FEATURES]):
        try:
            features.append(_feature(feature, column, columns[feature.name]))  # type: ignore[index]
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    try:
        predictions = _predictions(raw, signature)
    except (AttributeError, KeyError, TypeError, ValueError):
        predictions = None
    rows = raw.get("rows")
    return Reference(rows if isinstance(rows, int) else 0, tuple(features), predictions)


def _feature(feature: Feature, column: int, raw: Mapping[str, Any]) -> Bins:
    missing = float(raw["missing"])
    missing_count = missing if feature.nullable or missing else None
    if feature.kind in ("number", "date", "text"):  # the length of a text
        return Bins(feature.name, column, *_numbers(raw, missing_count))
    counts = {str(name): float(count) for name, count in raw["counts"].items()}
    known = feature.categories if feature.kind == "category" else ("false", "true")
    return Bins(feature.name, column, *_names(known, counts, missing_count, unknown=feature.kind == "category"))


def _predictions(raw: Mapping[str, Any], signature: Signature) -> Bins:
    """The bins of the answers from `serve_app.artifacts.decision.outcomes`."""
    if signature.outputs:
        return _joined([_predictions({"rows": raw["rows"], **raw["outputs"][part.target]}, part) for _, part in signature.parts])
    if signature.task in ("regression", "outlier detection"):
        return Bins(signature.target, 0, *_numbers(raw["target"], None))
    shares, rows = raw["classes"], float(raw["rows"])  # keyed by Python's text of a label, `True` for `true`
    counts = {label_text(label): float(shares.get(str(label), 0.0)) * rows for label in signature.classes}
    return Bins(signature.target, 0, *_names(signature.class_names, counts, None, unknown=False))


def _joined(targets: Sequence[Bins]) -> Bins:
    """The bins of several targets side by side, for the first MAX_TARGETS: each row is counted once for each target."""
    counted = targets[:MAX_TARGETS]
    labels = tuple(f"{bins.name}: {label}" for bins in counted for label in bins.labels)
    expected = tuple(share / len(counted) for bins in counted for share in bins.expected)
    starts = np.cumsum([0, *(len(bins.labels) for bins in counted)]).tolist()

    def binner(values: Matrix) -> Positions:
        return np.concatenate(
            [bins.binner(values[:, at]) + start for at, (bins, start) in enumerate(zip(counted, starts, strict=False))]
        )

    return Bins(", ".join(bins.name for bins in counted), 0, labels, expected, binner)


Parts = tuple[tuple[str, ...], tuple[float, ...], Binner]
"""Labels, expected shares and binner of a column."""


def _numbers(raw: Mapping[str, Any], missing: float | None) -> Parts:
    edges, counts = [float(edge) for edge in raw["edges"]], [float(count) for count in raw["counts"]]
    if len(counts) != len(edges) + 1 or edges != sorted(set(edges)) or min(counts) < 0 or not np.all(np.isfinite(edges)):
        raise ValueError("edges and counts do not belong together")
    while edges and 0.0 in counts:  # an empty bin allows no comparison, so it is joined with its neighbour
        edge = min(counts.index(0.0), len(edges) - 1)
        del edges[edge]
        counts[edge : edge + 2] = [counts[edge] + counts[edge + 1]]
    inner = [f"{low!r} to {high!r}" for low, high in pairwise(edges)]
    labels = [f"< {edges[0]!r}", *inner, f">= {edges[-1]!r}"] if edges else ["any"]
    bounds = np.array(edges)
    return _with_missing(labels, counts, missing, lambda values: np.searchsorted(bounds, values, side="right"))


def _names(known: tuple[str, ...], counts: Mapping[str, float], missing: float | None, *, unknown: bool) -> Parts:
    """Bins of codes: a code is a position in `known`. With `unknown` a code may also be -1, an unknown category."""
    frequent = set(sorted(known, key=lambda name: -counts.get(name, 0.0))[:MAX_BINS])
    labels = [name for name in known if name in frequent]
    values = [counts.get(name, 0.0) for name in labels]
    table = np.array([labels.index(name) if name in frequent else len(labels) for name in known] + [len(labels)])
    if unknown or len(labels) < len(known):
        values.append(sum(counts.get(name, 0.0) for name in known if name not in frequent))
        labels.append(_unused(OTHER, labels))
    return _with_missing(labels, values, missing, lambda codes: table[codes.astype(np.intp)])


def _with_missing(labels: list[str], counts: list[float], missing: float | None, binner: Binner) -> Parts:
    if missing is None:
        return tuple(labels), _shares(counts), binner
    last = len(labels)

    def binner_or_missing(values: Matrix) -> Positions:
        is_missing = np.isnan(values)
        return np.where(is_missing, last, binner(np.where(is_missing, 0.0, values)))

    return (*labels, _unused(MISSING, labels)), _shares([*counts, missing]), binner_or_missing


def _unused(name: str, labels: list[str]) -> str:
    while name in labels:
        name = f"({name})"
    return name


def _shares(counts: list[float]) -> tuple[float, ...]:
    """Shares of the bins, with half a row added to each bin, because PSI needs the logarithm of the shares."""
    total = sum(counts) + 0.5 * len(counts)
    return tuple((count + 0.5) / total for count in counts)
