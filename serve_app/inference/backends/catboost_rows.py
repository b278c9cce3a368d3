"""Coded rows for CatBoost: categories become integers or texts, because CatBoost refuses them as floating-point numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serve_app.artifacts.matrix import Matrix

GAP = -2
"""The category of a missing value; it differs from every code and from that of an unseen category."""
UNSEEN_TEXT = "\0unseen"
"""The text of an unseen category; no table contains it."""


def catboost_rows(
    matrix: Matrix, categories: Sequence[int], texts: Sequence[Sequence[str]] = (), gap: int | str | None = None
) -> Any:
    """The rows with integers, or with `texts` by column and code, in the columns of categories; without categories, the matrix.

    `gap` replaces a missing value; None means GAP, or an unseen category with `texts`.
    """
    if not categories:
        return matrix
    rows = matrix.tolist()
    if not texts:
        missing = GAP if gap is None else gap
        for row in rows:
            for column in categories:
                value = row[column]
                row[column] = int(value) if value == value else missing  # NaN is not equal to itself
        return rows
    known = [(column, dict(enumerate(names))) for column, names in zip(categories, texts, strict=True)]
    instead = UNSEEN_TEXT if gap is None else gap
    for row in rows:
        for column, names_by_code in known:
            value = row[column]
            row[column] = names_by_code.get(value, UNSEEN_TEXT) if value == value else instead
    return rows
