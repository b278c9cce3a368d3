"""What a replica counts. A request only appends to a list; the arithmetic is done in bulk, off the hot path."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from prometheus_client.core import Metric

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.volume import Volume, look
from serve_app.inference.predictor import Predictor
from serve_app.inference.slot import Refusal, Slot
from serve_app.telemetry import exposition, histogram
from serve_app.telemetry.drift import MAX_FEATURES, OTHER, Reference, read_reference
from serve_app.telemetry.histogram import CONFIDENCE_BOUNDS, ROWS_BOUNDS, SECONDS_BOUNDS, Histogram

PENDING = 4096
PENDING_ROWS = 2048
"""Requests and rows after which the lists are summed up at once, so that they stay small under any load."""
MAX_CLASSES = 50
"""Classes counted by name; those after them in the signature are counted as `other`."""
KEPT_VERSIONS = 3
"""Versions whose counts are kept apart; those of older ones are dropped, so that swaps do not add series for ever."""

PREDICT = "/predict"
"""The route whose counts exist from the start: Prometheus misses the first event of a series that is born with it."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Rows of one version by the bins of its reference, added up in place."""

    digest: str
    reference: Reference
    features: tuple[npt.NDArray[np.float64], ...]
    predictions: npt.NDArray[np.float64] | None


