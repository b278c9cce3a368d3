"""The rules of a signature, applied to values that are Python objects already: which number a value is, or which rule it breaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import UNSEEN, Feature, Signature
from serve_app.errors import InvalidInput, Problem

Unknown = Literal["refuse", "unseen"]
"""What happens to a category that training never saw."""

UNKNOWN_CATEGORY = "is not one of the categories the model was trained with"

MAX_PROBLEMS = 50
"""Problems named in one response; a table full of mistakes needs no longer list."""


def read_rows(signature: Signature, rows: Sequence[Any], *, unknown: Unknown = "refuse") -> Matrix:
    """Rows that are Python objects already (golden examples, tests) as a matrix; it raises InvalidInput."""
    problems: list[Problem] = []
    matrix = [read_row(signature, item, f"[{index}].", problems, unknown) for index, item in enumerate(rows)]
    if problems:
        raise InvalidInput(problems[:MAX_PROBLEMS])
    return np.array(matrix, dtype=np.float64)


def read_row(signature: Signature, row: Any, prefix: str, problems: list[Problem], unknown: Unknown) -> list[float]:
    if not isinstance(row, dict):
        problems.append(Problem(prefix.rstrip(".") or "body", "type", "must be a JSON object"))
        return []
    values = []
    for feature in signature.features:
        if feature.name in row:
            value, problem = read_value(feature, row[feature.name], unknown)
        elif feature.nullable:
            value, problem = math.nan, None
        else:
            value, problem = math.nan, ("missing", "this field is required")
        if problem is not None:
            problems.append(Problem(prefix + feature.name, *problem))
        values.append(value)
    return values


def read_value(feature: Feature, value: Any, unknown: Unknown) -> tuple[float, tuple[str, str] | None]:
    """The number of a value that is a Python object already, and the code and sentence of the rule that it breaks."""
    nan = math.nan
    if value is None:
        return (nan, None) if feature.nullable else (nan, ("type", "must not be null"))
    if feature.kind == "category":
        if not isinstance(value, str):
            return nan, ("type", "must be a string")
        try:
            return float(feature.categories.index(value)), None
        except ValueError:
            if unknown == "unseen":
                return UNSEEN, None
            return nan, ("unknown_category", UNKNOWN_CATEGORY)
    if feature.kind == "boolean":
        return (float(value), None) if isinstance(value, bool) else (nan, ("type", "must be true or false"))
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return nan, ("type", "must be a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return nan, ("type", "must be a finite number")
    if not math.isfinite(number):
        return nan, ("not_finite", "must be a finite number")
    minimum, maximum = feature.bounds
    if minimum <= number <= maximum:
        return number, None
    return nan, ("out_of_range", range_rule(feature))


def range_rule(feature: Feature) -> str:
    """The rule that a number outside the contract breaks."""
    low, high = (repr(float(bound)).removesuffix(".0") for bound in feature.bounds)
    if feature.minimum is None and feature.maximum is not None:
        return f"must be at most {high}"
    if feature.maximum is None and feature.minimum is not None:
        return f"must be at least {low}"
    return f"must be between {low} and {high}"
