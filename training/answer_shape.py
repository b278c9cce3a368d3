"""The answers of a fitted estimator: its task, its classes or targets, and whether its labels follow from its probabilities.

This module calls the estimator with a sample, because attributes are not enough: estimators of several targets keep their classes
in lists, and estimators of indicators in an array like those of one target.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from serve_app.artifacts.decision import predicted_positions
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Feature, Label, Output, Signature, Task
from serve_app.errors import BundleRefused, UsageError
from serve_app.inference.backends.estimator_scores import blocks, classes_of_outputs, estimator_scores

_INNER = ("best_estimator_", "regressor_", "estimator_", "estimator")
"""Attributes of estimators that return the answers of another estimator."""


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """The part of a signature about the answers, with the fields of `Signature`. `remarks` are notes for the user."""

    task: Task
    classes: tuple[Label, ...] = ()
    probabilistic: bool = True
    threshold: float | None = None
    positive: Label | None = None
    outputs: tuple[Output, ...] = ()
    quantiles: tuple[float, ...] = ()
    distance: bool = False
    remarks: tuple[str, ...] = ()

    def signature(self, features: Sequence[Feature], target: str = "target", missing: Sequence[str] | None = None) -> Signature:
        """Return the signature with these features, in the order of the matrix; for several targets, `target` is only a title."""
        return Signature(
            features=tuple(features),
            task=self.task,
            classes=self.classes,
            target=target,
            probabilistic=self.probabilistic,
            missing=None if missing is None else tuple(missing),
            threshold=self.threshold,
            positive=self.positive,
            outputs=self.outputs,
            quantiles=self.quantiles,
            distance=self.distance,
        )


def answer_shape(estimator: Any, sample: Any, *, targets: Sequence[str] = ()) -> AnswerShape:
    """The shape of the answers of a fitted estimator.

    `sample` holds at least two rows as the estimator takes them (a matrix or a data frame). `targets` are the names of the targets,
    which an estimator of several targets does not know; without names they are `output_0`, `output_1`, …. Raises UsageError with
    one sentence for an estimator whose answers cannot be served.
    """
    name = type(innermost_estimator(estimator)).__name__
    kind = _kind(estimator)
    if not hasattr(estimator, "predict"):
        raise UsageError(f"{name} has no method predict{_no_predict(estimator)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            predicted = np.asarray(estimator.predict(sample))
        except Exception as error:  # any: what an estimator of somebody else's does is not known
            raise UsageError(f"{name} cannot predict the sample ({type(error).__name__}: {_one_line(error)})") from error
        shapes: Mapping[str, Callable[[Any, Any, npt.NDArray[Any], Sequence[str]], AnswerShape]] = {
            "classifier": _classifier,
            "regressor": _regressor,
            "outlier_detector": _outlier_detector,
            "clusterer": _clusterer,
            "density_estimator": _clusterer,
        }
        if kind is None or kind not in shapes:
            raise UsageError(f"{name} is not a classifier, a regressor, an outlier detector or a clustering")
        if predicted.ndim > 2 or len(predicted) != len(sample):
            raise UsageError(f"{name} predicts an array of shape {predicted.shape} for {len(sample)} rows, which cannot be served")
        return shapes[kind](estimator, sample, predicted, targets)


def innermost_estimator(estimator: Any) -> Any:
    """The estimator inside pipelines, searches and transformations of the target; else the estimator itself."""
    for _ in range(20):
        steps = getattr(estimator, "steps", None)
        inner = steps[-1][1] if steps else next((getattr(estimator, name) for name in _INNER if _fitted(estimator, name)), None)
        if inner is None or isinstance(inner, str):
            return estimator
        estimator = inner
    return estimator


def _fitted(estimator: Any, attribute: str) -> bool:
    """Whether the attribute holds a fitted estimator."""
    inner = getattr(estimator, attribute, None)
    if not hasattr(inner, "predict"):
        return False
    try:
        check_is_fitted(inner)
    except (NotFittedError, TypeError):  # TypeError: no estimator of scikit-learn
        return False
    return True


def _kind(estimator: Any) -> str | None:
    """The type of estimator as the tags of scikit-learn name it."""
    try:
        kind: str | None = get_tags(estimator).estimator_type
    except (AttributeError, TypeError, ValueError):
        kind = getattr(estimator, "_estimator_type", None)
    return kind


def _no_predict(estimator: Any) -> str:
    """The fix for a missing `predict`."""
    inner = innermost_estimator(estimator)
    if hasattr(inner, "novelty"):
        return ": fit it with novelty=True"
    if _kind(estimator) == "clusterer":
        return " for new rows: use KMeans, Birch or GaussianMixture, or train a classifier on its clusters"
    return ": publish an estimator that predicts"


# --- classes


def _classifier(estimator: Any, sample: Any, predicted: npt.NDArray[Any], targets: Sequence[str]) -> AnswerShape:
    if predicted.ndim == 2 and predicted.shape[1] > 1:
        return _several_classes(estimator, sample, predicted, targets)
    classes = tuple(_plain(label) for label in estimator.classes_)
    if len(classes) < 2:
        raise UsageError(f"the model has only one class ({classes[0] if classes else 'none'}): fit it with rows of two classes")
    shape = AnswerShape("classification", classes, probabilistic=hasattr(estimator, "predict_proba"))
    if not shape.probabilistic:
        return shape
    probabilities = np.asarray(estimator.predict_proba(sample))
    labels = predicted.ravel()
    if probabilities.shape != (len(labels), len(classes)):
        return replace(shape, probabilistic=False, remarks=("predict_proba does not give a probability for each class",))
    stated = _with_threshold(shape, estimator)
    # A threshold that the model states applies even if no row of the sample lies between it and one half.
    shapes = [shape] if stated is None else [shape, stated] if stated.threshold == 0.5 else [stated]
    for one in shapes:
        if _agrees(one, probabilities, labels):
            return one
    rule = "the class of its highest probability" if stated is None else f"the class from its threshold {stated.threshold:g}"
    remark = f"the label of the model is not {rule}: replicas serve the label without probabilities"
    return replace(shape, probabilistic=False, remarks=(remark,))


def _agrees(shape: AnswerShape, probabilities: Scores, labels: npt.NDArray[Any]) -> bool:
    """Whether serving derives the estimator's labels from the probabilities."""
    positions = predicted_positions(probabilities, shape.signature([Feature("x")]))
    pairs = zip((shape.classes[at] for at in positions), map(_plain, labels), strict=True)
    return all(label == other or str(label) == str(other) for label, other in pairs)


