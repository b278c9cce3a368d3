"""Small real models that take a pandas frame or texts, their tables, and the bundles that serve them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import orjson
import pandas as pd
import sklearn
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.manifest import Frame, Libraries, Manifest
from serve_app.artifacts.names import GOLDEN, JOBLIB, METRICS
from serve_app.artifacts.signature import Feature, Signature
from tests.support.models import dumped
from training.frames import frame_of

SIZES = ("S", "M", "L")
REGIONS = ("East", "North", "São Paulo")
ORDERS = Signature(
    (
        Feature("price", nullable=True, low=1.0, high=90.0),
        Feature("pieces", low=1.0, high=9.0),
        Feature("gift", "boolean"),
        Feature("region", "category", categories=REGIONS, nullable=True),
        Feature("size", "category", categories=tuple(sorted(SIZES))),
        Feature("grade", "category", categories=("1", "2", "3")),
        Feature("placed", "date", date=DateForm(("days", "hour"))),
        Feature("note", "text", max_length=200),
    ),
    "classification",
    ("kept", "returned"),
    "answer",
)
"""Every kind of column; the order of the sizes is not that of their letters, and the grades are integers."""


@cache
def orders(rows: int = 300) -> pd.DataFrame:
    """A table of made-up orders, with gaps in a number and in a text."""
    random = np.random.default_rng(5)
    words = np.array(["late", "fine", "broken box", "thank you", "wrong size", "naïve", "again"], object)
    table = pd.DataFrame(
        {
            "price": random.uniform(1, 90, rows).round(2),
            "pieces": random.integers(1, 10, rows),
            "gift": random.random(rows) < 0.3,
            "region": pd.array(random.choice(REGIONS, rows), dtype="str"),
            "size": pd.Categorical(random.choice(SIZES, rows), categories=SIZES, ordered=True),
            "grade": random.integers(1, 4, rows),
            "placed": pd.Timestamp("2025-01-01") + pd.to_timedelta(random.integers(0, 400 * 24 * 3600, rows), unit="s"),
            "note": pd.array([" ".join(random.choice(words, 4)) for _ in range(rows)], dtype="str"),
        }
    )
    table.loc[1::17, "price"] = np.nan
    table.loc[2::13, "region"] = np.nan
    return table


def parts_of_date(frame: Any) -> Any:
    """A step that needs names and timestamps."""
    return np.column_stack([frame["placed"].dt.day_of_week, frame["placed"].dt.hour])


@cache
def orders_model() -> Any:
    """A pipeline that takes the frame of orders: by name, with a vectorizer, own code, and categories with a gap of their own."""
    table = orders()
    prepare = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["price", "pieces"]),
            ("classes", OneHotEncoder(handle_unknown="ignore"), ["region", "grade"]),
            ("sizes", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), ["size"]),
            ("words", TfidfVectorizer(ngram_range=(1, 2)), "note"),
            ("dates", FunctionTransformer(parts_of_date), ["placed"]),
            ("plain", "passthrough", ["gift"]),
        ]
    )
    odd = table.price.fillna(40) / 90 + (table["size"] == "L") + table.note.str.contains("broken") + table.region.isna()
    labels = np.where(odd > 1.4, "returned", "kept")
    return make_pipeline(prepare, LogisticRegression(max_iter=500)).fit(table, labels)


@cache
def text_model() -> Any:
    """A pipeline that takes objects by position, without pandas: a text and two numbers."""
    table = orders()
    rows = table[["note", "pieces", "price"]].astype({"pieces": float}).to_numpy(dtype=object)
    prepare = ColumnTransformer(
        [("words", TfidfVectorizer(ngram_range=(1, 2)), 0), ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), [1, 2])]
    )
    return make_pipeline(prepare, Ridge()).fit(rows, table.pieces + table.note.str.len())


TEXTS = Signature(
    (Feature("note", "text"), Feature("pieces", low=1.0, high=9.0), Feature("price", nullable=True)), "regression", target="length"
)


def json_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as a client sends them: null for a gap, ISO 8601 for a date, categories as texts."""
    rows: list[dict[str, Any]] = orjson.loads(
        table.to_json(orient="records", date_format="iso", date_unit="us", double_precision=15)
    )
    for row in rows:
        for name in ("grade", "placed"):
            if name in row:
                row[name] = str(row[name]).removesuffix("Z")
    return rows


def frame_files(
    model: Any, table: pd.DataFrame, expected: Any, packages: Mapping[str, bytes] | None = None, pickled: bytes | None = None
) -> dict[str, bytes]:
    """The files of a bundle whose golden rows are those of a table, with the answers of the model's author."""
    golden = {"rows": json_of(table), "scores": np.asarray(expected).tolist()}
    return {
        JOBLIB: dumped(model) if pickled is None else pickled,
        METRICS: b"{}",
        GOLDEN: orjson.dumps(golden),
        **(packages or {}),
    }


def frame_manifest(signature: Signature, frame: Frame | None, **changes: Any) -> Manifest:
    libraries = Libraries(scikit_learn=sklearn.__version__, numpy=np.__version__)
    return Manifest(signature=signature, frame=frame, libraries=libraries, **changes)


def orders_bundle() -> tuple[dict[str, bytes], Manifest]:
    """Files and manifest of the bundle of `orders_model`."""
    table, model = orders(), orders_model()
    files = frame_files(model, table[:20], model.predict_proba(table[:20]))
    return files, frame_manifest(ORDERS, frame_of(table, ORDERS))
