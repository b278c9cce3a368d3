"""Small real models for the tests: trained, converted and put into the files of a bundle."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import orjson
import sklearn
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.names import GOLDEN, JOBLIB, MANIFEST, METRICS, ONNX
from serve_app.artifacts.signature import IRIS_BOUNDS, Feature, Signature
from serve_app.artifacts.store import Entry, Store
from serve_app.inference.backends.sklearn_backend import SklearnBackend

IRIS_CLASSES = ("setosa", "versicolor", "virginica")
A_FLOWER = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
"""The first row of the table: a setosa."""
METRICS_OF = {"accuracy": 0.95, "precision": 0.95, "recall": 0.95, "f1_score": 0.95}


@cache
def iris() -> tuple[Matrix, np.ndarray[Any, np.dtype[Any]]]:
    """The iris table: 150 rows of four numbers, and the names of the species."""
    data = load_iris()
    return data.data, data.target_names[data.target]


@cache
def diabetes() -> tuple[Matrix, Matrix]:
    data = load_diabetes()
    return data.data, data.target


def iris_signature(**changes: Any) -> Signature:
    X, _ = iris()
    features = tuple(
        Feature(name, minimum=bounds[0], maximum=bounds[1], low=float(low), high=float(high), example=float(example))
        for (name, bounds), low, high, example in zip(IRIS_BOUNDS.items(), X.min(0), X.max(0), X[0], strict=True)
    )
    return Signature(**{"features": features, "task": "classification", "classes": IRIS_CLASSES, "target": "species", **changes})


def diabetes_signature() -> Signature:
    X, _ = diabetes()
    features = tuple(Feature(f"x{i}", low=float(X[:, i].min()), high=float(X[:, i].max())) for i in range(X.shape[1]))
    return Signature(features=features, task="regression", target="progression")


@cache
def forest(seed: int = 0, trees: int = 10) -> Any:
    return RandomForestClassifier(trees, max_depth=5, random_state=seed).fit(*iris())


@cache
def logistic(strength: float = 1.0) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength)).fit(*iris())


@cache
def without_probabilities() -> Any:
    return RidgeClassifier().fit(*iris())


@cache
def linear() -> Any:
    return LinearRegression().fit(*diabetes())


@cache
def forest_of_numbers() -> Any:
    return RandomForestRegressor(10, max_depth=5, random_state=0).fit(*diabetes())


def dumped(estimator: Any) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(estimator, buffer)
    return buffer.getvalue()


def golden(estimator: Any, signature: Signature, X: Matrix) -> bytes:
    rows = [dict(zip(signature.names, map(float, row), strict=True)) for row in X]
    return orjson.dumps({"rows": rows, "scores": SklearnBackend(estimator, signature).scores(X).tolist()})


@cache
def bundle_files(estimator: Any, signature: Signature | None = None, *, onnx: bool = False) -> Mapping[str, bytes]:
    """The files of a bundle for an estimator that was fitted on plain numbers (iris unless a signature says otherwise).

    Its ONNX form is the one that training tries first.
    """
    signature = signature or iris_signature()
    X = iris()[0] if signature.task == "classification" else diabetes()[0]
    files = {
        JOBLIB: dumped(estimator),
        METRICS: orjson.dumps(METRICS_OF),
        GOLDEN: golden(estimator, signature, X[::10]),
    }
    if not onnx:
        return files
    from training.convert import to_onnx  # not above: a replica that unpickles an estimator of this module has no training

    return {**files, ONNX: to_onnx(estimator, signature, "float64", float64_operators=True)}


def bundle_manifest(signature: Signature | None = None, **changes: Any) -> Manifest:
    """The manifest of an iris model (unless a signature says otherwise); `changes` are keys as JSON has them."""
    signature = signature or iris_signature()
    return Manifest.from_dict(
        {
            "signature": signature.to_dict(),
            "feature_names": signature.names,
            "target_names": signature.classes,
            "mlflow_run_id": "0123456789abcdef0123456789abcdef",
            "libraries": {"scikit-learn": sklearn.__version__, "numpy": np.__version__},
            "onnx": {"rounded": False},
            **changes,
        }
    )


def publish_iris(store: Store, estimator: Any = None, *, onnx: bool = False, **more: Any) -> Entry:
    """Put an iris model (a small forest unless told) into the store; `more` goes to the manifest."""
    return store.publish(bundle_files(forest() if estimator is None else estimator, onnx=onnx), bundle_manifest(**more))


def three_versions(folder: Path) -> Store:
    """A store with three different forests, of which the newest is served."""
    store = Store(folder)
    for number in range(3):
        publish_iris(store, forest(number + 1))
    return store


def logistic_store(folder: Path) -> Store:
    """A store in this folder that serves the logistic regression of the iris flowers, through ONNX."""
    store = Store(folder)
    publish_iris(store, logistic(), onnx=True)
    return store


def write_legacy(folder: Path, estimator: Any = None, **metadata: Any) -> None:
    """The three files of the legacy layout: no signature, classes as numbers."""
    X, names = iris()
    if estimator is None:
        estimator = RandomForestClassifier(5, random_state=1).fit(X, [IRIS_CLASSES.index(name) for name in names])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOBLIB).write_bytes(dumped(estimator))
    (folder / METRICS).write_bytes(orjson.dumps(METRICS_OF))
    described = {
        "feature_names": ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"],
        "target_names": list(IRIS_CLASSES),
        "model_type": type(estimator).__name__,
        "mlflow_run_id": "fedcba9876543210fedcba9876543210",
        "mlflow_model_version": "7",
        **metadata,
    }
    (folder / MANIFEST).write_bytes(orjson.dumps(described))


class SlowModel(KNeighborsClassifier):  # type: ignore[misc]
    """A model with a known cost for each row, which is time and not work: capacity is known, and the machine stays free."""

    def predict_proba(self, X: Matrix) -> Matrix:
        time.sleep(ROW_SECONDS * len(X))
        probabilities: Matrix = super().predict_proba(X)
        return probabilities


ROW_SECONDS = 0.02


@cache
def slow_model() -> Any:
    return SlowModel().fit(*iris())