class MetricsCollector:
    """Counts of one replica, in one thread (its event loop). `folder` is the store's, for what `poll_store` finds there."""

    def __init__(self, slot: Slot, folder: Path | None = None) -> None:
        self.slot = slot
        self.folder = folder
        self.volume = Volume()
        self.errors: Counter[tuple[str, str]] = Counter()
        self.predictions: Counter[str] = Counter()
        self.out_of_range: Counter[str] = Counter()
        self.requests: dict[tuple[str, str, str], Histogram] = {}
        self.confidence: dict[str, Histogram] = {}
        self.watched: dict[str, Watched] = {}
        self.rows = histogram.empty(ROWS_BOUNDS)
        self.refusals = 0
        self.in_flight = 0
        self._refusal: Refusal | None = None
        self._versions: list[str] = []
        self._answered: dict[tuple[str, int, str], list[float]] = {}
        self._predictor: Predictor | None = None  # whose rows are pending
        self._matrices: list[Matrix] = []
        self._scores: list[Scores] = []
        self._asked: list[int] = []  # rows of each request
        self._pending_rows = 0
        for kind in ("4xx", "5xx"):
            self.requests[PREDICT, kind, ""] = histogram.empty(SECONDS_BOUNDS)

    def answered(self, route: str, status: int, version: str, seconds: float) -> None:
        """One request was answered: route as in the OpenAPI document, status code, model version ("" for none), duration."""
        key = (route, status, version)
        times = self._answered.get(key)
        if times is None:
            times = self._answered[key] = []
        times.append(seconds)
        if len(times) >= PENDING:
            self.flush()

    def predicted(self, predictor: Predictor, matrix: Matrix, scores: Scores) -> None:
        """One request's rows were predicted: inputs, shape (rows, features), and their scores."""
        self._asked.append(len(scores))
        self._count(predictor, matrix, scores)

    async def predicted_many(self, predictor: Predictor, matrix: Matrix, scores: Scores) -> None:
        """The same for more rows than can be summed up at once without keeping other requests waiting."""
        self._asked.append(len(scores))
        for start in range(0, len(scores), PENDING_ROWS):
            part = slice(start, start + PENDING_ROWS)
            self._count(predictor, matrix[part], scores[part])
            await asyncio.sleep(0)

    def _count(self, predictor: Predictor, matrix: Matrix, scores: Scores) -> None:
        if predictor is not self._predictor:
            self.flush()
            self._predictor = predictor
        self._matrices.append(matrix)
        self._scores.append(scores)
        self._pending_rows += len(scores)
        if self._pending_rows >= PENDING_ROWS:
            self.flush()

    def failed(self, error_type: str, route: str) -> None:
        """A request ended in an error of this type."""
        self.errors[error_type, route] += 1

    def poll_store(self) -> None:
        """Look at the store's volume; in a thread, because a volume may not answer."""
        if self.folder is not None:
            self.volume = look(self.folder)

    def flush(self) -> None:
        """Add what is pending to the counts."""
        answered, self._answered = self._answered, {}
        matrices, self._matrices = self._matrices, []
        scores, self._scores = self._scores, []
        asked, self._asked = self._asked, []
        self._pending_rows = 0
        refusal = self.slot.refusal
        if refusal is not None and refusal is not self._refusal:
            self.refusals += 1
        self._refusal = refusal
        if self.slot.predictor is not None:
            self._watch(self.slot.predictor)
        for (route, status, version), seconds in answered.items():
            found = self.requests.setdefault((route, f"{status // 100}xx", version), histogram.empty(SECONDS_BOUNDS))
            histogram.add(found, SECONDS_BOUNDS, np.array(seconds))
        if asked:
            histogram.add(self.rows, ROWS_BOUNDS, np.array(asked, dtype=np.float64))
        if scores and self._predictor is not None:
            self._predictions(self._predictor, np.concatenate(matrices), np.concatenate(scores))
        self._predictor = None  # a model that was replaced may go

    def collect(self) -> Iterator[Metric]:
        """Everything as Prometheus metric families; prometheus_client calls this for `/metrics`."""
        self.flush()
        predictor = self.slot.predictor
        return exposition.families(self, None if predictor is None else age_seconds(predictor.bundle))

    def _watch(self, predictor: Predictor) -> None:
        """Make room for the counts of the version in use, and forget the oldest."""
        version = predictor.version
        known = self.watched.get(version)
        if known is None or known.digest != predictor.digest:
            reference = read_reference(predictor.bundle.manifest.reference, predictor.signature) or Reference(0, (), None)
            bins = tuple(np.zeros(len(found.labels)) for found in reference.features)
            predictions = None if reference.predictions is None else np.zeros(len(reference.predictions.labels))
            self.watched[version] = Watched(predictor.digest, reference, bins, predictions)
        if self._versions[-1:] == [version]:
            return
        self._versions = [*(other for other in self._versions if other != version), version][-KEPT_VERSIONS:]
        self.requests.setdefault((PREDICT, "2xx", version), histogram.empty(SECONDS_BOUNDS))
        for key in [key for key in self.requests if key[2] and key[2] not in self._versions]:
            del self.requests[key]
        for old in [old for old in self.watched if old not in self._versions]:
            del self.watched[old]

    def _predictions(self, predictor: Predictor, matrix: Matrix, scores: Scores) -> None:
        signature = predictor.signature
        for index, feature in enumerate(signature.features[:MAX_FEATURES]):
            if feature.low is not None and feature.high is not None:
                column = matrix[:, index]
                outside = int(np.count_nonzero((column < feature.low) | (column > feature.high)))
                if outside:
                    self.out_of_range[feature.name] += outside
        if signature.task == "regression":
            outcome = scores.ravel().astype(np.float64)
            self.predictions["value"] += len(outcome)
        else:
            outcome = (scores.argmax(axis=1) if signature.probabilistic else scores).astype(np.float64)
            self._classes(predictor, outcome.astype(np.intp), scores)
        watched = self.watched.get(predictor.version)
        if watched is None or watched.digest != predictor.digest:
            return  # the last rows of a model that is gone
        for bins, counts in zip(watched.reference.features, watched.features, strict=True):
            counts += bins.count(matrix[:, bins.column])
        if watched.predictions is not None and watched.reference.predictions is not None:
            watched.predictions[:] += watched.reference.predictions.count(outcome)

    def _classes(self, predictor: Predictor, chosen: npt.NDArray[np.intp], scores: Scores) -> None:
        signature = predictor.signature
        for index in np.unique(chosen):
            label = str(signature.classes[index]) if index < MAX_CLASSES else OTHER
            mine = chosen == index
            self.predictions[label] += int(np.count_nonzero(mine))
            if signature.probabilistic:
                found = self.confidence.setdefault(label, histogram.empty(CONFIDENCE_BOUNDS))
                histogram.add(found, CONFIDENCE_BOUNDS, scores[mine].max(axis=1).astype(np.float64))


def age_seconds(bundle: Bundle) -> float | None:
    """Seconds since the model was trained; None when its manifest does not say when."""
    if bundle.manifest.trained_at is None:
        return None
    try:
        trained = datetime.fromisoformat(bundle.manifest.trained_at)
        return max(0.0, time.time() - trained.timestamp())
    except (ValueError, OverflowError):
        return None
