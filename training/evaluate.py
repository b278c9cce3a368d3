"""The metrics of predictions on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.decision import predicted_positions
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Label, Signature, Task
from training.unlabelled import AnswerShares

COVERAGE_METRICS = ("coverage", "set_size", "interval_width")
"""The metrics of intervals and prediction sets."""


class _Metrics:
    """The common part of the metrics of all tasks; the fields are those of `metrics.json`."""

    NAMES: ClassVar[tuple[str, ...]]
    """The metrics that are one number and can have a floor."""

    __slots__ = ()

    def scalars(self) -> dict[str, float]:
        """The metrics that are one number, by name, without unknown metrics."""
        values = {name: getattr(self, name) for name in self.NAMES}
        return {name: value for name, value in values.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics for JSON, without unknown metrics."""
        document: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in document.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """The metrics of one class against the others; `support` is its number of held-out rows."""

    precision: float
    recall: float
    f1_score: float
    support: int


@dataclass(frozen=True, slots=True)
class ClassificationMetrics(_Metrics):
    """Precision, recall and F1 are means over the classes, weighted by support; `balanced_accuracy` is the plain mean of the
    recalls.

    `confusion_matrix[i][j]` counts the rows of class i that were predicted as class j, in the order of the signature's classes.
    `roc_auc` (of each class against the others, the plain mean of more than two), `log_loss` and `brier` need probabilities. The
    Brier score is the mean squared error of the probability, with more than two classes summed over them. `coverage` is the share
    of the rows whose prediction set holds the true class, and `set_size` the mean number of classes in a set. None: not known.
    """

    NAMES: ClassVar = (
        *("accuracy", "precision", "recall", "f1_score", "balanced_accuracy", "roc_auc", "log_loss", "brier"),
        *("coverage", "set_size"),
    )

    accuracy: float
    precision: float
    recall: float
    f1_score: float
    rows: int
    per_class: Mapping[str, ClassMetrics]
    confusion_matrix: Sequence[Sequence[int]]
    balanced_accuracy: float | None = None
    roc_auc: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    coverage: float | None = None
    set_size: float | None = None

    @property
    def never_predicted(self) -> Mapping[int, int]:
        """The number of held-out rows of each class that is never predicted for them, by the position of the class."""
        counts = np.array(self.confusion_matrix)
        return {at: int(rows) for at, rows in enumerate(counts.sum(axis=1)) if rows and not counts[:, at].any()}


@dataclass(frozen=True, slots=True)
class RegressionMetrics(_Metrics):
    """Mean absolute error and root mean squared error in units of the target; `r2` is the coefficient of determination.

    `coverage` is the share of the rows whose interval holds the true value, and `interval_width` the width of the intervals in
    units of the target; None without intervals.
    """

    NAMES: ClassVar = ("mae", "rmse", "r2", "coverage", "interval_width")

    mae: float
    rmse: float
    r2: float
    rows: int
    coverage: float | None = None
    interval_width: float | None = None


@dataclass(frozen=True, slots=True)
class Unmeasured(_Metrics):
    """The facts about a model without labels: the number of rows in the examination."""

    NAMES: ClassVar = ()

    rows: int


