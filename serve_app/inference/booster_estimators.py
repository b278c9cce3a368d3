"""XGBoost, LightGBM and CatBoost on the coded matrix: one estimator for each task, which wraps the class of the library.

The estimators take the values that the signature describes: codes of categories, NaN for missing values, labels of any kind.
Training or unpickling such a model imports the library and scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.model_selection import train_test_split

from serve_app.artifacts.matrix import Matrix
from serve_app.inference.backends.catboost_rows import catboost_rows

LEAST_ROWS = 500
"""Minimum number of rows for early stopping; the result on fewer rows would depend on chance."""


class Booster(BaseEstimator):  # type: ignore[misc]
    """A model of a boosting library that learns from coded matrices.

    `categories` are the positions of the columns of categories. With `stopping_rounds`, the fit holds out a share of the rows
    (`validation_fraction`). It stops when that number of further trees brings no improvement on these rows, and keeps the best
    number of trees. `n_jobs` is the number of threads of the fit; a fitted model computes on one thread.

    For a model that was fitted elsewhere, `estimator_` may be the library's own object. If CatBoost was fitted on texts, `texts`
    are those of the categories, by column of `categories` and code, and `gap` is the text of a missing value.
    """

    def __init__(
        self,
        estimator: Any = None,
        categories: Sequence[int] = (),
        stopping_rounds: int | None = None,
        validation_fraction: float = 0.1,
        random_state: int | None = None,
        n_jobs: int | None = None,
        texts: Sequence[Sequence[str]] = (),
        gap: str | None = None,
    ) -> None:
        self.estimator = estimator
        self.categories = categories
        self.stopping_rounds = stopping_rounds
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.texts = texts
        self.gap = gap

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the model on coded rows, shape (rows, features). Raises ValueError when the library refuses them."""
        matrix = np.array(X, dtype=np.float64)
        for column in self.categories:
            matrix[matrix[:, column] < 0, column] = np.nan  # an unknown category counts as missing
        target = self._coded(np.asarray(y))
        estimator = clone(self.estimator)
        module = library(estimator)
        try:
            _FITS[module](estimator, matrix, target, self, _validation_rows(target, self))
        except Exception as error:
            if isinstance(error, MemoryError) or type(error).__module__.partition(".")[0].strip("_") != module:
                raise
            raise ValueError(str(error)) from error
        self.estimator_ = estimator
        self.n_features_in_ = matrix.shape[1]
        return self

    @property
    def feature_importances_(self) -> Matrix:
        """The library's importance of each column, shape (features,)."""
        importances: Matrix = np.asarray(self.estimator_.feature_importances_, dtype=np.float64)
        return importances

    @property
    def tree_count_(self) -> int:
        """The number of boosting rounds that the model uses."""
        package = library(self)
        if package == "xgboost":
            return int(self.estimator_.get_booster().num_boosted_rounds())
        if package == "lightgbm":
            return int(self.estimator_.best_iteration_ or self.estimator_.n_estimators_)
        return int(self.estimator_.tree_count_)

    def _coded(self, target: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return target

    def _ask(self, method: str, X: Any) -> Matrix:
        """The answer of the library's estimator, computed on one thread."""
        matrix = np.asarray(X, dtype=np.float64)
        package = library(self)
        if type(self.estimator_).__name__ == "Booster":
            return _ask_booster(self.estimator_, package, matrix, probabilities=method == "predict_proba")
        ask = getattr(self.estimator_, method)
        if package == "catboost":  # a fitted model keeps the thread count of the fit
            return np.asarray(ask(catboost_rows(matrix, self.categories, self.texts, self.gap), thread_count=1))
        return np.asarray(ask(matrix))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class BoosterClassifier(ClassifierMixin, Booster):  # type: ignore[misc]
    """A classifier; `classes_` are the labels of the training data, sorted."""

    def predict_proba(self, X: Any) -> Matrix:
        """Probabilities in the order of `classes_`, shape (rows, classes)."""
        return self._ask("predict_proba", X)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The label with the highest probability, shape (rows,)."""
        labels: npt.NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def _coded(self, target: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self.classes_, codes = np.unique(target, return_inverse=True)
        return codes


class BoosterRegressor(RegressorMixin, Booster):  # type: ignore[misc]
    """A regressor."""

    def predict(self, X: Any) -> Matrix:
        """Values, shape (rows,)."""
        return self._ask("predict", X).astype(np.float64)


def library(estimator: Any) -> str:
    """The library of a model: `xgboost`, `lightgbm`, `catboost` or another package."""
    if isinstance(estimator, Booster):
        return library(getattr(estimator, "estimator_", estimator.estimator))
    packages = [kind.__module__.partition(".")[0] for kind in type(estimator).__mro__]
    return next((package for package in packages if package in _FITS), packages[0])


def _ask_booster(booster: Any, package: str, matrix: Matrix, *, probabilities: bool) -> Matrix:
    """The answer of the library's own object, with the trees up to the best iteration."""
    if package == "lightgbm":
        answer = np.asarray(booster.predict(matrix, num_threads=1))
    else:
        import xgboost

        best = booster.attr("best_iteration")
        trees = (0, 0 if best is None else int(best) + 1)
        rows = xgboost.DMatrix(matrix, nthread=1, feature_types=booster.feature_types, enable_categorical=True)
        answer = booster.predict(rows, iteration_range=trees, validate_features=False)
    return np.stack((1.0 - answer, answer), axis=1) if probabilities and answer.ndim == 1 else answer


def _validation_rows(target: npt.NDArray[Any], booster: Booster) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]] | None:
    """The rows for training and the rows for early stopping; None when the fit uses all rows."""
    if not booster.stopping_rounds or len(target) < LEAST_ROWS:
        return None
    classes = isinstance(booster, BoosterClassifier)
    rows = np.arange(len(target))
    if not classes or np.bincount(target).min() >= 2:
        train, held_back = train_test_split(
            rows, test_size=booster.validation_fraction, random_state=booster.random_state, stratify=target if classes else None
        )
        if not classes or len(np.unique(target[train])) == len(np.unique(target)):
            return train, held_back
    return None


