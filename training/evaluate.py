"""How good predictions are on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.decision import predicted_positions
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Label, Signature, Task


class _Metrics:
    """What the metrics of both tasks have in common; the fields are those of `metrics.json`."""

    NAMES: ClassVar[tuple[str, ...]]
    """The metrics that are one number, and for which a floor can be set."""

    __slots__ = ()

    def scalars(self) -> dict[str, float]:
        """The metrics that are one number, by name, without those that are not known."""
        values = {name: getattr(self, name) for name in self.NAMES}
        return {name: value for name, value in values.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds them, without those that are not known."""
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
    Brier score is the mean squared error of the probability, with more than two classes summed over them. None: not known.
    """

    NAMES: ClassVar = ("accuracy", "precision", "recall", "f1_score", "balanced_accuracy", "roc_auc", "log_loss", "brier")

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

    @property
    def never_predicted(self) -> Mapping[int, int]:
        """The held-out rows of each class that was predicted for no held-out row, by the position of the class."""
        counts = np.array(self.confusion_matrix)
        return {at: int(rows) for at, rows in enumerate(counts.sum(axis=1)) if rows and not counts[:, at].any()}


@dataclass(frozen=True, slots=True)
class RegressionMetrics(_Metrics):
    """Mean absolute error and root mean squared error in units of the target; `r2` is the coefficient of determination."""

    NAMES: ClassVar = ("mae", "rmse", "r2")

    mae: float
    rmse: float
    r2: float
    rows: int


Metrics = ClassificationMetrics | RegressionMetrics

METRIC_NAMES: Mapping[Task, tuple[str, ...]] = {
    "classification": ClassificationMetrics.NAMES,
    "regression": RegressionMetrics.NAMES,
}


def predictions(scores: Scores, signature: Signature) -> npt.NDArray[Any]:
    """What serving answers: the predicted class, or the value. One entry for each row."""
    if signature.task == "regression":
        return np.asarray(scores, dtype=np.float64)
    return positions_to_labels(predicted_positions(scores, signature), signature.classes)


def positions_to_labels(positions: npt.NDArray[Any], classes: Sequence[Label]) -> npt.NDArray[Any]:
    """The class at each position, as an array of objects: labels keep their types."""
    labels = np.empty(len(classes), dtype=object)
    labels[:] = classes
    classified: npt.NDArray[Any] = labels[positions]
    return classified


def measure(target: npt.NDArray[Any], predicted: npt.NDArray[Any], signature: Signature, scores: Scores | None = None) -> Metrics:
    """The metrics of one model: the arrays hold one entry for each held-out row.

    Metrics of probabilities are known only with the `scores` of a classifier that gives probabilities.
    """
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
    """The F1 of the answer that is always the most frequent class."""
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
    """The position of each label: labels may be texts, numbers or booleans, which scikit-learn does not mix."""
    order = {str(label): position for position, label in enumerate(classes)}
    return np.array([order[str(label)] for label in labels.tolist()], dtype=np.intp)


def _roc_auc(true: npt.NDArray[np.intp], probabilities: npt.NDArray[np.float64]) -> float | None:
    """The area under the curve of the second of two classes, or the mean of those of all; None without rows to tell apart."""
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
