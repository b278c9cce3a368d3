"""The given model, called like its author calls it: with a table, or with an array if it was fitted on an array."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.artifacts.decision import predicted_positions
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Feature, Label, Signature
from serve_app.errors import UsageError
from serve_app.inference.backends.estimator_scores import estimator_scores
from serve_app.inference.backends.frame_backend import CALLS
from training.answer_shape import AnswerShape, answer_shape
from training.model_columns import ModelColumns, model_columns


@dataclass(frozen=True, slots=True)
class Original:
    """A fitted model and its columns. `model` has no search and no threshold; `threshold` and `positive` hold the latter."""

    whole: Any
    model: Any
    columns: ModelColumns
    threshold: float | None = None
    positive: Label | None = None

    def labels(self, frame: pd.DataFrame) -> npt.NDArray[Any]:
        """The result of the model's `predict`, shape (rows,), or (rows, targets)."""
        return np.asarray(Asked(self.whole, self.columns).predict(frame))

    def shape(self, frame: pd.DataFrame, targets: Sequence[str]) -> AnswerShape:
        """The shape of the answers to these rows; `targets` are the names of several targets. Raises UsageError."""
        shape = answer_shape(Asked(self.whole, self.columns), frame, targets=targets)
        if self.threshold is None or len(shape.classes) != 2:
            return shape
        stated = AnswerShape("classification", shape.classes, threshold=self.threshold, positive=self.positive)
        labels = [str(label) for label in self.labels(frame).tolist()]
        signature = stated.signature([Feature("x")])
        own = [str(shape.classes[at]) for at in predicted_positions(self.scores(frame, signature), signature)]
        return stated if own == labels else shape

    def scores(self, frame: pd.DataFrame, signature: Signature) -> Scores:
        """The scores in the form of `Backend.scores`; without probabilities, those of the whole model."""
        model = self.model if signature.probabilistic else self.whole
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(estimator_scores(Asked(model, self.columns), signature)(frame), dtype=np.float64)


class Asked:
    """A model that takes a table and passes it on in the form that the model needs; all other attributes are the model's own."""

    def __init__(self, model: Any, columns: ModelColumns) -> None:
        self._model = model
        self._columns = columns

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        return functools.partial(self._call, value) if name in CALLS else value

    def _call(self, method: Callable[[Any], Any], frame: pd.DataFrame) -> Any:
        known = [name for name in self._columns.fitted if name in frame.columns]
        table: Any = frame[known]
        if not self._columns.named:
            table = frame[known[0]] if len(known) == 1 and self._columns.texts else table.to_numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return method(table)


def original(model: Any, sample: list[str]) -> Original:
    """The model with its columns and threshold; `sample` are the columns of the sample without the target.

    Raises UsageError for an object that is not a fitted model.
    """
    kind = type(model).__name__
    if isinstance(model, type) or not hasattr(model, "predict"):
        advice = (
            ": fit it with novelty=True" if hasattr(model, "novelty") else ": adopt a fitted estimator or pipeline of scikit-learn"
        )
        raise UsageError(f"a {kind} has no predict{advice}")
    _check_fitted(model)
    inner, threshold, positive = _decision(model)
    try:
        columns = model_columns(inner, sample)
    except UsageError:
        raise
    except Exception as error:  # any: the attributes of a class of somebody else
        raise UsageError(f"the columns of the {kind} cannot be read ({_one_line(error)})") from error
    return Original(model, inner, columns, threshold, positive)


def _check_fitted(model: Any) -> None:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    if not isinstance(model, BaseEstimator) or not hasattr(model, "fit"):
        return
    try:
        check_is_fitted(model)
    except NotFittedError:
        raise UsageError(f"the {type(model).__name__} is not fitted: fit it, and save it again") from None
    except Exception:
        return  # a foreign class; later calls show whether it is fitted


def _decision(model: Any) -> tuple[Any, float | None, Label | None]:
    """The model without search and threshold, the threshold, and its class."""
    kind = type(model).__name__
    if hasattr(model, "best_estimator_") and kind.endswith("SearchCV"):
        return _decision(model.best_estimator_)
    if kind not in ("FixedThresholdClassifier", "TunedThresholdClassifierCV"):
        return model, None, None
    inner = model.estimator_
    method = model.response_method
    if method == "decision_function" or not hasattr(inner, "predict_proba"):
        return model, None, None
    stated = model.best_threshold_ if kind.startswith("Tuned") else model.threshold
    threshold = 0.5 if isinstance(stated, str) else float(stated)
    positive = model.pos_label if getattr(model, "pos_label", None) is not None else model.classes_[1]
    if not 0.0 < threshold <= 1.0:
        raise UsageError(f"with the threshold {threshold:g}, the {kind} always predicts the same class: set one above 0, at most 1")
    return inner, threshold, plain(positive)


def plain(value: Any) -> Any:
    """The value as a Python object in place of a numpy object."""
    return value.item() if isinstance(value, np.generic) else value


def _one_line(error: object) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