def _with_threshold(shape: AnswerShape, estimator: Any) -> AnswerShape | None:
    """The shape with the threshold of the estimator; None without a threshold. Raises UsageError for the threshold 0."""
    if len(shape.classes) != 2:
        return None
    threshold: Any = None
    positive: Any = None
    inner = estimator
    while getattr(inner, "steps", None):
        inner = inner.steps[-1][1]
    if getattr(inner, "response_method", None) == "decision_function":  # its threshold is not a probability
        return None
    if hasattr(inner, "get_probability_threshold"):  # CatBoost, which applies it where it computes one number for a row
        threshold = inner.get_probability_threshold() if np.ndim(inner.get_scale_and_bias()[1]) == 0 else None
        if threshold is not None and not 0.0 < threshold <= 1.0:
            raise UsageError(
                f"with the threshold {threshold:g}, the model always predicts the same class: "
                "set one above 0, at most 1, with set_probability_threshold"
            )
    elif hasattr(inner, "best_threshold_"):
        threshold = inner.best_threshold_
    elif type(inner).__name__ == "FixedThresholdClassifier":
        threshold, positive = inner.threshold, inner.pos_label
    if not isinstance(threshold, float | int) or not 0.0 < threshold <= 1.0:
        return None
    known = [label for label in shape.classes if positive is not None and str(label) == str(_plain(positive))]
    return replace(shape, threshold=float(threshold), positive=known[0] if known else shape.classes[1])


def _several_classes(estimator: Any, sample: Any, predicted: npt.NDArray[Any], targets: Sequence[str]) -> AnswerShape:
    names = _names(predicted.shape[1], targets)
    known = classes_of_outputs(estimator, len(names))
    classes = [tuple(_plain(label) for label in labels) for labels in known]
    single = next((name for name, labels in zip(names, classes, strict=True) if len(labels) < 2), None)
    if single is not None:
        raise UsageError(f"the model has only one class of the target '{single}': fit it with rows of two classes")
    outputs = tuple(Output(name, labels, hasattr(estimator, "predict_proba")) for name, labels in zip(names, classes, strict=True))
    shape = AnswerShape("classification", outputs=outputs)
    if not outputs[0].probabilistic:
        return shape
    parts = blocks(estimator.predict_proba(sample))
    same = len(parts) == len(outputs) and all(
        part.shape == (len(predicted), len(output.classes))
        and _agrees(AnswerShape("classification", output.classes), part, predicted[:, at])
        for at, (part, output) in enumerate(zip(parts, outputs, strict=True))
    )
    if same:
        return shape
    remark = (
        "the labels of the model are not the classes of the highest probabilities: replicas serve the labels without probabilities"
    )
    return replace(shape, outputs=tuple(replace(output, probabilistic=False) for output in outputs), remarks=(remark,))


# --- numbers


