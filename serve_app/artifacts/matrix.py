"""Rows as numbers: the matrix that a model takes and the scores that it gives.

A model with texts takes a matrix of objects: codes as Python floats, texts as Python strings, NaN for a missing value. Code that
gathers, splits and counts rows handles both types of matrix. A model without texts never gets a matrix of objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
"""Coded rows, shape (rows, features), columns in the order of the signature; of dtype object when the signature has texts."""
Value = float | str
"""One value of a row: a code, or a text."""
Scores = npt.NDArray[np.floating[Any]]
"""What a model computes for coded rows, by the signature; `Signature.score_shape` is the shape of one row.

- classification: probabilities, shape (rows, classes); without probabilities the positions of the classes, shape (rows,)
- regression: values, shape (rows,); of several quantiles the values by level, shape (rows, quantiles)
- outlier detection: scikit-learn's `decision_function`, shape (rows,), below 0 for an outlier
- clustering: the position of the cluster, then the distance to the nearest centre or the probabilities of the clusters if the model
  gives them, shape (rows, 1), (rows, 2) or (rows, 1 + clusters)
- several targets: the columns of each target side by side, shape (rows, columns); a target without probabilities has one
"""

PIECE_ROWS = 2048
"""Rows of one call of the model. A replica splits a larger batch, because all other requests wait while a call runs."""


def batched(items: Any, size: int) -> Iterator[Any]:
    """Slices of `size` items of a list or an array, the last one shorter."""
    return (items[start : start + size] for start in range(0, len(items), size))


def matrix_type(*, has_texts: bool) -> np.dtype[Any]:
    """The dtype of the matrix of rows with or without texts."""
    return np.dtype(object if has_texts else np.float64)


def measured(matrix: Matrix) -> Matrix:
    """A matrix of objects as float64, with the length in characters instead of each text. Telemetry counts these numbers."""
    lengths: Matrix = _MEASURE(matrix).astype(np.float64)
    return lengths


_MEASURE = np.frompyfunc(lambda value: len(value) if isinstance(value, str) else value, 1, 1)