def _fit_xgboost(estimator: Any, matrix: Matrix, target: Any, booster: Booster, parts: Any) -> None:
    kinds = ["c" if column in booster.categories else "q" for column in range(matrix.shape[1])]
    estimator.set_params(n_jobs=booster.n_jobs or 1)
    if booster.categories:
        estimator.set_params(enable_categorical=True, feature_types=kinds)
    if parts is None:
        estimator.fit(matrix, target)
    else:
        train, held_back = parts
        estimator.set_params(early_stopping_rounds=booster.stopping_rounds)
        estimator.fit(matrix[train], target[train], eval_set=[(matrix[held_back], target[held_back])], verbose=False)
        # Keep only the trees up to the best one, so every reader of the model computes the same.
        best = estimator.get_booster()[: estimator.best_iteration + 1]
        estimator.load_model(best.save_raw("ubj"))
    estimator.set_params(n_jobs=1)
    estimator.get_booster().set_param({"nthread": 1})


def _fit_lightgbm(estimator: Any, matrix: Matrix, target: Any, booster: Booster, parts: Any) -> None:
    import lightgbm

    estimator.set_params(n_jobs=booster.n_jobs or 1)
    columns: Any = list(booster.categories) or "auto"
    if parts is None:
        estimator.fit(matrix, target, categorical_feature=columns)
    else:
        train, held_back = parts
        estimator.fit(
            matrix[train],
            target[train],
            eval_X=matrix[held_back],
            eval_y=target[held_back],
            categorical_feature=columns,
            callbacks=[lightgbm.early_stopping(booster.stopping_rounds, verbose=False)],
        )
    estimator.set_params(n_jobs=1)


def _fit_catboost(estimator: Any, matrix: Matrix, target: Any, booster: Booster, parts: Any) -> None:
    estimator.set_params(thread_count=booster.n_jobs or 1)
    columns = list(booster.categories) or None
    if parts is None:
        estimator.fit(catboost_rows(matrix, booster.categories), target, cat_features=columns)
    else:
        train, held_back = parts
        estimator.fit(
            catboost_rows(matrix[train], booster.categories),
            target[train],
            cat_features=columns,
            eval_set=(catboost_rows(matrix[held_back], booster.categories), target[held_back]),
            early_stopping_rounds=booster.stopping_rounds,
            use_best_model=True,
        )


_FITS = {"xgboost": _fit_xgboost, "lightgbm": _fit_lightgbm, "catboost": _fit_catboost}
