"""Rows as numbers: the matrix that a model takes and the scores that it gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
"""Coded rows, shape (rows, features), columns in the order of the signature."""
Scores = npt.NDArray[np.floating[Any]]
"""Probabilities, shape (rows, classes); values of a regression or positions of classes, shape (rows,)."""

PIECE_ROWS = 2048
"""A larger batch is predicted and written in pieces of so many rows, because all other requests wait while a single call runs."""


def batched(items: Any, size: int) -> Iterator[Any]:
    """Slices of `size` items of a list or an array, the last one shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))
