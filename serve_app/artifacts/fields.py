"""The rules of a signature, applied to values that are Python objects already: which number a value is, or which rule it breaks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from serve_app.artifacts.dates import DateForm, InvalidDate, parser
from serve_app.artifacts.matrix import Matrix, Value, matrix_type
from serve_app.artifacts.signature import UNSEEN, Feature, Signature, missing_numbers
from serve_app.errors import InvalidInput, Problem

Unknown = Literal["refuse", "unseen"]
"""What happens to a category that training never saw."""

UnknownFields = Literal["ignore", "refuse"]
"""What happens to a field that is none of the model's."""

UNKNOWN_CATEGORY = "is not one of the categories the model was trained with"

Rule = tuple[str, str]
"""A rule that a value breaks: its stable code, and a sentence that never repeats the value."""

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
"""Numbers in JSON (RFC 8259, section 6). Python's `float` also reads `1_0`, `inf` and the digits of other scripts."""

MAX_NAMES = 20
"""Names of fields in one message, at most."""
MAX_PROBLEMS = 50
"""Problems named in one response, at most."""


def read_rows(signature: Signature, rows: Sequence[Any], *, unknown: Unknown = "refuse") -> Matrix:
    """Rows that are Python objects already (golden examples, tests) as a matrix; it raises InvalidInput."""
    problems: list[Problem] = []
    matrix = [read_row(signature, item, f"[{index}].", problems, unknown) for index, item in enumerate(rows)]
    if problems:
        raise InvalidInput(problems[:MAX_PROBLEMS])
    return np.array(matrix, dtype=matrix_type(has_texts=signature.has_texts))


def read_row(
    signature: Signature,
    row: Any,
    prefix: str,
    problems: list[Problem],
    unknown: Unknown,
    unknown_fields: UnknownFields = "ignore",
) -> list[Value]:
    """The values of one row, in the order of the signature; every broken rule is appended to `problems`.

    `prefix` is put before the names of the fields, for example `instances[3].`.
    """
    whole = prefix.rstrip(".") or "body"
    if not isinstance(row, dict):
        problems.append(Problem(whole, "type", "must be a JSON object"))
        return []
    known = sum(feature.name in row for feature in signature.features)
    if known == 0 and all(feature.nullable for feature in signature.features):
        # Else the answer would be that of a row of gaps: to a misspelt field, or to a row that is wrapped in another object.
        problems.append(Problem(whole, "missing", f"holds none of the model's fields: {first_names(signature)}"))
        return []
    if unknown_fields == "refuse" and known < len(row):
        problems.append(
            Problem(whole, "unknown_field", f"has a field that the model does not have; it takes: {first_names(signature)}")
        )
    values: list[Value] = []
    value: Value
    for feature in signature.features:
        if feature.name in row:
            value, problem = read_value(feature, row[feature.name], unknown, signature.missing_texts)
        elif feature.nullable:
            value, problem = math.nan, None
        else:
            value, problem = math.nan, ("missing", "this field is required")
        if problem is not None:
            problems.append(Problem(prefix + feature.name, *problem))
        values.append(value)
    return values


def first_names(signature: Signature) -> str:
    """The names of the features, the first MAX_NAMES of them."""
    return ", ".join(signature.names[:MAX_NAMES]) + (", …" if len(signature.names) > MAX_NAMES else "")


def read_value(feature: Feature, value: Any, unknown: Unknown, missing: tuple[str, ...] = ()) -> tuple[Value, Rule | None]:
    """What the model takes for one value, a number or a text, and the rule that the value breaks (it is NaN then).

    Texts in `missing` are null for a feature that takes null, unless they are categories.
    """
    if value is None or (feature.nullable and missing and _says_missing(feature, value, missing)):
        return math.nan, None if feature.nullable else ("type", "must not be null")
    if feature.kind == "category":
        return _read_category(feature, value, unknown)
    if feature.kind == "text":
        return _read_text(feature, value)
    if feature.kind == "boolean":
        return (float(value), None) if isinstance(value, bool) else (math.nan, ("type", "must be true or false"))
    return _read_number(feature, value) if feature.date is None else _read_date(feature.date, value)


def _says_missing(feature: Feature, value: Any, missing: tuple[str, ...]) -> bool:
    if isinstance(value, str) and value in missing:
        return value not in feature.categories
    numbers = missing_numbers(missing)
    if not numbers or feature.kind not in ("number", "date") or isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return float(value) in numbers
    except (ValueError, OverflowError):
        return False


def _read_date(form: DateForm, value: Any) -> tuple[float, Rule | None]:
    try:
        return parser(form)(value), None
    except InvalidDate as error:
        return math.nan, ("date", str(error))


def _read_category(feature: Feature, value: Any, unknown: Unknown) -> tuple[float, Rule | None]:
    if not isinstance(value, str):
        return math.nan, ("type", "must be a string")
    try:
        return float(feature.categories.index(value)), None
    except ValueError:
        return (UNSEEN, None) if unknown == "unseen" else (math.nan, ("unknown_category", UNKNOWN_CATEGORY))


def _read_text(feature: Feature, value: Any) -> tuple[Value, Rule | None]:
    if not isinstance(value, str):
        return math.nan, ("type", "must be a string")
    if len(value) > feature.longest:
        return math.nan, ("too_long", length_rule(feature))
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return math.nan, ("type", "must be a string of Unicode characters")  # half a pair of surrogates, which JSON can escape
    return value, None


def length_rule(feature: Feature) -> str:
    """The rule that a longer text breaks."""
    return f"must have at most {feature.longest} characters"


def _read_number(feature: Feature, value: Any) -> tuple[float, Rule | None]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan, ("type", "must be a number")
    if isinstance(value, str) and not _JSON_NUMBER.fullmatch(value):
        return math.nan, ("type", "must be a finite number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan, ("type", "must be a finite number")
    if not math.isfinite(number):
        return math.nan, ("not_finite", "must be a finite number")
    minimum, maximum = feature.bounds
    if minimum <= number <= maximum:
        return number, None
    return math.nan, ("out_of_range", range_rule(feature))


def range_rule(feature: Feature) -> str:
    """The rule that a number outside the contract breaks."""
    low, high = (repr(float(bound)).removesuffix(".0") for bound in feature.bounds)
    if feature.minimum is None and feature.maximum is not None:
        return f"must be at most {high}"
    if feature.maximum is None and feature.minimum is not None:
        return f"must be at least {low}"
    return f"must be between {low} and {high}"
