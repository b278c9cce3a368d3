"""The rules of a signature for whole columns of numbers: the results of `read_value`, computed without a Python loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.dates import FIRST, LAST, MICROSECONDS
from serve_app.artifacts.fields import Rule, range_rule, read_value
from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import Feature, missing_numbers

Mask = npt.NDArray[np.bool_]

NOT_NULL: Rule = ("type", "must not be null")
NOT_FINITE: Rule = ("not_finite", "must be a finite number")
NOT_BOOLEAN: Rule = ("type", "must be true or false")
NO_STRING: Rule = ("type", "must be a string")


def check_numbers(
    feature: Feature, values: Matrix, missing: tuple[str, ...] = (), *, gaps: Mask | None = None, precision: Any = np.float64
) -> tuple[Matrix, dict[int, Rule]]:
    """The numbers that the model gets for a column, shape (rows,), and the broken rules by row.

    NaN is a missing value, unless `gaps` marks the missing values. `precision` is the type in which the client sent the numbers.
    The function rounds the bounds to this type, because the client's numbers were rounded, too.
    """
    if feature.date is not None:
        return _dates(feature, values, missing)
    if feature.kind not in ("number", "boolean"):
        return values, dict.fromkeys(range(len(values)), NO_STRING)
    if feature.nullable and feature.kind == "number" and (numbers := missing_numbers(missing)):
        is_gap = np.isin(values, list(numbers))
        values = np.where(is_gap, np.nan, values)
        gaps = is_gap | (np.isnan(values) if gaps is None else gaps)
    outside = ~_inside(feature, values, precision)
    if not outside.any():
        return values, {}
    gaps = np.isnan(values) if gaps is None else gaps
    wrong = {} if feature.nullable else dict.fromkeys(np.flatnonzero(gaps).tolist(), NOT_NULL)
    outside &= ~gaps
    if not outside.any():
        return values, wrong
    if feature.kind == "boolean":
        return values, wrong | dict.fromkeys(np.flatnonzero(outside).tolist(), NOT_BOOLEAN)
    finite, rule = np.isfinite(values), ("out_of_range", range_rule(feature))
    return values, wrong | {row: rule if finite[row] else NOT_FINITE for row in np.flatnonzero(outside).tolist()}


def rounded_bounds(feature: Feature, precision: Any) -> tuple[float, float]:
    """The smallest and the largest accepted number, each rounded to `precision`."""
    with np.errstate(over="ignore"):
        least, most = np.array(feature.bounds).astype(precision).astype(np.float64).tolist()
    return least, most


def _inside(feature: Feature, values: Matrix, precision: Any) -> Mask:
    """Whether the model accepts each value, shape (rows,); False for NaN."""
    if feature.kind == "boolean":
        flags: Mask = (values == 0.0) | (values == 1.0)
        return flags
    least, most = rounded_bounds(feature, precision)
    if precision != np.float64:
        with np.errstate(over="ignore"):
            values = values.astype(precision).astype(np.float64)
    with np.errstate(invalid="ignore"):
        inside: Mask = (values >= least) & (values <= most) & np.isfinite(values)
    return inside


def _dates(feature: Feature, values: Matrix, missing: tuple[str, ...]) -> tuple[Matrix, dict[int, Rule]]:
    """Codes of dates that are numbers: seconds or milliseconds since 1970, or the digits of a format like %Y%m%d."""
    assert feature.date is not None
    epoch = feature.date.epoch
    if epoch is not None and not (feature.nullable and missing_numbers(missing)):
        gaps = np.isnan(values)
        with np.errstate(all="ignore"):
            codes = np.rint(values * epoch) / MICROSECONDS
            right = (np.abs(values) < 1e18) & (codes >= FIRST) & (codes <= LAST)
        if (right | (gaps & feature.nullable)).all():
            return codes, {}
    sent, positions = np.unique(values, return_inverse=True)  # dates repeat often
    read = [read_value(feature, None if number != number else number, "refuse", missing) for number in sent.tolist()]
    rules = {at: rule for at, (_, rule) in enumerate(read) if rule is not None}
    wrong = np.flatnonzero(np.isin(positions, list(rules))) if rules else ()
    return np.array([code for code, _ in read], np.float64)[positions], {int(row): rules[int(positions[row])] for row in wrong}
