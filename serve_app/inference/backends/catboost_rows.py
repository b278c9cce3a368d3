"""Coded rows as CatBoost takes them: categories as whole numbers or texts, because it refuses them as floating-point numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_app.artifacts.matrix import Matrix

GAP = -2
"""The category of a gap: different from every code, and from that of an unseen category."""


def catboost_rows(matrix: Matrix, categories: Sequence[int]) -> Any:
    """The rows with whole numbers in the columns of categories; the matrix itself without such columns."""
    if not categories:
        return matrix
    rows = matrix.tolist()
    for row in rows:
        for column in categories:
            value = row[column]
            row[column] = int(value) if value == value else GAP  # NaN is not equal to itself
    return rows
