"""The metrics collector of a replica.

A request only appends to lists. The collector does the arithmetic for many requests at once: about once a second, and earlier when
the lists are long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from prometheus_client.core import Metric

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.decision import outcomes, outliers, predicted_positions
from serve_app.artifacts.matrix import Matrix, Scores, measured
from serve_app.artifacts.signature import Signature, label_text
from serve_app.artifacts.volume import read_volume
from serve_app.inference.predictor import Predictor
from serve_app.inference.slot import Refusal, Slot
from serve_app.telemetry import exposition, histogram
from serve_app.telemetry.drift import MAX_FEATURES, MAX_TARGETS, OTHER, Reference, read_reference
from serve_app.telemetry.histogram import CONFIDENCE_BOUNDS, ROWS_BOUNDS, SECONDS_BOUNDS
from serve_app.telemetry.state import BinCounts, MetricsState, RequestKey, RequestLabels

PENDING = 4096
PENDING_ROWS = 2048
"""Requests and rows after which the collector adds the lists to the counts at once, so that they stay small under any load."""
MAX_CLASSES = 50
"""Number of classes counted by name; further classes of the signature are counted as `other`."""
KEPT_VERSIONS = 3
"""Number of model versions with separate counts. Counts of older versions are dropped, so that swaps do not add series for ever."""

PREDICT = RequestLabels("/predict", "native", "json")
"""Requests whose counts exist from the start, because `increase()` misses the first event of a new series."""


class MetricsCollector:
    """Counts of one replica. All methods except `poll_store` run in the thread of the event loop.

    `folder` is the folder of the store, whose volume `poll_store` measures; None without a store. The collector refers to a
    predictor only between a prediction and the next `flush`, so that Python can free a replaced model.
    """

    def __init__(self, slot: Slot, folder: Path | None = None) -> None:
        self.slot = slot
        self.folder = folder
        self.state = MetricsState()
        self.in_flight = 0
        """Requests in progress. The gateway counts them."""
        self._refusal: Refusal | None = None
        self._versions: list[str] = []
        self._seconds: dict[tuple[RequestLabels, int, str], list[float]] = {}  # by labels, status code, model version
        self._predictor: Predictor | None = None  # the predictor of the pending rows
        self._matrices: list[Matrix] = []
        self._scores: list[Scores] = []
        self._request_rows: list[int] = []
        self._pending_rows = 0
        for status_class in ("4xx", "5xx"):
            self._begin(PREDICT, status_class, "")

    def answered(self, labels: RequestLabels, status: int, version: str, seconds: float) -> None:
        """Count one answer: labels of its route, status code, model version ("" without a model), duration."""
        key = (labels, status, version)
        times = self._seconds.get(key)
        if times is None:
            times = self._seconds[key] = []
        times.append(seconds)
        if len(times) >= PENDING:
            self.flush()

    def predicted(self, predictor: Predictor, matrix: Matrix, scores: Scores) -> None:
        """Count the rows of one request: inputs of shape (rows, features), and their scores."""
        self._request_rows.append(len(scores))
        self._append(predictor, matrix, scores)

    async def predicted_many(self, predictor: Predictor, matrix: Matrix, scores: Scores) -> None:
        """Count the rows of one large request in parts, so that other requests do not wait for the arithmetic."""
        self._request_rows.append(len(scores))
        for start in range(0, len(scores), PENDING_ROWS):
            part = slice(start, start + PENDING_ROWS)
            self._append(predictor, matrix[part], scores[part])
            await asyncio.sleep(0)

    def failed(self, error_type: str, route: str) -> None:
        """Count one request that ended in an error of this type."""
        self.state.errors[error_type, route] += 1

    def poll_store(self) -> None:
        """Measure the store's volume. This may block, so it runs in a thread."""
        if self.folder is not None:
            self.state.volume = read_volume(self.folder)

    def flush(self) -> None:
        """Add the pending requests to the counts, and release the predictor."""
        seconds, self._seconds = self._seconds, {}
        matrices, self._matrices = self._matrices, []
        scores, self._scores = self._scores, []
        request_rows, self._request_rows = self._request_rows, []
        predictor, self._predictor = self._predictor, None
        self._pending_rows = 0
        self._count_refusal()
        if self.slot.predictor is not None:
            self._add_version(self.slot.predictor)
        for (labels, status, version), times in seconds.items():
            key = self._begin(labels, f"{status // 100}xx", version)
            self.state.requests[key, labels.body_format] += len(times)
            histogram.add(self.state.seconds[key], SECONDS_BOUNDS, np.array(times))
        if request_rows:
            histogram.add(self.state.rows, ROWS_BOUNDS, np.array(request_rows, dtype=np.float64))
        if predictor is not None and scores:
            self._count_predictions(predictor, np.concatenate(matrices), np.concatenate(scores))

    def collect(self) -> Iterator[Metric]:
        """All Prometheus metric families, for Ray's metrics port."""
        yield from self.collect_public()
        yield from exposition.training_families(self.state)

    def collect_public(self) -> Iterator[Metric]:
        """The metric families of the public page `/metrics`, without values from training rows."""
        self.flush()
        predictor = self.slot.predictor
        age = None if predictor is None else age_seconds(predictor.bundle)
        return exposition.families(self.state, self.slot, in_flight=self.in_flight, age_seconds=age)

    def _begin(self, labels: RequestLabels, status_class: str, version: str) -> RequestKey:
        """Start the counts of such requests at zero, unless they exist."""
        key = (labels.route, labels.protocol, status_class, version)
        if key not in self.state.seconds:
            self.state.seconds[key] = histogram.empty(SECONDS_BOUNDS)
        self.state.requests.setdefault((key, labels.body_format), 0)
        return key

    def _append(self, predictor: Predictor, matrix: Matrix, scores: Scores) -> None:
        if predictor is not self._predictor:
            self.flush()
            self._predictor = predictor
        self._matrices.append(measured(matrix) if matrix.dtype.hasobject else matrix)  # texts must not be kept
        self._scores.append(scores)
        self._pending_rows += len(scores)
        if self._pending_rows >= PENDING_ROWS:
            self.flush()

    def _count_refusal(self) -> None:
        """Count a new refusal; a lasting refusal counts once."""
        refusal = self.slot.refusal
        if refusal is not None and refusal is not self._refusal:
            self.state.refusals += 1
        self._refusal = refusal

    def _add_version(self, predictor: Predictor) -> None:
        """Start the counts of the version in use, and drop those of the oldest version."""
        version, state = predictor.version, self.state
        counts = state.bins.get(version)
        if counts is None or counts.digest != predictor.digest:
            reference = read_reference(predictor.bundle.manifest.reference, predictor.signature) or Reference(0, (), None)
            state.bins[version] = BinCounts.empty(predictor.digest, reference)
        if self._versions[-1:] == [version]:
            return
        self._versions = [*(other for other in self._versions if other != version), version][-KEPT_VERSIONS:]
        self._begin(PREDICT, "2xx", version)
        for key in [key for key in state.seconds if key[-1] and key[-1] not in self._versions]:
            del state.seconds[key]
        for key, body_format in [entry for entry in state.requests if entry[0] not in state.seconds]:
            del state.requests[key, body_format]
        for old in [old for old in state.bins if old not in self._versions]:
            del state.bins[old]

    def _count_predictions(self, predictor: Predictor, matrix: Matrix, scores: Scores) -> None:
        signature = predictor.signature
        self._count_out_of_range(signature, matrix)
        self._count_answers(signature, scores)
        counts = self.state.bins.get(predictor.version)
        if counts is None or counts.digest != predictor.digest:
            return  # the last rows of a replaced model
        for bins, rows in zip(counts.reference.features, counts.features, strict=True):
            rows += bins.count(matrix[:, bins.column])
        if counts.predictions is not None and counts.reference.predictions is not None:
            counts.predictions[:] += counts.reference.predictions.count(outcomes(scores, signature))

    def _count_out_of_range(self, signature: Signature, matrix: Matrix) -> None:
        features = signature.features[:MAX_FEATURES]
        lows = [[-np.inf if feature.low is None or feature.high is None else feature.low] for feature in features]
        highs = [[np.inf if feature.low is None or feature.high is None else feature.high] for feature in features]
        columns = np.ascontiguousarray(matrix.T[: len(features)])  # comparing is slow over rows of few values
        outside = (columns < lows) | (columns > highs)
        if not outside.any():
            return
        for feature, rows in zip(features, np.count_nonzero(outside, axis=1).tolist(), strict=True):
            if rows and feature.is_compared:
                self.state.out_of_range[feature.name] += rows

    def _count_answers(self, signature: Signature, scores: Scores) -> None:
        """Count rows by answer: class, cluster or flag, `value` for a number; for several targets, by target and class."""
        if signature.outputs and signature.task == "classification":
            parts = signature.parts[:MAX_TARGETS]
            for at, part in parts:
                self._count_classes(part, scores[:, at], f"{part.target}: ", named=max(2, MAX_CLASSES // len(parts)))
        elif signature.task == "regression":
            self.state.predictions["value"] += len(scores)
        elif signature.task == "outlier detection":
            odd = int(np.count_nonzero(outliers(scores)))
            self.state.predictions["outlier"] += odd
            self.state.predictions["inlier"] += len(scores) - odd
        else:
            self._count_classes(signature, scores)

    def _count_classes(self, signature: Signature, scores: Scores, prefix: str = "", *, named: int = MAX_CLASSES) -> None:
        """Count rows by class; classes after the first `named` classes of the signature are counted as `other`."""
        classes = predicted_positions(scores, signature)
        counts = np.bincount(classes, minlength=len(signature.classes))
        has_confidence = signature.probabilistic and signature.task == "classification"
        if has_confidence:
            values = scores.ravel()[np.arange(0, scores.size, scores.shape[1]) + classes].astype(np.float64)
            confidences = histogram.by_group(CONFIDENCE_BOUNDS, values, classes, groups=len(counts))
        for index in np.flatnonzero(counts).tolist():
            label = prefix + (label_text(signature.classes[index]) if index < named else OTHER)
            self.state.predictions[label] += int(counts[index])
            if has_confidence:
                self.state.confidence.setdefault(label, histogram.empty(CONFIDENCE_BOUNDS))[:] += confidences[index]


@dataclass(frozen=True, slots=True)
class PublicMetrics:
    """The collector that prometheus_client reads for `/metrics`."""

    collector: MetricsCollector

    def collect(self) -> Iterator[Metric]:
        """The public metric families."""
        return self.collector.collect_public()


def age_seconds(bundle: Bundle) -> float | None:
    """Seconds since the model was trained; None when the manifest does not have the time."""
    if bundle.manifest.trained_at is None:
        return None
    try:
        trained = datetime.fromisoformat(bundle.manifest.trained_at)
        return max(0.0, time.time() - trained.timestamp())
    except (ValueError, OverflowError):
        return None
