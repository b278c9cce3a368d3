"""Drift: how today's rows differ from those of training.

The bundle's reference says how training rows spread over bins. A replica only counts its rows by the same bins: counts of any
number of replicas can be added up, and Prometheus compares the sum with the reference (monitoring/rules/drift.yaml).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import Feature, Signature

MAX_FEATURES = 100
"""Columns watched; a wider table is watched in its first ones, so that the number of series stays bounded."""
MAX_BINS = 20
"""Categories or classes counted by name; the rarest share the bin `other`."""

OTHER = "other"
MISSING = "missing"

Positions = npt.NDArray[np.intp]
Binner = Callable[[Matrix], Positions]


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins of one column: its name and place, the bins' names, their shares at training, and where values fall."""

    name: str
    column: int
    labels: tuple[str, ...]
    expected: tuple[float, ...]
    place: Binner

    def count(self, values: Matrix) -> npt.NDArray[np.float64]:
        """Values per bin."""
        return np.bincount(self.place(values), minlength=len(self.labels)).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Reference:
    """What training saw: how many rows, the bins of the features, and those of what was to be predicted."""

    rows: int
    features: tuple[Bins, ...]
    predictions: Bins | None


def read_reference(raw: Mapping[str, Any] | None, signature: Signature) -> Reference | None:
    """The reference of a manifest; None when it has none. A part that cannot be read is left out."""
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
    absent = missing if feature.nullable or missing else None
    if feature.kind == "number":
        return Bins(feature.name, column, *_numbers(raw, absent))
    counts = {str(name): float(count) for name, count in raw["counts"].items()}
    known = feature.categories if feature.kind == "category" else ("false", "true")
    return Bins(feature.name, column, *_names(known, counts, absent, unseen=feature.kind == "category"))


def _predictions(raw: Mapping[str, Any], signature: Signature) -> Bins:
    if signature.task == "regression":
        return Bins(signature.target, 0, *_numbers(raw["target"], None))
    counts = {name: float(share) * float(raw["rows"]) for name, share in raw["classes"].items()}
    return Bins(signature.target, 0, *_names(tuple(map(str, signature.classes)), counts, None, unseen=False))


Parts = tuple[tuple[str, ...], tuple[float, ...], Binner]


def _numbers(raw: Mapping[str, Any], missing: float | None) -> Parts:
    edges, counts = [float(edge) for edge in raw["edges"]], [float(count) for count in raw["counts"]]
    if len(counts) != len(edges) + 1 or edges != sorted(set(edges)) or min(counts) < 0 or not np.all(np.isfinite(edges)):
        raise ValueError("edges and counts do not belong together")
    while edges and 0.0 in counts:  # an empty bin has nothing to compare with: its neighbour takes it in
        gone = min(counts.index(0.0), len(edges) - 1)
        del edges[gone]
        counts[gone : gone + 2] = [counts[gone] + counts[gone + 1]]
    inner = [f"{low!r} to {high!r}" for low, high in pairwise(edges)]
    labels = [f"< {edges[0]!r}", *inner, f">= {edges[-1]!r}"] if edges else ["any"]
    bounds = np.array(edges)
    return _with_missing(labels, counts, missing, lambda values: np.searchsorted(bounds, values, side="right"))


def _names(known: tuple[str, ...], counts: Mapping[str, float], missing: float | None, *, unseen: bool) -> Parts:
    """Bins of codes: a code is a position in `known`; where `unseen` says so, also -1 for what training never saw."""
    most = set(sorted(known, key=lambda name: -counts.get(name, 0.0))[:MAX_BINS])
    labels = [name for name in known if name in most]
    values = [counts.get(name, 0.0) for name in labels]
    table = np.array([labels.index(name) if name in most else len(labels) for name in known] + [len(labels)])
    if unseen or len(labels) < len(known):
        values.append(sum(counts.get(name, 0.0) for name in known if name not in most))
        labels.append(_free(OTHER, labels))
    return _with_missing(labels, values, missing, lambda codes: table[codes.astype(np.intp)])


def _with_missing(labels: list[str], counts: list[float], missing: float | None, place: Binner) -> Parts:
    if missing is None:
        return tuple(labels), _shares(counts), place
    last = len(labels)

    def place_or_missing(values: Matrix) -> Positions:
        absent = np.isnan(values)
        return np.where(absent, last, place(np.where(absent, 0.0, values)))

    return (*labels, _free(MISSING, labels)), _shares([*counts, missing]), place_or_missing


def _free(name: str, taken: list[str]) -> str:
    while name in taken:
        name = f"({name})"
    return name


def _shares(counts: list[float]) -> tuple[float, ...]:
    """Shares in which no bin is quite empty (half a row is added to each): PSI takes their logarithm."""
    total = sum(counts) + 0.5 * len(counts)
    return tuple((count + 0.5) / total for count in counts)
