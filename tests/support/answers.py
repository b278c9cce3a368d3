"""Fitted models of every shape of answers, with the rows that they learnt from, and what they answer themselves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import orjson
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import Birch, KMeans, MeanShift, MiniBatchKMeans
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, QuantileRegressor, Ridge, RidgeClassifier
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier, MultiOutputRegressor, RegressorChain
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler
from sklearn.svm import SVC, OneClassSVM
from sklearn.tree import DecisionTreeClassifier

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.names import GOLDEN, JOBLIB, METRICS, ONNX
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Entry, Store
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from tests.support.models import dumped
from training.answer_shape import answer_shape
from training.convert import convert

NAMES = ("temperature", "pressure", "rpm", "age")
TARGETS = ("load", "grade", "colour")


@dataclass(frozen=True)
class Fitted:
    """A fitted model; `targets` are the names of several targets."""

    estimator: Any
    targets: tuple[str, ...] = ()


@cache
def rows() -> Matrix:
    """400 rows of four numbers: two clouds, and twenty rows far from both."""
    random = np.random.default_rng(7)
    X = random.normal(size=(400, 4)) + np.where(np.arange(400) % 2, 4.0, 0.0)[:, None]
    X[::20] += random.normal(0, 6, (20, 4))
    return X


@cache
def numbers() -> Matrix:
    """Three numbers for each row."""
    X, random = rows(), np.random.default_rng(8)
    return np.column_stack([X[:, 0], X[:, 1] * 2 + 1, X[:, 2] - X[:, 3]]) + random.normal(0, 0.3, (len(X), 3))


@cache
def classes() -> Any:
    """Three targets of two, three and two classes, as texts."""
    Y = numbers()
    columns = [np.where(Y[:, 0] > 2, "high", "low"), np.digitize(Y[:, 1], [0, 6]), np.where(Y[:, 2] > 0, "red", "blue")]
    return np.column_stack([column.astype(str) for column in columns])


def _fit(estimator: Any, y: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # SVC(probability=True) is deprecated, and models of it are published
        return estimator.fit(rows()) if y is None else estimator.fit(rows(), y)


@cache
def fitted(name: str) -> Fitted:
    """The model of this name; it is fitted once."""
    Y, C = numbers(), classes()
    indicators = (np.median(Y, axis=0) < Y).astype(int)
    forest, scaled = RandomForestClassifier(20, random_state=0), StandardScaler()
    by_threshold = FixedThresholdClassifier(LogisticRegression(), threshold=0.2, pos_label="high", response_method="predict_proba")
    build: dict[str, Any] = {
        "isolation forest": lambda: Fitted(_fit(make_pipeline(RobustScaler(), IsolationForest(random_state=0)))),
        "isolation forest on columns": lambda: Fitted(_fit(IsolationForest(n_estimators=20, max_features=0.5, random_state=1))),
        "one-class SVM": lambda: Fitted(_fit(make_pipeline(scaled, OneClassSVM(nu=0.05)))),
        "local outlier factor": lambda: Fitted(_fit(LocalOutlierFactor(novelty=True))),
        "elliptic envelope": lambda: Fitted(_fit(EllipticEnvelope(random_state=0))),
        "k-means": lambda: Fitted(_fit(make_pipeline(scaled, KMeans(3, random_state=0)))),
        "mini-batch k-means": lambda: Fitted(_fit(MiniBatchKMeans(4, random_state=0))),
        "mean shift": lambda: Fitted(_fit(MeanShift())),
        "birch": lambda: Fitted(_fit(Birch(n_clusters=3))),
        "gaussian mixture": lambda: Fitted(_fit(GaussianMixture(3, random_state=0))),
        "forest of numbers": lambda: Fitted(_fit(RandomForestRegressor(20, random_state=0), Y), TARGETS),
        "extra trees of numbers": lambda: Fitted(_fit(ExtraTreesRegressor(20, random_state=0), Y), TARGETS),
        "ridge of numbers": lambda: Fitted(_fit(make_pipeline(scaled, Ridge()), Y), TARGETS),
        "several regressors": lambda: Fitted(_fit(MultiOutputRegressor(GradientBoostingRegressor(n_estimators=20)), Y), TARGETS),
        "chain of regressors": lambda: Fitted(_fit(RegressorChain(Ridge()), Y), TARGETS),
        "forest of classes": lambda: Fitted(_fit(forest, C), TARGETS),
        "tree of classes": lambda: Fitted(_fit(DecisionTreeClassifier(max_depth=4, random_state=0), C), TARGETS),
        "several classifiers": lambda: Fitted(_fit(MultiOutputClassifier(LogisticRegression()), C), TARGETS),
        "several labels": lambda: Fitted(_fit(MultiOutputClassifier(RidgeClassifier()), C), TARGETS),
        "chain of classifiers": lambda: Fitted(_fit(ClassifierChain(LogisticRegression()), indicators), TARGETS),
        "indicators": lambda: Fitted(_fit(OneVsRestClassifier(LogisticRegression()), indicators), TARGETS),
        "quantile of boosting": lambda: Fitted(_fit(GradientBoostingRegressor(loss="quantile", alpha=0.9), Y[:, 0])),
        "quantile of histograms": lambda: Fitted(_fit(HistGradientBoostingRegressor(loss="quantile", quantile=0.1), Y[:, 0])),
        "quantile of a line": lambda: Fitted(_fit(QuantileRegressor(quantile=0.5, alpha=0), Y[:, 0])),
        "three quantiles": lambda: Fitted(_fit(Quantiles((0.1, 0.5, 0.9)), Y[:, 0])),
        "two quantiles": lambda: Fitted(_fit(Quantiles((0.1, 0.9)), Y[:, 0])),
        "calibrated": lambda: Fitted(_fit(CalibratedClassifierCV(forest, ensemble=False), C[:, 0])),
        "threshold": lambda: Fitted(_fit(by_threshold, C[:, 0])),
        "label of a margin": lambda: Fitted(_fit(SVC(probability=True, random_state=0), C[:, 1])),
    }
    model: Fitted = build[name]()
    return model


class Quantiles(sklearn.base.RegressorMixin, sklearn.base.BaseEstimator):  # type: ignore[misc]
    """One boosted regressor for each level, which `objective` and `quantile_alpha` tell as XGBoost does."""

    def __init__(self, quantile_alpha: Sequence[float] = (0.5,), objective: str = "reg:quantileerror") -> None:
        self.quantile_alpha = quantile_alpha
        self.objective = objective

    def fit(self, X: Matrix, y: Matrix) -> Quantiles:
        self.models_ = [
            GradientBoostingRegressor(loss="quantile", alpha=level, n_estimators=20, random_state=0).fit(X, y)
            for level in self.quantile_alpha
        ]
        self.n_features_in_ = X.shape[1]
        return self

    def predict(self, X: Matrix) -> Matrix:
        return np.column_stack([model.predict(X) for model in self.models_])


MODELS = (
    *("isolation forest", "isolation forest on columns", "one-class SVM", "local outlier factor", "elliptic envelope"),
    *("k-means", "mini-batch k-means", "mean shift", "birch", "gaussian mixture"),
    *("forest of numbers", "extra trees of numbers", "ridge of numbers", "several regressors", "chain of regressors"),
    *("forest of classes", "tree of classes", "several classifiers", "several labels", "chain of classifiers", "indicators"),
    *("quantile of boosting", "quantile of histograms", "quantile of a line", "three quantiles", "two quantiles"),
    *("calibrated", "threshold", "label of a margin"),
)
"""The names of all models."""


def features() -> tuple[Feature, ...]:
    X = rows()
    ranges = zip(NAMES, X.min(0).tolist(), X.max(0).tolist(), X[0].tolist(), strict=True)
    return tuple(Feature(name, low=low, high=high, example=example) for name, low, high, example in ranges)


def signature_of(model: Fitted) -> Signature:
    shape = answer_shape(model.estimator, rows()[:100], targets=model.targets)
    return shape.signature(features(), ", ".join(model.targets) or "answer")


def json_rows(X: Matrix) -> list[dict[str, float]]:
    return [dict(zip(NAMES, row, strict=True)) for row in X.tolist()]


def publish(store: Store, model: Fitted, signature: Signature | None = None, *, onnx: bool = False) -> Entry:
    """Publish the model with golden rows and a drift reference; with `onnx`, the proven ONNX form is part of the bundle."""
    signature = signature or signature_of(model)
    X = rows()
    scores = SklearnBackend(model.estimator, signature).scores(X)
    files = {
        JOBLIB: dumped(model.estimator),
        METRICS: b"{}",
        GOLDEN: orjson.dumps({"rows": json_rows(X[::10]), "scores": scores[::10].tolist()}),
    }
    manifest = {
        "signature": signature.to_dict(),
        "libraries": {"scikit-learn": sklearn.__version__, "numpy": np.__version__},
    }
    if onnx:
        converted = convert(model.estimator, signature, X, X[::2])
        assert converted.model is not None, converted.facts.reason
        files[ONNX] = converted.model
        manifest["onnx"] = converted.facts.to_dict()
    return store.publish(files, Manifest.from_dict(orjson.loads(orjson.dumps(manifest))))


CONVERTED = (
    *("isolation forest", "isolation forest on columns", "one-class SVM", "k-means", "mini-batch k-means", "gaussian mixture"),
    *("forest of numbers", "extra trees of numbers", "ridge of numbers", "several regressors", "forest of classes"),
    *("several classifiers", "quantile of boosting", "quantile of histograms", "quantile of a line", "calibrated"),
)
"""The models that have a proven ONNX form."""
