"""Dates in the coded matrix as the numbers that the signature describes: a step of trained models.

Training, the API and scoring run this class with scikit-learn; `training/onnx_dates.py` writes the same steps as an ONNX
graph.
The module is imported when a model with dates is trained or unpickled, and scikit-learn is imported with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin

from serve_app.artifacts.dates import DateForm, parser

Values = npt.NDArray[np.float64]


class DateParts(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Replaces each column of dates by its parts, in place; other columns stay as they are.

    `columns` are the positions of the dates in the matrix, `parts` the names of the parts by column, `origins` the codes of the day
    from which `days` count, by column.
    """

    def __init__(self, columns: Sequence[int] = (), parts: Sequence[Sequence[str]] = (), origins: Sequence[float] = ()) -> None:
        self.columns = columns
        self.parts = parts
        self.origins = origins

    def fit(self, X: Any, y: Any = None) -> DateParts:
        """Take the number of columns; nothing is learnt from the rows."""
        self.n_features_in_ = np.shape(X)[1]
        return self

    def transform(self, X: Any) -> Values:
        """The matrix with the parts, float64 of shape (rows, columns and parts); a gap is a gap in every part."""
        matrix = np.asarray(X, dtype=np.float64)
        dates = {column: (self.parts[at], self.origins[at]) for at, column in enumerate(self.columns)}
        blocks: list[Values] = []
        start = 0
        for column, (names, origin) in dates.items():
            blocks.append(matrix[:, start:column])
            blocks.append(np.column_stack(date_parts(matrix[:, column], names, origin)))
            start = column + 1
        blocks.append(matrix[:, start:])
        return np.concatenate(blocks, axis=1)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class DateCoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Codes columns of dates of one form: texts and timestamps become days since 1970-01-01; numbers are codes already.

    The arguments are those of `DateForm`. Raises InvalidDate for a text that is no date of this form.
    """

    def __init__(self, parts: Sequence[str] = (), formats: Sequence[str] = (), zoned: bool = False) -> None:
        self.parts = parts
        self.formats = formats
        self.zoned = zoned

    def fit(self, X: Any, y: Any = None) -> DateCoder:
        """Take the number of columns; nothing is learnt from the rows."""
        self.n_features_in_ = np.shape(X)[1]
        return self

    def transform(self, X: Any) -> Values:
        """The codes, float64 of the same shape."""
        form = msgspec.convert({"parts": list(self.parts), "formats": list(self.formats), "zoned": self.zoned}, DateForm)
        columns = [X.iloc[:, at] if hasattr(X, "iloc") else X[:, at] for at in range(np.shape(X)[1])]
        return np.column_stack([_codes(column, form) for column in columns])

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")


def _codes(column: Any, form: DateForm) -> Values:
    if getattr(column.dtype, "kind", "O") == "f":
        return np.asarray(column, dtype=np.float64)
    parse = parser(form)
    values = [value.isoformat() if hasattr(value, "isoformat") else value for value in column]
    return np.array([math.nan if value is None or value != value or value == "NaT" else parse(value) for value in values])


def date_parts(codes: Values, names: Sequence[str], origin: float) -> list[Values]:
    """The parts of codes, shape (rows,) each, in the order of `names`.

    All steps but the hours are exact in float64: quotients are rounded down, and no other result needs more than 53 bits. Year,
    month and day come from the number of the day in an era of 400 years that begins on 1 March.
    """
    day = np.floor(codes)
    computed: dict[str, Values] = {"days": codes - origin}
    computed["hour"] = np.floor((codes - day) * 86_400_000_000.0 + 0.5) / 3_600_000_000.0
    weekday = day + 3.0
    computed["weekday"] = weekday - np.floor(weekday / 7.0) * 7.0 + 1.0
    shifted = day + 719_468.0
    era = np.floor(shifted / 146_097.0)
    of_era = shifted - era * 146_097.0
    leaps = np.floor(of_era / 1460.0) - np.floor(of_era / 36_524.0) + np.floor(of_era / 146_096.0)
    year = np.floor((of_era - leaps) / 365.0)
    of_year = of_era - (year * 365.0 + np.floor(year / 4.0) - np.floor(year / 100.0))
    month = np.floor((of_year * 5.0 + 2.0) / 153.0)
    after = np.floor(month / 10.0)
    computed["day"] = of_year - np.floor((month * 153.0 + 2.0) / 5.0) + 1.0
    computed["month"] = month + 3.0 - after * 12.0
    computed["year"] = era * 400.0 + year + after
    return [computed[name] for name in names]
