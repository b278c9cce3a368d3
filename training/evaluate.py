"""How good a model is on rows it did not learn from, and whether that is good enough to serve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.manifest import Verdict
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Label, Signature, Task
from serve_app.errors import BundleRefused, InvalidInput
from serve_app.inference.predictor import LoadPolicy, open_predictor

Metrics = dict[str, Any]

NAMES: Mapping[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "precision", "recall", "f1_score"),
    "regression": ("mae", "rmse", "r2"),
}
LOWER_IS_BETTER = frozenset({"mae", "rmse"})

_EPSILON = 1e-12


def predictions(scores: Scores, signature: Signature) -> npt.NDArray[Any]:
    """What serving answers: the class of the highest probability, or the value."""
    if signature.task == "regression":
        return np.asarray(scores, dtype=np.float64)
    positions = scores.argmax(axis=1) if signature.probabilistic else scores.astype(np.intp)
    return positions_to_labels(positions, signature.classes)


def positions_to_labels(positions: npt.NDArray[Any], classes: Sequence[Label]) -> npt.NDArray[Any]:
    labels = np.empty(len(classes), dtype=object)
    labels[:] = classes
    found: npt.NDArray[Any] = labels[positions]
    return found


def measure(target: npt.NDArray[Any], found: npt.NDArray[Any], signature: Signature) -> Metrics:
    """The metrics of one model on held-out rows; for classes weighted by their share, and each apart."""
    return _regression(target, found) if signature.task == "regression" else _classification(target, found, signature.classes)


def default_floors(target: npt.NDArray[Any], signature: Signature, *, built_in: bool) -> dict[str, float]:
    """What a model must reach when nobody said: better than always giving the same answer, and 0.85 for the iris flowers."""
    if signature.task == "regression":
        return {"r2": 0.0}
    if built_in:
        return {"accuracy": 0.85}
    labels, counts = np.unique(target, return_counts=True)
    guess = np.full(len(target), labels[counts.argmax()], dtype=object)
    return {"f1_score": round(_classification(target, guess, signature.classes)["f1_score"], 6)}


def judge(
    metrics: Metrics,
    new: Metrics | None,
    served: Metrics | None,
    *,
    limits: Mapping[str, float],
    comparison: Mapping[str, Any],
    tolerance: float,
) -> Verdict:
    """Compare with absolute limits (ceilings for errors, else floors), and with the served model on the same rows.

    `tolerance` is how much accuracy may be lost, or by which share the error may grow.
    """
    reasons = []
    for name, limit in limits.items():
        value = metrics[name]
        if name in LOWER_IS_BETTER and not value <= limit:
            reasons.append(f"{name} is {value:.4f}, above the allowed {limit:g}")
        elif name not in LOWER_IS_BETTER and not value >= limit:
            reasons.append(f"{name} is {value:.4f}, below the required {limit:g}")
    if new is not None and served is not None:
        name = "accuracy" if "accuracy" in new else "rmse"
        mine, theirs = new[name], served[name]
        worse = mine < theirs - tolerance - _EPSILON if name == "accuracy" else mine > theirs * (1.0 + tolerance) + _EPSILON
        if worse:
            version = comparison.get("version")
            reasons.append(
                f"{name} is {mine:.4f}, worse than the {theirs:.4f} of version {version}, which is served now, on the same rows"
            )
    return Verdict(accepted=not reasons, reasons=tuple(reasons), comparison=comparison)


def served_predictions(
    bundle: Bundle | None, rows: Sequence[Mapping[str, Any]], signature: Signature
) -> tuple[npt.NDArray[Any] | None, dict[str, Any]]:
    """What the served model answers to these raw rows, and a description; None and the reason when they cannot be compared."""
    if bundle is None:
        return None, {"compared": False, "why": "no model is served yet"}
    about = {"version": bundle.version, "digest": bundle.digest}
    try:
        predictor = open_predictor(bundle, LoadPolicy(allow_joblib=True, backend="auto", verify=None))
        different = _difference(predictor.signature, signature)
        if different:
            return None, {"compared": False, "why": f"the served model has {different}", **about}
        matrix = read_rows(predictor.signature, rows, unknown="unseen")
        return predictions(predictor.scores(matrix), predictor.signature), {"compared": True, **about}
    except BundleRefused as error:
        return None, {"compared": False, "why": f"the served model cannot be opened here: {error}", **about}
    except InvalidInput as error:
        return None, {"compared": False, "why": f"the served model takes no such rows: {error.problems[0].message}", **about}


def paired(mine: npt.NDArray[Any], theirs: npt.NDArray[Any], target: npt.NDArray[Any]) -> dict[str, int]:
    """Rows that only one of two classifiers gets right."""
    truth = target.astype(str)
    right, other = mine.astype(str) == truth, theirs.astype(str) == truth
    return {"only_new_right": int(np.sum(right & ~other)), "only_served_right": int(np.sum(~right & other))}


def _difference(served: Signature, new: Signature) -> str | None:
    if served.task != new.task:
        return "another task"
    kinds = {feature.name: feature.kind for feature in new.features}
    if {feature.name: feature.kind for feature in served.features} != kinds:
        return "other features"
    if sorted(map(str, served.classes)) != sorted(map(str, new.classes)):
        return "other classes"
    return None


def _classification(target: npt.NDArray[Any], found: npt.NDArray[Any], classes: Sequence[Label]) -> Metrics:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    # By position: labels may be texts, numbers or booleans, and scikit-learn would not mix them.
    order = {str(label): position for position, label in enumerate(classes)}
    truth = np.array([order[str(label)] for label in target.tolist()])
    guess = np.array([order[str(label)] for label in found.tolist()])
    every = list(range(len(classes)))
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, labels=every, zero_division=0)
    shares = support / support.sum()
    return {
        "accuracy": float(np.mean(truth == guess)),
        "precision": float(precision @ shares),
        "recall": float(recall @ shares),
        "f1_score": float(f1 @ shares),
        "rows": len(truth),
        "per_class": {
            str(label): {
                "precision": float(precision[at]),
                "recall": float(recall[at]),
                "f1_score": float(f1[at]),
                "support": int(support[at]),
            }
            for at, label in enumerate(classes)
        },
        "confusion_matrix": confusion_matrix(truth, guess, labels=every).tolist(),
    }


def _regression(target: npt.NDArray[Any], found: npt.NDArray[Any]) -> Metrics:
    error = found - target
    spread = float(np.sum((target - target.mean()) ** 2))
    return {
        "mae": float(np.mean(np.abs(error))),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "r2": 1.0 - float(np.sum(error**2)) / spread if spread else 0.0,
        "rows": len(target),
    }