def _regressor(estimator: Any, sample: Any, predicted: npt.NDArray[Any], targets: Sequence[str]) -> AnswerShape:
    if not np.issubdtype(predicted.dtype, np.number):
        raise UsageError(f"the model predicts values of type {predicted.dtype}, but a regression must predict numbers")
    levels = _levels(estimator)
    if predicted.ndim == 1 or predicted.shape[1] == 1:
        return AnswerShape("regression", quantiles=levels if len(levels) == 1 else ())
    columns = predicted.shape[1]
    if len(levels) == columns:
        return AnswerShape("regression", quantiles=levels)
    return AnswerShape("regression", outputs=tuple(Output(name) for name in _names(columns, targets)))


def _levels(estimator: Any) -> tuple[float, ...]:
    """The levels of the quantiles that a regressor predicts, in the order of its columns; () for other regressors."""
    inner = innermost_estimator(estimator)
    parameters = inner.get_params(deep=False) if hasattr(inner, "get_params") else {}
    loss = str(parameters.get("loss_function") or parameters.get("objective") or parameters.get("loss") or "")
    levels: Any = ()
    if "uantile:" in loss:  # CatBoost: MultiQuantile:alpha=0.1,0.5
        text = next((part for part in loss.partition(":")[2].split(";") if part.startswith("alpha=")), "alpha=0.5")
        levels = [float(level) for level in text.removeprefix("alpha=").split(",")]
    elif parameters.get("quantile_alpha") is not None and "quantile" in loss:  # XGBoost
        levels = parameters["quantile_alpha"]
    elif loss in ("quantile", "reg:quantileerror"):  # GradientBoosting, LightGBM; HistGradientBoosting
        levels = parameters.get("quantile", parameters.get("alpha"))
    elif type(inner).__name__ == "QuantileRegressor":
        levels = parameters["quantile"]
    values = tuple(float(level) for level in np.atleast_1d(np.asarray(() if levels is None else levels, dtype=np.float64)))
    ascending = list(values) == sorted(set(values)) and all(0.0 < level < 1.0 for level in values)
    return values if ascending else ()


# --- models without a target


def _outlier_detector(estimator: Any, sample: Any, predicted: npt.NDArray[Any], targets: Sequence[str]) -> AnswerShape:
    name = type(innermost_estimator(estimator)).__name__
    if not hasattr(estimator, "decision_function"):
        raise UsageError(f"{name} has no method decision_function, which gives the score of an outlier")
    scores = np.asarray(estimator.decision_function(sample), dtype=np.float64).ravel()
    if not np.array_equal(predicted.ravel() == -1, scores < 0):
        raise UsageError(f"{name} does not mark exactly the rows with a decision_function below 0 as outliers, as serving does")
    return AnswerShape("outlier detection")


def _clusterer(estimator: Any, sample: Any, predicted: npt.NDArray[Any], targets: Sequence[str]) -> AnswerShape:
    inner = innermost_estimator(estimator)
    name = type(inner).__name__
    if predicted.ndim != 1 or not np.issubdtype(predicted.dtype, np.integer):
        raise UsageError(f"{name} does not predict cluster numbers, as a clustering must")
    if hasattr(estimator, "predict_proba"):
        count = np.asarray(estimator.predict_proba(sample)).shape[1]
        return AnswerShape("clustering", tuple(range(count)))
    known: Any = predicted
    if hasattr(inner, "subcluster_labels_"):
        known = inner.subcluster_labels_
    elif hasattr(inner, "cluster_centers_"):
        known = np.arange(len(inner.cluster_centers_))
    elif hasattr(inner, "labels_"):
        known = inner.labels_
    classes = tuple(sorted({int(label) for label in np.concatenate([np.ravel(known), predicted])}))
    distances = hasattr(estimator, "transform") and np.ndim(estimator.transform(sample)) == 2
    return AnswerShape("clustering", classes, probabilistic=False, distance=distances)


# ---


def check_shape(estimator: Any, shape: AnswerShape, sample: Any) -> None:
    """Raise UsageError unless serving can compute finite scores of this shape for the sample."""
    signature = shape.signature([Feature("x")])
    try:
        scores = estimator_scores(estimator, signature)(sample)
    except (BundleRefused, ValueError, TypeError, KeyError, IndexError) as error:
        raise UsageError(f"the scores of the model cannot be computed ({type(error).__name__}: {_one_line(error)})") from error
    if scores.shape != (len(sample), *signature.score_shape):
        raise UsageError(f"the model gives scores of shape {scores.shape} instead of {(len(sample), *signature.score_shape)}")
    if not np.isfinite(scores).all():
        raise UsageError("the model gives NaN or infinity for a row of the sample, which replicas cannot answer")


def _names(count: int, targets: Sequence[str]) -> list[str]:
    if targets and len(targets) != count:
        raise UsageError(f"the model predicts {count} targets, but {len(targets)} have names: name all, in the order of the fit")
    return list(targets) or [f"output_{at}" for at in range(count)]


def _plain(value: Any) -> Label:
    plain: Label = value.item() if isinstance(value, np.generic) else value
    return plain


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
