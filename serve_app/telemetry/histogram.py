"""Histograms as arrays: one call adds many values, and the counts can be read as Prometheus buckets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CONFIDENCE_BOUNDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
SECONDS_BOUNDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS_BOUNDS = (1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0)

Histogram = npt.NDArray[np.float64]
"""Shape (bounds + 2,): the count of each bucket, the count of the values above all bounds, and the sum of all values."""


def empty(bounds: tuple[float, ...]) -> Histogram:
    """A histogram without values over these upper bounds, in ascending order."""
    return np.zeros(len(bounds) + 2)


def add(histogram: Histogram, bounds: tuple[float, ...], values: npt.NDArray[np.float64]) -> None:
    """Add values, shape (n,), in place. A bucket holds the values up to and including its bound."""
    positions = np.searchsorted(bounds, values, side="left")
    histogram[:-1] += np.bincount(positions, minlength=len(bounds) + 1)
    histogram[-1] += values.sum()


def by_group(
    bounds: tuple[float, ...], values: npt.NDArray[np.float64], group_of: npt.NDArray[np.intp], *, groups: int
) -> npt.NDArray[np.float64]:
    """A histogram of the values of each group, shape (groups, bounds + 2); `values` and `group_of` have the shape (n,)."""
    buckets = len(bounds) + 1
    positions = np.searchsorted(np.array(bounds), values, side="left") + group_of * buckets
    counts = np.bincount(positions, minlength=groups * buckets).reshape(groups, buckets)
    return np.column_stack([counts, np.bincount(group_of, weights=values, minlength=groups)])


def count(histogram: Histogram) -> float:
    """The number of values."""
    return float(histogram[:-1].sum())


def buckets(histogram: Histogram, bounds: tuple[float, ...]) -> tuple[list[tuple[str, float]], float]:
    """The cumulative buckets with the text of their bounds in the form of prometheus_client, and the sum of the values."""
    cumulative = np.cumsum(histogram[:-1])
    texts = (*map(str, bounds), "+Inf")
    return [(text, float(value)) for text, value in zip(texts, cumulative, strict=True)], float(histogram[-1])


def quantile(histogram: Histogram, bounds: tuple[float, ...], share: float) -> float | None:
    """The value below which this share of the values lies, interpolated inside its bucket as in Prometheus; None without values.

    Values above the last bound count as the last bound.
    """
    cumulative = np.cumsum(histogram[:-1])
    total = float(cumulative[-1])
    if total == 0:
        return None
    rank = share * total
    at = int(np.searchsorted(cumulative, rank, side="left"))
    if at >= len(bounds):
        return bounds[-1]
    low = bounds[at - 1] if at else 0.0
    below = float(cumulative[at - 1]) if at else 0.0
    return low + (bounds[at] - low) * (rank - below) / float(histogram[at])