@dataclass(frozen=True, slots=True)
class SeveralMetrics(_Metrics):
    """The metrics of each of several targets, by its name."""

    NAMES: ClassVar = ()

    rows: int
    per_target: Mapping[str, ClassificationMetrics | RegressionMetrics]

    @property
    def means(self) -> dict[str, float]:
        """The mean of each metric over the targets, without metrics that a target lacks and metrics in units of a target."""
        targets = [metrics.scalars() for metrics in self.per_target.values()]
        names = [name for name in targets[0] if name not in ("mae", "rmse") and all(name in scalars for scalars in targets)]
        return {name: float(np.mean([scalars[name] for scalars in targets])) for name in names}

    def scalars(self) -> dict[str, float]:
        """The means, and the metrics of each target as `METRIC_TARGET`."""
        own = {f"{name}_{target}": value for target, each in self.per_target.items() for name, value in each.scalars().items()}
        return {**self.means, **own}

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics for JSON: the means, and the metrics of each target in `per_target`."""
        return {**self.means, "rows": self.rows, "per_target": {name: each.to_dict() for name, each in self.per_target.items()}}


Metrics = ClassificationMetrics | RegressionMetrics | SeveralMetrics

AnyMetrics = Metrics | AnswerShares | Unmeasured
"""Metrics; the shares of the answers for a model without a target; the number of rows for a sample without labels."""

METRIC_NAMES: Mapping[Task, tuple[str, ...]] = {
    "classification": ClassificationMetrics.NAMES,
    "regression": RegressionMetrics.NAMES,
    "outlier detection": ("outlier_share",),
    "clustering": ("largest_cluster_share",),
}


def predictions(scores: Scores, signature: Signature) -> npt.NDArray[Any]:
    """The answers of serving: the predicted class, or the value. One entry for each row; (rows, targets) for several targets."""
    if signature.outputs:
        return np.column_stack([predictions(scores[:, at], part) for at, part in signature.parts])
    if signature.task == "regression":
        return np.asarray(scores, dtype=np.float64)
    return positions_to_labels(predicted_positions(scores, signature), signature.classes)


def positions_to_labels(positions: npt.NDArray[Any], classes: Sequence[Label]) -> npt.NDArray[Any]:
    """The class at each position, as an array of objects, so that labels keep their types."""
    labels = np.empty(len(classes), dtype=object)
    labels[:] = classes
    classified: npt.NDArray[Any] = labels[positions]
    return classified


def measure(target: npt.NDArray[Any], predicted: npt.NDArray[Any], signature: Signature, scores: Scores | None = None) -> Metrics:
    """The metrics of one model: the arrays hold one entry for each held-out row.

    Metrics of probabilities are known only with the `scores` of a classifier that gives probabilities.
    """
    if signature.outputs:
        return _several(target, predicted, signature, scores)
    if signature.task == "regression":
        return _regression(target, predicted)
    metrics = _classification(target, predicted, signature.classes)
    if scores is None or not signature.probabilistic or not np.isfinite(scores).all():
        return metrics
    true, probabilities = _positions(target, signature.classes), np.asarray(scores, np.float64)
    return replace(
        metrics,
        roc_auc=_roc_auc(true, probabilities),
        log_loss=_log_loss(true, probabilities),
        brier=_brier(true, probabilities),
    )


def baseline_f1_score(target: npt.NDArray[Any], signature: Signature) -> float:
    """The F1 of a constant answer, the most frequent class."""
    labels, counts = np.unique(target, return_counts=True)
    constant = np.full(len(target), labels[counts.argmax()], dtype=object)
    return _classification(target, constant, signature.classes).f1_score


def _classification(target: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: Sequence[Label]) -> ClassificationMetrics:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    true, guess = _positions(target, classes), _positions(predicted, classes)
    positions = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(true, guess, labels=positions, zero_division=0)
    shares = support / support.sum()
    return ClassificationMetrics(
        accuracy=float(np.mean(true == guess)),
        precision=float(precision @ shares),
        recall=float(recall @ shares),
        f1_score=float(f1 @ shares),
        rows=len(true),
        per_class={
            str(label): ClassMetrics(float(precision[at]), float(recall[at]), float(f1[at]), int(support[at]))
            for at, label in enumerate(classes)
        },
        confusion_matrix=confusion_matrix(true, guess, labels=positions).tolist(),
        balanced_accuracy=float(np.mean(recall[support > 0])),
    )


def _positions(labels: npt.NDArray[Any], classes: Sequence[Label]) -> npt.NDArray[np.intp]:
    """The position of each label, because scikit-learn does not mix texts, numbers and booleans."""
    order = {str(label): position for position, label in enumerate(classes)}
    return np.array([order[str(label)] for label in labels.tolist()], dtype=np.intp)


def _several(target: npt.NDArray[Any], predicted: npt.NDArray[Any], signature: Signature, scores: Scores | None) -> SeveralMetrics:
    measured: dict[str, ClassificationMetrics | RegressionMetrics] = {}
    for column, (at, part) in enumerate(signature.parts):
        own = measure(target[:, column], predicted[:, column], part, None if scores is None else scores[:, at])
        assert not isinstance(own, SeveralMetrics)
        measured[part.target] = own
    return SeveralMetrics(len(target), measured)


def metric_names(signature: Signature) -> tuple[str, ...]:
    """The metrics that can have a floor; for several targets, also those of each target."""
    names = METRIC_NAMES[signature.task]
    return (*names, *(f"{name}_{output.name}" for output in signature.outputs for name in names))


def _roc_auc(true: npt.NDArray[np.intp], probabilities: npt.NDArray[np.float64]) -> float | None:
    """The area under the curve of the second of two classes, or the mean over all classes; None when all rows have one class."""
    from sklearn.metrics import roc_auc_score

    classes = probabilities.shape[1]
    positions = range(1 if classes == 2 else 0, classes)
    areas = [roc_auc_score(true == at, probabilities[:, at]) for at in positions if 0 < np.count_nonzero(true == at) < len(true)]
    return float(np.mean(areas)) if areas else None


def _log_loss(true: npt.NDArray[np.intp], probabilities: npt.NDArray[np.float64]) -> float:
    own = probabilities[np.arange(len(true)), true]
    return 0.0 - float(np.log(np.clip(own, np.finfo(np.float64).eps, 1.0)).mean())  # no negative zero


def _brier(true: npt.NDArray[np.intp], probabilities: npt.NDArray[np.float64]) -> float:
    classes = probabilities.shape[1]
    squares = ((probabilities - np.eye(classes)[true]) ** 2).sum(axis=1)
    return float(squares.mean()) / (2.0 if classes == 2 else 1.0)


def _regression(target: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> RegressionMetrics:
    error = predicted - target
    spread = float(np.sum((target - target.mean()) ** 2))
    return RegressionMetrics(
        mae=float(np.mean(np.abs(error))),
        rmse=float(np.sqrt(np.mean(error**2))),
        r2=1.0 - float(np.sum(error**2)) / spread if spread else 0.0,
        rows=len(target),
    )
