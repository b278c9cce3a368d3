"""A table with numbers and texts, and pipelines that encode its texts one-hot: for the plain application and for ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from serve_app.artifacts.names import GOLDEN, JOBLIB, METRICS, ONNX
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from tests.support.models import METRICS_OF, bundle_manifest, dumped
from training.convert import convert

NUMBERS = tuple(f"n{at}" for at in range(8))
TEXTS = ("city", "plan")
KNOWN = {"city": tuple(f"city {at:02}" for at in range(20)), "plan": ("basic", "gold", "plus")}
COLUMNS = (*NUMBERS, *TEXTS)
CLASSES = ("leaves", "stays")
ROWS = 2000
MODELS: dict[str, Any] = {
    "one-hot and logistic regression": LogisticRegression(max_iter=1000),
    "one-hot and forest, 200 trees": RandomForestClassifier(200, max_depth=10, random_state=42),
}


def table() -> tuple[pd.DataFrame, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(ROWS, len(NUMBERS))), columns=list(NUMBERS))
    for name, values in KNOWN.items():
        frame[name] = random.choice(values, ROWS)
    score = frame["n0"] + frame["n1"] * frame["n2"] + (frame["plan"] == "gold") + frame["city"].isin(KNOWN["city"][:7])
    return frame, np.where(score + random.normal(0, 0.5, ROWS) > 0.8, *reversed(CLASSES))


def samples() -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table()[0].head(150).to_dict("records")]


def pipeline(model: Any, numbers: Any, texts: Any, categories: Any = "auto") -> Pipeline:
    encoder = OneHotEncoder(categories=categories, handle_unknown="ignore", sparse_output=False)
    return Pipeline(
        [("columns", ColumnTransformer([("numbers", StandardScaler(), numbers), ("texts", encoder, texts)])), ("model", model)]
    )


def on_frame(name: str) -> Any:
    """The pipeline as a notebook has it: it takes a DataFrame."""
    from sklearn.base import clone

    frame, target = table()
    return pipeline(clone(MODELS[name]), list(NUMBERS), list(TEXTS)).fit(frame, target)


def publish(name: str, folder: Path) -> Store:
    """The same pipeline on the coded matrix, in a store, through ONNX."""
    from sklearn.base import clone

    frame, target = table()
    matrix = frame[list(NUMBERS)].to_numpy()
    codes = [frame[text].map({value: at for at, value in enumerate(KNOWN[text])}).to_numpy(dtype=np.float64) for text in TEXTS]
    matrix = np.column_stack([matrix, *codes])
    known = [np.arange(len(KNOWN[text]), dtype=np.float64) for text in TEXTS]
    positions = list(range(len(COLUMNS)))
    model = pipeline(clone(MODELS[name]), positions[: len(NUMBERS)], positions[len(NUMBERS) :], known).fit(matrix, target)
    features = (*(Feature(number) for number in NUMBERS), *(Feature(text, "category", categories=KNOWN[text]) for text in TEXTS))
    signature = Signature(features, "classification", CLASSES, target="stays")
    converted = convert(model, signature, matrix, matrix[:500])
    assert converted.model is not None, converted.facts.reason
    golden = {"rows": samples()[:20], "scores": model.predict_proba(matrix[:20]).tolist()}
    files = {JOBLIB: dumped(model), METRICS: orjson.dumps(METRICS_OF), GOLDEN: orjson.dumps(golden), ONNX: converted.model}
    store = Store(folder)
    store.publish(files, bundle_manifest(signature, onnx=converted.facts.to_dict()))
    return store
