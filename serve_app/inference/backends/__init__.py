"""What computes: ONNX Runtime, a booster's own library, or scikit-learn on the coded matrix or a frame, behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from serve_app.artifacts.matrix import Matrix, Scores

Kind = Literal["onnx", "xgboost", "lightgbm", "catboost", "scikit-learn", "frame"]
Score = Callable[[Matrix], Scores]
"""The type of `Backend.scores`, for code that needs no more of a backend."""


class Backend(Protocol):
    """A loaded model that computes scores; it is not changed by a call, and threads may share it."""

    @property
    def kind(self) -> Kind:
        """The library that computes."""

    def scores(self, matrix: Matrix) -> Scores:
        """Scores of coded rows, shape (rows, features); `Scores` says what they are for each task."""
