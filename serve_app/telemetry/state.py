"""The counts of a replica as typed data: the collector writes them, the exposition reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.volume import Volume
from serve_app.telemetry import histogram
from serve_app.telemetry.drift import Reference
from serve_app.telemetry.histogram import ROWS_BOUNDS, Histogram

RequestKey = tuple[str, str, str, str]
"""The route and protocol of `RequestLabels`, the status class (`2xx`), and the model version ("" for an answer without a model)."""


class RequestLabels(NamedTuple):
    """The labels for the address of a request; they contain no text from the client.

    `route` is the path in the OpenAPI document, `protocol` one of `ProtocolName`, `body_format` one of `FORMATS`, or "" for a page.
    """

    route: str
    protocol: str
    body_format: str = ""


@dataclass(frozen=True, slots=True)
class BinCounts:
    """Rows of one model version by the bins of its reference. The counts change in place.

    `features` has one array per feature of the reference, with one count per bin. `predictions` has one count per bin of the
    training target, or is None when the reference has no target. No part of it refers to the predictor.
    """

    digest: str
    reference: Reference
    features: tuple[npt.NDArray[np.float64], ...]
    predictions: npt.NDArray[np.float64] | None

    @classmethod
    def empty(cls, digest: str, reference: Reference) -> BinCounts:
        """Zero rows in every bin of `reference`."""
        features = tuple(np.zeros(len(bins.labels)) for bins in reference.features)
        return cls(
            digest, reference, features, None if reference.predictions is None else np.zeros(len(reference.predictions.labels))
        )


@dataclass(slots=True)
class MetricsState:
    """Everything that a replica has counted since it started."""

    seconds: dict[RequestKey, Histogram] = field(default_factory=dict)
    """Seconds to answer (SECONDS_BOUNDS)."""
    requests: Counter[tuple[RequestKey, str]] = field(default_factory=Counter)
    """Answered requests, by the same labels and the format of the body."""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests that ended in an error, by type of the error and route."""
    predictions: Counter[str] = field(default_factory=Counter)
    """Predicted rows by class or cluster; `value` for a regression, `outlier` and `inlier` for an outlier detection."""
    confidence: dict[str, Histogram] = field(default_factory=dict)
    """Probability of the predicted class (CONFIDENCE_BOUNDS), by class."""
    rows: Histogram = field(default_factory=lambda: histogram.empty(ROWS_BOUNDS))
    """Rows per request."""
    out_of_range: Counter[str] = field(default_factory=Counter)
    """Values outside the range of the training rows, by feature."""
    bins: dict[str, BinCounts] = field(default_factory=dict)
    """Counts by model version, the oldest first."""
    refusals: int = 0
    """Candidates that the slot refused."""
    volume: Volume = field(default_factory=Volume)
    """The last measurement of the store's volume."""
