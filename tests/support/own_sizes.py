"""A classifier of a model's author: it has no ONNX form, and a pickle names it by this module."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class Sizes(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Two classes, by the column `size` of a table."""

    def fit(self, X: Any, y: Any) -> Sizes:
        self.classes_, self.feature_names_in_, self.n_features_in_ = np.unique(y), np.array(["size"], dtype=object), 1
        return self

    def predict(self, X: Any) -> Any:
        return self.classes_[(X["size"].to_numpy() > 10.0).astype(int)]
