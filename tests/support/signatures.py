"""Strategies: any signature, any row for it, right or wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from serve_app.artifacts.dates import LAST, DateForm, as_sent
from serve_app.artifacts.signature import Coverage, Feature, Label, Output, Signature, label_text

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
    kind = draw(st.sampled_from(("number", "boolean", "category", "date", "text")))
    nullable = draw(st.booleans())
    if kind == "category":
        categories = tuple(sorted(draw(st.sets(names, min_size=1, max_size=4))))
        return Feature(draw(name), "category", categories=categories, nullable=nullable)
    if kind == "boolean":
        return Feature(draw(name), "boolean", nullable=nullable)
    if kind == "text":
        return Feature(draw(name), "text", nullable=nullable, max_length=draw(st.sampled_from((None, 1, 6))))
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
    return Signature(tuple(columns), target=draw(st.text(max_size=8)), **draw(shapes()))


coverages = st.none() | st.builds(Coverage, st.floats(0.01, 0.99), st.floats(0.0, 1e6))


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """The part of a signature that says what comes out."""
    classes = tuple(draw(st.lists(labels, min_size=2, max_size=4, unique_by=label_text)))
    match draw(st.sampled_from(("number", "class", "label", "quantiles", "outlier", "clusters", "numbers", "classes"))):
        case "number":
            return {"task": "regression", "coverage": draw(coverages)}
        case "class":
            return {"task": "classification", "classes": classes, "coverage": draw(coverages)}
        case "label":
            return {"task": "classification", "classes": classes, "probabilistic": False}
        case "quantiles":
            levels = draw(st.sets(st.floats(0.001, 0.999), min_size=1, max_size=4))
            return {"task": "regression", "quantiles": tuple(sorted(levels))}
        case "outlier":
            return {"task": "outlier detection"}
        case "clusters":
            kind = draw(
                st.sampled_from(({"probabilistic": True}, {"probabilistic": False}, {"probabilistic": False, "distance": True}))
            )
            return {"task": "clustering", "classes": tuple(range(draw(st.integers(1, 4)))), **kind}
        case "numbers":
            targets = draw(st.lists(names, min_size=2, max_size=3, unique=True))
            return {"task": "regression", "outputs": tuple(Output(name) for name in targets)}
        case _:
            probabilistic = draw(st.booleans())
            return {
                "task": "classification",
                "outputs": (Output("a", classes, probabilistic), Output("b b", (0, 1), probabilistic)),
            }


@st.composite
def scores_of(draw: st.DrawFn, signature: Signature) -> Any:
    """Scores of a few rows, as a model with this signature gives them."""
    rows = draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = random.uniform(0, 1, (rows, *signature.score_shape))
    parts = signature.parts if signature.outputs else ((slice(None), signature),)
    for at, part in parts:
        if part.classes and not (part.task == "classification" and part.probabilistic):
            positions = random.integers(0, len(part.classes), rows)
            if part.task == "clustering":
                scores[:, 0] = positions
            elif signature.outputs:
                scores[:, at] = positions
            else:
                scores[:] = positions
    if draw(st.booleans()):
        scores = np.asfortranarray(scores)
    return scores.astype(draw(st.sampled_from((np.float64, np.float32))))


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
    if feature.kind == "text":
        return st.text(st.characters(codec="utf-8"), max_size=7) | st.sampled_from(("NA", ""))
    if feature.date is not None:
        last = 1.0 if feature.date.is_time else LAST
        form = feature.date
        return st.floats(0.0, last, exclude_max=True).map(lambda code: as_sent(code, form)) | st.sampled_from(
            ("3/12/2001", "Mai 2001")
        )
    return st.floats(*feature.bounds)
