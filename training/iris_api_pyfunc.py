"""The `python_function` of a logged model: takes a table like the training table, and returns the answers of the served model.

MLflow copies this module beside the model and imports it by name where the model is loaded. So it does not import this project, and
its name is unique. A model that takes the table of its fit (FRAME_FILE) is the exception: iris-api builds this table, as while
serving, and must be installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow.sklearn
import numpy as np
import numpy.typing as npt
import pandas as pd

SIGNATURE_FILE = "iris_api_signature.json"
"""The signature of the model, beside MLflow's own description of it."""

FRAME_FILE = "iris_api_frame.json"
"""The columns of the table of the fit, for a model that takes no other table."""

NOT_INSTALLED = (
    "the model takes tables in the form of its fit, and iris-api, which builds them, is not installed: "
    "run pip install 'iris-api[frames]', or send requests to the served application"
)

SLACK = 1e-6
"""A probability below the threshold by at most this much reaches it, as in serving."""


class TableModel:
    """A fitted scikit-learn model behind the signature: `model` takes tables, `signature` is the JSON object of the manifest.

    With `code`, the model takes the result of `code` for a table.
    """

    def __init__(self, model: Any, signature: Mapping[str, Any], code: Callable[[pd.DataFrame], Any] | None = None) -> None:
        self._model = model
        self._signature = signature
        self._code = code or self._columns

    def predict(self, data: pd.DataFrame, params: Mapping[str, Any] | None = None) -> Any:
        """Return the predicted class, value or cluster of each row, or whether it is an outlier, as an array of shape (rows,).

        For several targets or quantiles, the result is a table with a column for each target or level. Columns that are not
        features are ignored. Raises ValueError for a missing column that the model needs, and for a value that serving also
        refuses.
        """
        table = self._code(data)
        several = [output["name"] for output in self._signature.get("outputs", ())] or _levels(self._signature)
        if several:
            return pd.DataFrame(np.asarray(self._model.predict(table)), index=data.index, columns=several)
        if self._signature["task"] == "regression":
            return np.asarray(self._model.predict(table), dtype=np.float64).ravel()
        if self._signature["task"] == "outlier detection":
            return np.asarray(self._model.decision_function(table)) < 0
        if self._signature["task"] == "clustering":
            return np.asarray(self._model.predict(table))
        if not self._signature.get("probabilistic", True):
            return np.asarray(self._model.predict(table))
        labels = _labels(self._signature["classes"])
        known = [str(label) for label in self._model.classes_]
        order = [known.index(str(label)) for label in labels.tolist()]
        predicted: npt.NDArray[Any] = labels[self._positions(self._model.predict_proba(table)[:, order], labels)]
        return predicted

    def _columns(self, data: pd.DataFrame) -> pd.DataFrame:
        features = self._signature["features"]
        missing = frozenset(self._signature.get("missing") or ())
        return pd.DataFrame({feature["name"]: _column(feature, data, missing) for feature in features}, index=data.index)

    def _positions(self, probabilities: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        threshold, positive = self._signature.get("threshold"), self._signature.get("positive")
        if threshold is None:
            return np.asarray(probabilities.argmax(axis=1))
        at = 1 if positive is None else [str(label) for label in labels.tolist()].index(str(positive))
        return np.where(probabilities[:, at] >= threshold - SLACK, at, 1 - at)


def _load_pyfunc(path: str) -> TableModel:
    """Load the model from its folder; `mlflow.pyfunc.load_model` calls this function.

    Raises ImportError before it opens a model that takes the table of its fit, if iris-api is not installed.
    """
    signature = json.loads((Path(path) / SIGNATURE_FILE).read_text(encoding="utf-8"))
    file = Path(path) / FRAME_FILE
    if not file.is_file():
        return TableModel(mlflow.sklearn.load_model(path), signature)
    try:
        from serve_app.inference.coded_tables import framed
    except ImportError:
        raise ImportError(NOT_INSTALLED) from None
    frame = json.loads(file.read_text(encoding="utf-8"))
    model, code = framed(mlflow.sklearn.load_model(path), signature, frame)
    return TableModel(model, signature, code)


def _levels(signature: Mapping[str, Any]) -> list[str]:
    """The levels of several quantiles, as text."""
    levels = signature.get("quantiles", ())
    return [f"{level:g}" for level in levels] if len(levels) > 1 else []


def _labels(classes: list[Any]) -> npt.NDArray[Any]:
    """The classes as an array of their own type."""
    return np.array(classes, dtype=object if isinstance(classes[0], str) else None)


def _column(feature: Mapping[str, Any], data: pd.DataFrame, missing: frozenset[str]) -> pd.Series[Any]:
    """One column in the form of training: float64, booleans or texts, with NaN in the gaps."""
    name, nullable = feature["name"], feature["nullable"]
    if name not in data.columns:
        if not nullable:
            raise ValueError(f"the table has no column '{name}', which the model needs")
        return pd.Series(np.nan, index=data.index, dtype=np.float64 if feature["kind"] == "number" else object)
    column: pd.Series[Any] = data[name]
    texts: pd.Series[Any] = column.astype(object).where(column.notna(), np.nan)
    if nullable:
        categories = frozenset(feature["categories"])
        texts = texts.where(~texts.isin(list(missing - categories)), np.nan)
    gaps = texts.isna()
    if gaps.any() and not nullable:
        row = int(np.flatnonzero(gaps.to_numpy())[0]) + 1
        raise ValueError(f"column '{name}' has no value in row {row}, but the training table had a value in every row")
    if feature["kind"] == "number":
        numbers: pd.Series[Any] = pd.to_numeric(texts).astype(np.float64)
        return numbers
    if feature["kind"] == "boolean" and not gaps.any():
        truths: pd.Series[Any] = texts.astype(bool)
        return truths
    return texts
