"""A model whose features, classes and reasons have names that a page must show and must not obey."""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd
from sklearn.linear_model import LogisticRegression

from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Entry, Store
from tests.support.models import bundle_files, bundle_manifest, iris
from training.reference import reference

MARKUP = "<img src=x onerror=alert(1)>"
QUOTES = "\"'><script>alert(1)</script>{{ 7*7 }}"
TURNING = "right\u202eot tfel"
HEBREW = "אורך עלה"
LONG = "n" * 300
NAMES = (MARKUP, QUOTES, HEBREW, LONG)
CLASSES = (f"{MARKUP}a", TURNING, LONG)


def hostile_signature() -> Signature:
    """Four numbers and three classes, all with such names."""
    X, _ = iris()
    features = tuple(
        Feature(name, low=float(low), high=float(high), example=float(example))
        for name, low, high, example in zip(NAMES, X.min(0), X.max(0), X[0], strict=True)
    )
    return Signature(features=features, task="classification", classes=tuple(sorted(CLASSES)), target=QUOTES)


@cache
def hostile_model() -> Any:
    """A logistic regression of these classes."""
    X, y = iris()
    names = dict(zip(sorted(set(y)), sorted(CLASSES), strict=True))
    return LogisticRegression(max_iter=500).fit(X, [names[label] for label in y])


def publish_hostile(store: Store) -> Entry:
    """Put the model into the store, with a verdict that refused it and a reason that is markup as well."""
    signature = hostile_signature()
    X, _ = iris()
    labels = hostile_model().predict(X)
    files = bundle_files(hostile_model(), signature)
    manifest = bundle_manifest(
        signature,
        model_type=MARKUP,
        trained_at="2026-01-31T12:00:00+00:00",
        forced=True,
        data={"name": QUOTES, "sha256": "0" * 64, "rows": 150, "columns": 5, "held_out": 30},
        verdict={"accepted": False, "reasons": [f"accuracy of {MARKUP} is below {TURNING}"], "comparison": {}},
        reference=reference(pd.DataFrame(X, columns=list(signature.names)), labels, signature),
    )
    return store.publish(files, manifest)
