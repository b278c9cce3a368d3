"""The comparison of the candidate with the served model on the same held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Signature
from serve_app.errors import BundleRefused, InvalidInput, UsageError
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import open_predictor
from training import unlabelled
from training.evaluate import AnyMetrics, measure, predictions


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of both models on the same rows, or the reason `why` they could not be compared.

    `refused` is the reason (one of BundleRefused.REASONS, like `unsigned`) when the load policy does not open the served model.
    `version` and `digest` belong to the served model; `new` and `served` are metrics on the same `rows`. A classification also
    counts the rows that only one of the two predicts correctly. Without labels, there is the `agreement` of both (see
    `training.unlabelled.agreement`), and `new` and `served` are shares of answers.
    """

    compared: bool
    why: str | None = None
    version: str | None = None
    digest: str | None = None
    rows: int | None = None
    new: AnyMetrics | None = None
    served: AnyMetrics | None = None
    only_new_right: int | None = None
    only_served_right: int | None = None
    refused: str | None = None
    agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison for the verdict and the manifest: without unknown values, and metrics only as numbers."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        document |= {
            name: metrics.scalars() for name, metrics in (("new", self.new), ("served", self.served)) if metrics is not None
        }
        return {name: value for name, value in document.items() if value is not None}


class NotComparable(Exception):
    """The served model cannot predict these rows; the message has the cause, `refused` is the reason of a BundleRefused."""

    def __init__(self, why: str, refused: str | None = None) -> None:
        self.refused = refused
        super().__init__(why)


def compare(
    served: Bundle | None,
    rows: Sequence[Mapping[str, Any]],
    predicted: npt.NDArray[Any],
    target: npt.NDArray[Any],
    signature: Signature,
    policy: LoadPolicy,
) -> Comparison:
    """Compare the candidate's predictions with those of the served bundle, to which `policy` applies.

    `rows` are held-out rows in the form of requests; `predicted` and `target` have one entry for each row.
    """
    if served is None:
        return Comparison(False, "no model is served yet")
    try:
        theirs = served_predictions(served, rows, signature, policy)
    except NotComparable as error:
        return Comparison(False, str(error), served.version, served.digest, refused=error.refused)
    only_new, only_served = paired(predicted, theirs, target) if signature.classes else (None, None)
    return Comparison(
        compared=True,
        version=served.version,
        digest=served.digest,
        rows=len(target),
        new=measure(target, predicted, signature),
        served=measure(target, theirs, signature),
        only_new_right=only_new,
        only_served_right=only_served,
    )


def compare_answers(
    served: Bundle | None, rows: Sequence[Mapping[str, Any]], scores: Scores, signature: Signature, policy: LoadPolicy
) -> Comparison:
    """Compare the answers of a candidate without labels, from its scores, with those of the served bundle for the same rows."""
    if served is None:
        return Comparison(False, "no model is served yet")
    try:
        theirs = served_scores(served, rows, signature, policy)
    except NotComparable as error:
        return Comparison(False, str(error), served.version, served.digest, refused=error.refused)
    return Comparison(
        compared=True,
        version=served.version,
        digest=served.digest,
        rows=len(rows),
        new=unlabelled.answer_shares(scores, signature),
        served=unlabelled.answer_shares(theirs.scores, theirs.signature),
        agreement=unlabelled.agreement(
            unlabelled.answers(scores, signature), unlabelled.answers(theirs.scores, theirs.signature), signature
        ),
    )


def require_same_columns(served: Signature, new: Signature, *, adopted: bool = False) -> None:
    """Raise UsageError when the requests or answers of the new model differ from those of the served model.

    `adopted`: the model was fitted elsewhere, so the message is not about a training table.
    """
    old_kinds = {feature.name: feature.kind for feature in served.features}
    new_kinds = {feature.name: feature.kind for feature in new.features}
    differences = [
        *(f"'{name}' is missing" for name in old_kinds if name not in new_kinds),
        *(f"'{name}' is new" for name in new_kinds if name not in old_kinds),
        *(
            f"'{name}' was a {kind} and is a {new_kinds[name]}"
            for name, kind in old_kinds.items()
            if new_kinds.get(name, kind) != kind
        ),
        *([f"the target was {served.target} and is {new.target}"] if served.target != new.target else []),
        *([f"the task was {served.task} and is {new.task}"] if served.task != new.task else []),
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        what = "model differs from" if adopted else "table differs from that of"
        remedy = "fit it again, or adopt" if adopted else "correct the table, or train"
        raise UsageError(
            f"the {what} the served model: {', '.join(differences[:3])}{more}; {remedy} it once without --same-columns"
        )


def served_predictions(
    bundle: Bundle, rows: Sequence[Mapping[str, Any]], signature: Signature, policy: LoadPolicy
) -> npt.NDArray[Any]:
    """The answers of the served model to these rows; raises NotComparable."""
    theirs = served_scores(bundle, rows, signature, policy)
    return predictions(theirs.scores, theirs.signature)


class ServedScores(NamedTuple):
    """The scores of the served model, and its signature, which defines their meaning."""

    scores: Scores
    signature: Signature


def served_scores(bundle: Bundle, rows: Sequence[Mapping[str, Any]], signature: Signature, policy: LoadPolicy) -> ServedScores:
    """The scores of the served model for these rows; raises NotComparable.

    Others may write to the store of the bundle, so a model that the policy refuses, or that fails, is not compared.
    """
    try:
        predictor = open_predictor(bundle, policy)
        difference = _difference(predictor.signature, signature)
        if difference:
            raise NotComparable(f"the served model has {difference}")
        matrix = read_rows(predictor.signature, rows, unknown="unseen")
    except BundleRefused as error:
        raise not_opened(error) from None
    except InvalidInput as error:
        raise NotComparable(f"the served model does not accept these rows: {error.problems[0].message}") from None
    try:
        return ServedScores(predictor.scores(matrix), predictor.signature)
    except Exception as error:  # a foreign model may raise any error
        raise NotComparable(f"the served model failed on these rows ({type(error).__name__})", "load") from error


def not_opened(error: BundleRefused) -> NotComparable:
    """The NotComparable for a served model that the store or the load policy refuses."""
    return NotComparable(f"{error.reason}: {error}", error.reason)


def paired(predicted: npt.NDArray[Any], theirs: npt.NDArray[Any], target: npt.NDArray[Any]) -> tuple[int, int]:
    """The number of rows that only the first classifier predicts correctly, and the number for only the second."""
    true = target.astype(str)
    right, other = predicted.astype(str) == true, theirs.astype(str) == true
    return int(np.sum(right & ~other)), int(np.sum(~right & other))


def _difference(served: Signature, new: Signature) -> str | None:
    if served.task != new.task:
        return "another task"
    kinds = {feature.name: feature.kind for feature in new.features}
    if {feature.name: feature.kind for feature in served.features} != kinds:
        return "other features"
    if sorted(map(str, served.classes)) != sorted(map(str, new.classes)):
        return "other classes"
    targets = [[(part.target, sorted(map(str, part.classes))) for _, part in each.parts] for each in (served, new)]
    if targets[0] != targets[1]:
        return "other targets"
    return None
