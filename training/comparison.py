"""The candidate and the served model on the same held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.signature import Signature
from serve_app.errors import BundleRefused, InvalidInput
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import open_predictor
from training.evaluate import Metrics, measure, predictions


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both models on the same rows, or `why` they could not be compared.

    `version` and `digest` are the served model's; `new` and `served` are metrics on the same `rows`. A classification also counts
    the rows that only one of the two predicts correctly.
    """

    compared: bool
    why: str | None = None
    version: str | None = None
    digest: str | None = None
    rows: int | None = None
    new: Metrics | None = None
    served: Metrics | None = None
    only_new_right: int | None = None
    only_served_right: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As verdict and manifest hold it: without what is not known, metrics as numbers only."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        document |= {
            name: metrics.scalars() for name, metrics in (("new", self.new), ("served", self.served)) if metrics is not None
        }
        return {name: value for name, value in document.items() if value is not None}


class NotComparable(Exception):
    """The served model cannot predict these rows; the message says why."""


def compare(
    served: Bundle | None,
    rows: Sequence[Mapping[str, Any]],
    predicted: npt.NDArray[Any],
    target: npt.NDArray[Any],
    signature: Signature,
) -> Comparison:
    """Compare the candidate's predictions with those of the served bundle.

    `rows` are held-out rows as clients send them; `predicted` and `target` have one entry for each.
    """
    if served is None:
        return Comparison(False, "no model is served yet")
    try:
        theirs = served_predictions(served, rows, signature)
    except NotComparable as error:
        return Comparison(False, str(error), served.version, served.digest)
    only_new, only_served = paired(predicted, theirs, target) if signature.task == "classification" else (None, None)
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


def served_predictions(bundle: Bundle, rows: Sequence[Mapping[str, Any]], signature: Signature) -> npt.NDArray[Any]:
    """What the served model answers to these rows; raises NotComparable."""
    try:
        predictor = open_predictor(bundle, LoadPolicy(allow_joblib=True, backend="auto", verify=None))
        difference = _difference(predictor.signature, signature)
        if difference:
            raise NotComparable(f"the served model has {difference}")
        matrix = read_rows(predictor.signature, rows, unknown="unseen")
    except BundleRefused as error:
        raise NotComparable(f"the served model cannot be opened here: {error}") from None
    except InvalidInput as error:
        raise NotComparable(f"the served model takes no such rows: {error.problems[0].message}") from None
    return predictions(predictor.scores(matrix), predictor.signature)


def paired(predicted: npt.NDArray[Any], theirs: npt.NDArray[Any], target: npt.NDArray[Any]) -> tuple[int, int]:
    """The numbers of rows that only the first, and only the second of two classifiers predicts correctly."""
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
    return None
