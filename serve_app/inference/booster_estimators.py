"""XGBoost, LightGBM and CatBoost on the coded matrix: one estimator for each task around the class of the library.

The estimators take what the signature describes: codes of categories, gaps as NaN, labels of any kind. The library is imported when
such a model is trained or unpickled, and scikit-learn is imported with it.
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
"""Rows from which on a part is held back to stop early: fewer rows would decide by chance."""


class Booster(BaseEstimator):  # type: ignore[misc]
    """A model of a boosting library that learns from coded matrices.

    `categories` are the positions of the columns of categories. With `stopping_rounds`, a share of the rows (`validation_fraction`)
    is not learnt from: the number of trees is the one that was best on it, after which so many further trees were no better.
    `n_jobs` are the threads of the fit; a fitted model computes on one.

    Of a model that was fitted elsewhere, `estimator_` may be the library's own object. Where CatBoost has learnt from texts,
    `texts` are those of the categories, by column of `categories` and code, and `gap` is the text of a gap.
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
        """Learn from coded rows, shape (rows, features). Raises ValueError for what the library refuses."""
        matrix = np.array(X, dtype=np.float64)
        for column in self.categories:
            matrix[matrix[:, column] < 0, column] = np.nan  # a category that training does not know is a gap
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
        """What the library says of each column, shape (features,)."""
        importances: Matrix = np.asarray(self.estimator_.feature_importances_, dtype=np.float64)
        return importances

    @property
    def tree_count_(self) -> int:
        """The number of boosting rounds that the model computes with."""
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
        if package == "catboost":  # its fitted models keep the threads of the fit
            return np.asarray(ask(catboost_rows(matrix, self.categories, self.texts, self.gap), thread_count=1))
        return np.asarray(ask(matrix))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class BoosterClassifier(ClassifierMixin, Booster):  # type: ignore[misc]
    """A classifier; `classes_` are the labels as they came, sorted."""

    def predict_proba(self, X: Any) -> Matrix:
        """Probabilities in the order of `classes_`, shape (rows, classes)."""
        return self._ask("predict_proba", X)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The label of the highest probability, shape (rows,)."""
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
    """The answer of the library's own object, up to the best tree."""
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
    """The rows to learn from and those that say when to stop; None where the fit uses all rows."""
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
        # Only the trees up to the best one stay: whatever reads the model later computes the same.
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
