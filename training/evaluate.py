"""How good predictions are on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Label, Signature, Task


class _Metrics:
    """What the metrics of both tasks have in common; the fields are those of `metrics.json`."""

    NAMES: ClassVar[tuple[str, ...]]
    """The metrics that are one number, and for which a floor can be set."""

    __slots__ = ()

    def scalars(self) -> dict[str, float]:
        """The metrics that are one number, by name."""
        return {name: getattr(self, name) for name in self.NAMES}

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds them."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """The metrics of one class against the others; `support` is its number of held-out rows."""

    precision: float
    recall: float
    f1_score: float
    support: int


@dataclass(frozen=True, slots=True)
class ClassificationMetrics(_Metrics):
    """Precision, recall and F1 are means over the classes, weighted by support.

    `confusion_matrix[i][j]` counts the rows of class i that were predicted as class j, in the order of the signature's classes.
    """

    NAMES: ClassVar = ("accuracy", "precision", "recall", "f1_score")

    accuracy: float
    precision: float
    recall: float
    f1_score: float
    rows: int
    per_class: Mapping[str, ClassMetrics]
    confusion_matrix: Sequence[Sequence[int]]


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
    """What serving answers: the class of the highest probability, or the value. One entry for each row."""
    if signature.task == "regression":
        return np.asarray(scores, dtype=np.float64)
    positions = scores.argmax(axis=1) if signature.probabilistic else scores.astype(np.intp)
    return positions_to_labels(positions, signature.classes)


def positions_to_labels(positions: npt.NDArray[Any], classes: Sequence[Label]) -> npt.NDArray[Any]:
    """The class at each position, as an array of objects: labels keep their types."""
    labels = np.empty(len(classes), dtype=object)
    labels[:] = classes
    classified: npt.NDArray[Any] = labels[positions]
    return classified


def measure(target: npt.NDArray[Any], predicted: npt.NDArray[Any], signature: Signature) -> Metrics:
    """The metrics of one model: both arrays hold one entry for each held-out row."""
    if signature.task == "regression":
        return _regression(target, predicted)
    return _classification(target, predicted, signature.classes)


def baseline_f1_score(target: npt.NDArray[Any], signature: Signature) -> float:
    """The F1 of the answer that is always the most frequent class."""
    labels, counts = np.unique(target, return_counts=True)
    constant = np.full(len(target), labels[counts.argmax()], dtype=object)
    return _classification(target, constant, signature.classes).f1_score


def _classification(target: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: Sequence[Label]) -> ClassificationMetrics:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    # By position: labels may be texts, numbers or booleans, which scikit-learn does not mix.
    order = {str(label): position for position, label in enumerate(classes)}
    true = np.array([order[str(label)] for label in target.tolist()])
    guess = np.array([order[str(label)] for label in predicted.tolist()])
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
    )


def _regression(target: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> RegressionMetrics:
    error = predicted - target
    spread = float(np.sum((target - target.mean()) ** 2))
    return RegressionMetrics(
        mae=float(np.mean(np.abs(error))),
        rmse=float(np.sqrt(np.mean(error**2))),
        r2=1.0 - float(np.sum(error**2)) / spread if spread else 0.0,
        rows=len(target),
    )
