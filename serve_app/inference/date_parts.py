"""Parts of dates in the coded matrix, as the signature describes them: a step of trained models.

Training, the API and scoring run this class with scikit-learn. `training/onnx_dates.py` uses `compute_parts` to write the same
steps as an ONNX graph. Training or unpickling a model with dates imports this module and scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin

from serve_app.artifacts.dates import DateForm, parser
from serve_app.artifacts.signature import Signature

Values = npt.NDArray[np.float64]


class _Stateless(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A transformer whose `fit` only stores the number of columns."""

    def fit(self, X: Any, y: Any = None) -> Self:
        """Store the number of columns."""
        self.n_features_in_ = np.shape(X)[1]
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")


class DateParts(_Stateless):
    """Replaces each column of dates with its parts, in the same position; other columns do not change.

    `columns` are the positions of the dates in the matrix, `parts` the names of the parts by column, and `origins` the code of day
    0 of `days` by column.
    """

    def __init__(self, columns: Sequence[int] = (), parts: Sequence[Sequence[str]] = (), origins: Sequence[float] = ()) -> None:
        self.columns = columns
        self.parts = parts
        self.origins = origins

    def transform(self, X: Any) -> Values:
        """The matrix with the parts, float64 of shape (rows, other columns + parts); a missing date has NaN in every part."""
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def date_step(signature: Signature) -> DateParts | None:
    """The step that replaces the dates of this signature in the coded matrix with their parts; None without dates."""
    dates = [(at, feature, feature.date) for at, feature in enumerate(signature.features) if feature.date is not None]
    if not dates:
        return None
    origins = [float(np.floor(feature.low or 0.0)) for _, feature, _ in dates]
    return DateParts([at for at, _, _ in dates], [form.parts for _, _, form in dates], origins)


class DateCoder(_Stateless):
    """Codes columns of dates of one form: texts and timestamps become days since 1970-01-01; numbers are already codes.

    The arguments are those of `DateForm`. Raises InvalidDate for a text that is not a date of this form.
    """

    def __init__(self, parts: Sequence[str] = (), formats: Sequence[str] = (), zoned: bool = False) -> None:
        self.parts = parts
        self.formats = formats
        self.zoned = zoned

    def transform(self, X: Any) -> Values:
        """The codes, float64 of the same shape."""
        form = msgspec.convert({"parts": list(self.parts), "formats": list(self.formats), "zoned": self.zoned}, DateForm)
        columns = [X.iloc[:, at] if hasattr(X, "iloc") else X[:, at] for at in range(np.shape(X)[1])]
        return np.column_stack([_codes(column, form) for column in columns])


def _codes(column: Any, form: DateForm) -> Values:
    if getattr(column.dtype, "kind", "O") == "f":
        return np.asarray(column, dtype=np.float64)
    parse = parser(form)
    values = [value.isoformat() if hasattr(value, "isoformat") else value for value in column]
    return np.array([math.nan if value is None or value != value or value == "NaT" else parse(value) for value in values])


def date_parts(codes: Values, names: Sequence[str], origin: float) -> list[Values]:
    """The parts of codes, shape (rows,) each, in the order of `names`."""
    computed = compute_parts(codes, origin, np.floor)
    return [computed[name] for name in names]


def compute_parts(codes: Any, origin: float, floor: Callable[[Any], Any]) -> dict[str, Any]:
    """All parts by name, for arrays or for nodes of a graph: any type that supports `+ - * /` and `floor`.

    All steps except the hours are exact in float64: quotients are rounded down, and no other result needs more than 53 bits. Year,
    month and day come from the number of the day in an era of 400 years that begins on 1 March.
    """
    day = floor(codes)
    weekday = day + 3.0
    shifted = day + 719_468.0
    era = floor(shifted / 146_097.0)
    of_era = shifted - era * 146_097.0
    leaps = floor(of_era / 1460.0) - floor(of_era / 36_524.0) + floor(of_era / 146_096.0)
    year = floor((of_era - leaps) / 365.0)
    of_year = of_era - (year * 365.0 + floor(year / 4.0) - floor(year / 100.0))
    month = floor((of_year * 5.0 + 2.0) / 153.0)
    after = floor(month / 10.0)
    return {
        "days": codes - origin,
        "hour": floor((codes - day) * 86_400_000_000.0 + 0.5) / 3_600_000_000.0,
        "weekday": weekday - floor(weekday / 7.0) * 7.0 + 1.0,
        "day": of_year - floor((month * 153.0 + 2.0) / 5.0) + 1.0,
        "month": month + 3.0 - after * 12.0,
        "year": era * 400.0 + year + after,
    }
