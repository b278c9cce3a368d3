"""Backends that count their calls, or fail."""

from __future__ import annotations

from dataclasses import replace

from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.inference.backends import Backend, Kind
from serve_app.inference.predictor import Predictor


class CountingBackend:
    """Passes every call on to another backend; `calls` has the number of rows of each."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.kind: Kind = backend.kind
        self.calls: list[int] = []

    def scores(self, matrix: Matrix) -> Scores:
        self.calls.append(len(matrix))
        return self._backend.scores(matrix)


class BrokenBackend:
    """Fails in every call."""

    kind: Kind = "scikit-learn"

    def scores(self, matrix: Matrix) -> Scores:
        raise RuntimeError("broken")


def counting(predictor: Predictor) -> tuple[Predictor, list[int]]:
    """The predictor with a backend that counts, and the number of rows in each call."""
    backend = CountingBackend(predictor.backend)
    return replace(predictor, backend=backend), backend.calls
