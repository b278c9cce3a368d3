"""A model file of XGBoost or LightGBM as a model that takes a table, because the file has only trees and no estimator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import Feature, Label, Signature
from serve_app.errors import UsageError
from training.boosters import NativeModel, on_codes


class CodedBooster:
    """Has the interface of a fitted scikit-learn estimator with column names; `native` is the model of the file."""

    def __init__(self, native: NativeModel, names: Sequence[str], classes: tuple[Label, ...]) -> None:
        self.native = native
        self.feature_names_in_ = np.array(names, dtype=object)
        self.n_features_in_ = len(names)
        self.classes_ = np.array(classes, dtype=object)
        self._estimator_type = "classifier" if native.task == "classification" else "regressor"
        features = tuple(Feature(name) for name in names)
        self._estimator = on_codes(native.estimator, Signature(features, native.task, classes))

    def fit(self, *_: Any) -> None:
        """Do nothing, because the trees exist already."""

    def predict(self, frame: pd.DataFrame) -> npt.NDArray[Any]:
        """Return the labels or values, shape (rows,)."""
        return np.asarray(self._estimator.predict(self._codes(frame)))

    def __getattr__(self, name: str) -> Any:
        if name == "predict_proba" and self.native.task == "classification":
            return lambda frame: self._estimator.predict_proba(self._codes(frame))
        raise AttributeError(name)

    @property
    def categories(self) -> dict[int, tuple[Any, ...] | None]:
        """The values of the codes by position, for columns whose values the file has."""
        return dict(self.native.categories)

    def _codes(self, frame: pd.DataFrame) -> Matrix:
        """The matrix in the form of the fit. Raises ValueError for a category that XGBoost does not know."""
        columns = []
        for at, name in enumerate(self.feature_names_in_):
            known = self.native.categories.get(at)
            if known is None:
                columns.append(frame[name].to_numpy(dtype=np.float64, na_value=np.nan))
                continue
            place = {str(value): float(code) for code, value in enumerate(known)}
            codes = [
                np.nan if gap else place.get(str(value), -1.0) for value, gap in zip(frame[name], frame[name].isna(), strict=True)
            ]
            if self.native.library == "xgboost" and -1.0 in codes:
                raise ValueError(f"the fit did not have a category of '{name}'")
            columns.append(np.array(codes, dtype=np.float64))
        return np.column_stack(columns)


def whole_texts(known: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """The categories, with texts of the sample in place of cut texts.

    XGBoost 3.2 returns only as many bytes of a text as it has characters, so a text with letters outside ASCII loses its end.
    """
    cut = {
        text.encode()[: len(text)].decode(errors="ignore"): text for text in values if isinstance(text, str) and not text.isascii()
    }
    return [cut.get(value, value) if isinstance(value, str) and value not in values else value for value in known]


def with_names(native: NativeModel, sample: pd.DataFrame, target: str | None) -> Any:
    """The model of a file as an estimator; names and classes that the file lacks come from the sample. Raises UsageError."""
    if native.library == "catboost":
        return native.estimator
    others = [str(name) for name in sample.columns if str(name) != target]
    names = list(native.names) if native.names is not None else others
    if len(names) != len(native.kinds):
        raise UsageError(f"the model takes {len(native.kinds)} columns, but the sample has {len(names)} besides the target")
    categories = {at: tuple(whole_texts(known, _values(sample, names[at]))) for at, known in native.categories.items()}
    native = replace(native, categories=categories)
    classes = native.classes or ()
    if native.task == "classification" and target is not None and target in sample.columns:
        known = sample[target].dropna()
        labels = sorted({value.item() if hasattr(value, "item") else value for value in known.unique()}, key=str)
        if labels and all(isinstance(label, bool | int | float) for label in labels):
            labels = sorted(labels)
        if len(labels) == native.n_classes:
            classes = tuple(labels)
        elif native.classes is None:
            raise UsageError(
                f"the model has {native.n_classes} classes, but '{target}' has {len(labels)}: give rows of every class"
            )
    if native.task == "classification" and not classes:
        classes = tuple(range(native.n_classes))
    return CodedBooster(native, names, classes)


def _values(sample: pd.DataFrame, name: str) -> list[Any]:
    values: list[Any] = sample[name].dropna().unique().tolist() if name in sample.columns else []
    return values
