"""Fitted models for the contract of the protocols, and a thousand rows for each, which every protocol must answer alike.

The models are trees: the answer of a row does not depend, in its last bit, on the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import sklearn
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingRegressor
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.manifest import Libraries, Manifest
from serve_app.artifacts.names import GOLDEN, JOBLIB, METRICS
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from tests.support.models import dumped

ROWS = 1000
CITIES = ('"Old", Town', "Bern", "São Paulo", "東京 🚚")
CLASSES = ("ja", "nein", "später 🕐")

MIXED = Signature(
    (
        Feature("age", "number", 0.0, 120.0, nullable=True),
        Feature("size", "number"),
        Feature("share", "number", 0.1, 0.9),
        Feature("city", "category", categories=CITIES, nullable=True),
        Feature("color", "category", categories=("blue", "grün")),
        Feature("member", "boolean"),
        Feature("agreed", "boolean", nullable=True),
        Feature("placed", "date", date=DateForm()),
        Feature("seen", "date", nullable=True, date=DateForm(("days", "hour"), zoned=True)),
        Feature("note", "text", nullable=True, max_length=40),
    ),
    "classification",
    CLASSES,
    "answer",
)
"""Every kind of column, with and without gaps, and labels beyond ASCII."""

NUMBERS = Signature(
    (
        Feature("age", "number", 0.0, 120.0, nullable=True),
        Feature("size", "number"),
        Feature("share", "number", 0.1, 0.9),
        Feature("member", "boolean"),
        Feature("agreed", "boolean", nullable=True),
        Feature("sent", "date", date=DateForm(("days",), ("epoch s",))),
    ),
    "regression",
    target="price",
)
"""Columns whose values are numbers, so that one tensor holds them."""

_EDGES = (0.1, 0.9, 0.30000000000000004, 0.1 + 1e-16, 1e-1, 0.5, 1 / 3)
_SIZES = (0.0, -0.0, 5e-324, 1e-300, -1e30, 3.4028234663852886e38, 123456789.123456789, 2.0**53 + 2, 16777217.0, -1 / 3)
_NOTES = ("", "naïve", 'say "so", twice', "two\nlines", "x" * 40, "🚚" * 40, "a;b\tc", "null", "0.1", "true", "\u2028", "'=1+1")


class Case(NamedTuple):
    """A model, and the rows that it is asked for."""

    signature: Signature
    model: Any
    rows: list[dict[str, Any]]


def _filled(X: Any) -> list[str]:
    """Texts, empty where one is missing."""
    return [value if isinstance(value, str) else "" for value in np.ravel(X)]


def _floats(X: Any) -> Any:
    return np.arcsinh(np.asarray(X).astype(np.float64))  # trees add up a column in float32


def mixed_rows(count: int = ROWS) -> list[dict[str, Any]]:
    """Rows of MIXED: usual values, edges of the contract, gaps, and texts that formats have to quote."""
    random = np.random.default_rng(17)
    rows = []
    for at in range(count):
        day = np.datetime64("2020-01-01") + int(random.integers(0, 2000))
        minute = f"{random.integers(0, 24):02d}:{random.integers(0, 60):02d}:00"
        rows.append(
            {
                "age": None if at % 7 == 3 else float(random.uniform(0, 120)) if at % 5 else (0.0, 120.0, 0.1)[at % 3],
                "size": _SIZES[at % len(_SIZES)] if at % 3 == 0 else float(random.normal() * 10.0 ** random.integers(-9, 9)),
                "share": _EDGES[at % len(_EDGES)] if at % 4 == 0 else float(random.uniform(0.1, 0.9)),
                "city": None if at % 11 == 5 else CITIES[int(random.integers(len(CITIES)))],
                "color": ("blue", "grün")[int(random.integers(2))],
                "member": bool(random.integers(2)),
                "agreed": None if at % 6 == 1 else bool(random.integers(2)),
                "placed": str(day),
                "seen": None if at % 9 == 2 else f"{day}T{minute}{('Z', '+02:00')[at % 2]}",
                "note": None if at % 8 == 6 else _NOTES[at % len(_NOTES)],
            }
        )
    return rows


def number_rows(count: int = ROWS) -> list[dict[str, Any]]:
    """Rows of NUMBERS."""
    random = np.random.default_rng(18)
    return [
        {
            **{name: row[name] for name in ("age", "size", "share", "member", "agreed")},
            "sent": int(random.integers(0, 2_000_000_000)),
        }
        for row in mixed_rows(count)
    ]


@cache
def mixed() -> Case:
    """A classifier of MIXED."""
    rows = mixed_rows()
    X = read_rows(MIXED, rows)
    prepare = ColumnTransformer(
        [
            ("numbers", FunctionTransformer(_floats), list(range(9))),
            ("words", make_pipeline(FunctionTransformer(_filled), HashingVectorizer(n_features=8, alternate_sign=False)), [9]),
        ],
        sparse_threshold=0.0,
    )
    odd = [(row["age"] or 0) / 40 + row["share"] + (row["city"] is None) + bool(row["note"]) for row in rows]
    y = np.array(CLASSES, object)[np.clip(np.floor(odd), 0, 2).astype(int)]
    return Case(MIXED, make_pipeline(prepare, ExtraTreesClassifier(12, max_depth=9, random_state=3)).fit(X, y), rows)


@cache
def without_gaps_in_texts() -> Case:
    """The same classifier; no text of its rows is missing."""
    signature, model, rows = mixed()
    given = {"city": CITIES[0], "seen": "2024-02-29T23:59:00Z", "note": "given"}
    return Case(signature, model, [{**row, **{name: row[name] or value for name, value in given.items()}} for row in rows])


@cache
def numbers() -> Case:
    """A regression of NUMBERS."""
    rows = number_rows()
    X = read_rows(NUMBERS, rows)
    y = np.nan_to_num(X[:, 0]) + 50 * X[:, 2] + np.arcsinh(X[:, 1])
    return Case(NUMBERS, HistGradientBoostingRegressor(max_iter=20, random_state=0).fit(X, y), rows)


def publish_case(store: Store, case: Case) -> None:
    """Put the model of a case into a store."""
    signature, model, rows = case
    X = read_rows(signature, rows[:20])
    scores = model.predict_proba(X) if signature.classes else model.predict(X)
    files = {
        JOBLIB: dumped(model),
        METRICS: b"{}",
        GOLDEN: orjson.dumps({"rows": rows[:20], "scores": np.asarray(scores).tolist()}),
    }
    libraries = Libraries(scikit_learn=sklearn.__version__, numpy=np.__version__)
    store.publish(files, Manifest(signature=signature, libraries=libraries))


def as_float32(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose numbers are those that float32 holds, inside the bounds, which are rounded too."""
    rounded = {name: float(np.float32(value)) if type(value) in (int, float) else value for name, value in row.items()}
    return {**rounded, "share": min(max(rounded["share"], 0.1), 0.9)}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too small": ({"age": -0.5}, "out_of_range"),
    "too large": ({"age": 121}, "out_of_range"),
    "just above the bound": ({"age": math.nextafter(120.0, 121.0)}, "out_of_range"),
    "just below the bound": ({"share": math.nextafter(0.1, 0.0)}, "out_of_range"),
    "beyond float32": ({"size": 3.5e38}, "out_of_range"),
    "null": ({"size": None}, "type"),
    "no number": ({"size": "wide"}, "type"),
    "a number of another script": ({"size": "\u0665"}, "type"),
    "a boolean for a number": ({"share": True}, "type"),
    "a list for a number": ({"share": [0.5, 0.5]}, "type"),
    "an object for a number": ({"share": {"a": 1}}, "type"),
    "an unknown category": ({"city": "Atlantis"}, "unknown_category"),
    "a category in another case": ({"city": "bern"}, "unknown_category"),
    "another form of the same letters": ({"city": "Sa\u0303o Paulo"}, "unknown_category"),
    "a number for a category": ({"city": 7}, "type"),
    "null for a category": ({"color": None}, "type"),
    "a boolean for a category": ({"color": True}, "type"),
    "null for a boolean": ({"member": None}, "type"),
    "a word for a boolean": ({"member": "maybe"}, "type"),
    "two for a boolean": ({"agreed": 2}, "type"),
    "a day that is none": ({"placed": "2025-02-30"}, "date"),
    "a word for a date": ({"placed": "tomorrow"}, "date"),
    "null for a date": ({"placed": None}, "type"),
    "a boolean for a date": ({"placed": True}, "date"),
    "a date without its zone": ({"seen": "2025-01-01T10:00:00"}, "date"),
    "a text that is too long": ({"note": "🚚" * 41}, "too_long"),
    "a number for a text": ({"note": 8}, "type"),
    "several": ({"age": 121.0, "share": 2.0, "city": "Atlantis"}, ""),
}
"""What is wrong with a row of MIXED: its values, and the code of the refusal."""
