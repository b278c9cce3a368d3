"""Strategies: any signature, any row for it, right or wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from serve_app.artifacts.dates import LAST, DateForm, as_sent
from serve_app.artifacts.signature import Feature, Label, Signature, label_text

names = st.text(st.characters(codec="utf-8"), max_size=12)
"""Any name a column may have: empty, with quotes, line breaks, emoji."""

numbers = st.floats(-1e30, 1e30, allow_subnormal=False).map(lambda number: number + 0.0)  # no minus zero


date_forms = st.sampled_from(
    (
        DateForm(),
        DateForm(("days", "hour"), zoned=True),
        DateForm(("year",), ("%d/%m/%Y", "%b %Y")),
        DateForm(("hour",), ("%I:%M %p",)),
        DateForm(("month",), ("epoch ms",)),
    )
)


@st.composite
def features(draw: st.DrawFn, name: st.SearchStrategy[str] = names) -> Feature:
    kind = draw(st.sampled_from(("number", "boolean", "category", "date")))
    nullable = draw(st.booleans())
    if kind == "category":
        categories = tuple(sorted(draw(st.sets(names, min_size=1, max_size=4))))
        return Feature(draw(name), "category", categories=categories, nullable=nullable)
    if kind == "boolean":
        return Feature(draw(name), "boolean", nullable=nullable)
    if kind == "date":
        first, last = sorted(draw(st.tuples(numbers, numbers)))
        return Feature(draw(name), "date", low=first, high=last, nullable=nullable, date=draw(date_forms))
    bounds = sorted(draw(st.tuples(numbers, numbers)))
    seen = sorted(draw(st.tuples(st.floats(*bounds), st.floats(*bounds))))
    minimum, maximum = (draw(st.sampled_from((None, bound))) for bound in bounds)
    low, high = draw(st.sampled_from(((None, None), tuple(seen))))
    return Feature(draw(name), "number", minimum, maximum, low, high, nullable=nullable)


labels: st.SearchStrategy[Label] = st.text(max_size=8) | st.integers(-(2**53), 2**53) | st.booleans() | numbers


@st.composite
def signatures(draw: st.DrawFn, name: st.SearchStrategy[str] = names) -> Signature:
    columns = draw(st.lists(features(name), min_size=1, max_size=5, unique_by=lambda feature: feature.name))
    target = draw(st.text(max_size=8))
    if draw(st.booleans()):
        return Signature(tuple(columns), "regression", target=target)
    classes = draw(st.lists(labels, min_size=2, max_size=4, unique_by=label_text))
    return Signature(tuple(columns), "classification", tuple(classes), target, draw(st.booleans()))


anything: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=4,
)
"""Whatever JSON can say."""


@st.composite
def rows(draw: st.DrawFn, signature: Signature) -> dict[str, Any]:
    """A row whose fields are mostly right, sometimes missing, sometimes anything."""
    row: dict[str, Any] = draw(st.dictionaries(names, anything, max_size=2))
    for feature in signature.features:
        match draw(st.integers(0, 9)):
            case 0:
                row.pop(feature.name, None)
            case 1:
                row[feature.name] = draw(anything)
            case 2:
                row[feature.name] = None
            case _:
                row[feature.name] = draw(value_of(feature))
    return row


def value_of(feature: Feature) -> st.SearchStrategy[Any]:
    if feature.kind == "category":
        return st.sampled_from(feature.categories)
    if feature.kind == "boolean":
        return st.booleans()
    if feature.date is not None:
        last = 1.0 if feature.date.is_time else LAST
        form = feature.date
        return st.floats(0.0, last, exclude_max=True).map(lambda code: as_sent(code, form)) | st.sampled_from(
            ("3/12/2001", "Mai 2001")
        )
    return st.floats(*feature.bounds)
