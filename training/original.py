"""The model as its author asks it: with a table, or with an array when it was fitted on one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.artifacts.signature import Label, Task
from serve_app.errors import UsageError
from training.model_columns import ModelColumns, model_columns

TASKS = {"classifier": "classification", "regressor": "regression"}


@dataclass(frozen=True, slots=True)
class Original:
    """A fitted model and its columns. `model` is without search and threshold, which are `threshold` and `positive`.

    `classes` are those of a classifier in the order of its probabilities.
    """

    whole: Any
    model: Any
    columns: ModelColumns
    task: Task
    classes: tuple[Label, ...] = ()
    threshold: float | None = None
    positive: Label | None = None

    @property
    def gives_probabilities(self) -> bool:
        """Whether there is `predict_proba`."""
        return self.task == "classification" and hasattr(self.model, "predict_proba")

    def labels(self, frame: pd.DataFrame) -> npt.NDArray[Any]:
        """What `predict` of the model says, shape (rows,)."""
        return np.asarray(self._asked(self.whole, "predict", frame))

    def probabilities(self, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
        """What `predict_proba` says, shape (rows, classes)."""
        return np.asarray(self._asked(self.model, "predict_proba", frame), dtype=np.float64)

    def _asked(self, model: Any, method: str, frame: pd.DataFrame) -> Any:
        known = [name for name in self.columns.fitted if name in frame.columns]
        table: Any = frame[known]
        if not self.columns.named:
            table = frame[known[0]] if len(known) == 1 and self.columns.texts else table.to_numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(model, method)(table)


def original(model: Any, sample: list[str]) -> Original:
    """The model with what it says about itself; `sample` are the columns of the sample without the target.

    Raises UsageError for an object that is no fitted model, and for a shape of answers that cannot be served.
    """
    kind = type(model).__name__
    if isinstance(model, type) or not hasattr(model, "predict"):
        raise UsageError(f"a {kind} has no predict: adopt a fitted estimator or pipeline of scikit-learn")
    _check_fitted(model)
    task = _task(model)
    inner, threshold, positive = _decision(model)
    classes: tuple[Label, ...] = ()
    if task == "classification":
        classes = _classes(model)
    try:
        columns = model_columns(inner, sample)
    except UsageError:
        raise
    except Exception as error:  # any: the attributes of a class of somebody else
        raise UsageError(f"the columns of the {kind} cannot be found ({_one_line(error)})") from error
    if threshold is not None and len(classes) != 2:
        threshold = positive = None
    return Original(model, inner, columns, task, classes, threshold, positive)


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
        return  # a class of somebody else; asking it will tell


def _task(model: Any) -> Task:
    from sklearn.utils import get_tags

    try:
        kind = get_tags(model).estimator_type
    except Exception:
        kind = getattr(model, "_estimator_type", None)
    if kind not in TASKS:
        raise UsageError(
            f"a {type(model).__name__} is {f'a {kind}' if kind else 'no predictor'}, and adopting takes classifiers and regressors"
        )
    return TASKS[kind]  # type: ignore[return-value]


def _classes(model: Any) -> tuple[Label, ...]:
    classes = getattr(model, "classes_", None)
    if classes is None:
        raise UsageError(f"the {type(model).__name__} has no classes_, which a classifier tells after the fit")
    if isinstance(classes, list) or np.ndim(classes) != 1:
        raise UsageError("the model has several targets, and adopting takes models of one target")
    if len(classes) < 2:
        raise UsageError("the model knows one class only: a classification needs at least two")
    return tuple(plain(label) for label in classes)


def _decision(model: Any) -> tuple[Any, float | None, Label | None]:
    """The model without search and threshold; the threshold, and the class that it is for."""
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
        raise UsageError(f"the threshold {threshold:g} of the {kind} always gives the same class: set one above 0, at most 1")
    return inner, threshold, plain(positive)


def plain(value: Any) -> Any:
    """The value as Python object instead of one of numpy."""
    return value.item() if isinstance(value, np.generic) else value


def _one_line(error: object) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
