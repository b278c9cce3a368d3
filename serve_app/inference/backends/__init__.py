"""The backends, with one interface: ONNX Runtime, a booster's own library, and scikit-learn on the coded matrix or a frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from serve_app.artifacts.matrix import Matrix, Scores

Kind = Literal["onnx", "xgboost", "lightgbm", "catboost", "scikit-learn", "frame"]
Score = Callable[[Matrix], Scores]
"""The type of `Backend.scores`, for code that needs only this method of a backend."""


class Backend(Protocol):
    """A loaded model that computes scores. Calls do not change it, so threads can share it."""

    @property
    def kind(self) -> Kind:
        """The library that computes."""

    def scores(self, matrix: Matrix) -> Scores:
        """Scores of coded rows, shape (rows, features); `Scores` describes them for each task."""
