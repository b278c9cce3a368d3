"""A fitted model with all that must be known of it before the verdict."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt

from serve_app.artifacts.decision import predicted_positions
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import Label, Signature
from serve_app.artifacts.store import Store
from serve_app.errors import BundleRefused, UsageError
from serve_app.inference.backends.sklearn_backend import ENCODE, SklearnBackend, strip_encoder
from serve_app.inference.policy import LoadPolicy
from training import evaluate, fit
from training.comparison import Comparison, compare
from training.dataset import Dataset, json_rows
from training.evaluate import ClassificationMetrics, Metrics
from training.rules import Evidence

FEW_ROWS = 5
"""Held-out rows of a class from which on a model that predicts it for none of them is refused."""

COMPARED_ROWS = 10_000
"""Held-out rows on which the candidate and the served model are compared, at most."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fitted model, not yet judged.

    `model` takes a table; `pickle` is its joblib file. `estimator` is what the pickle contains without the `encode` step: it takes
    coded matrices like `train` and `held_out`, of shape (rows, features). `rows` are the held-out rows as clients send them, the
    first COMPARED_ROWS; `scores` are the estimator's for all held-out rows. `never_predicted` are the classes that the model does
    not predict, with the number of held-out rows that have them.
    """

    dataset: Dataset
    signature: Signature
    model: Any
    pickle: bytes
    estimator: Any
    train: Matrix
    held_out: Matrix
    rows: list[dict[str, Label | None]]
    scores: Scores
    metrics: Metrics
    notes: tuple[str, ...]
    never_predicted: Mapping[str, int] = field(default_factory=dict)

    @property
    def target(self) -> npt.NDArray[Any]:
        """The true labels or values of the held-out rows."""
        return self.dataset.test_target

    @property
    def predictions(self) -> npt.NDArray[Any]:
        """The predicted labels or values of the held-out rows."""
        return evaluate.predictions(self.scores, self.signature)


def fit_candidate(dataset: Dataset, estimator: str, params: Mapping[str, Any], *, random_state: int) -> Candidate:
    """Fit, pickle, and measure the model that comes back from the pickle.

    Raises UsageError when there is no such estimator or it cannot learn the table.
    """
    signature = dataset.signature
    model = fit.build(signature, estimator, params, random_state=random_state)
    notes = fit.fit(model, dataset.train, dataset.train_target)
    if signature.task == "classification" and not hasattr(model, "predict_proba"):
        if signature.threshold is not None:
            raise UsageError(f"a threshold needs probabilities, which {estimator} does not give: use another --estimator")
        signature = replace(signature, probabilistic=False)
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=("zlib", 3))
    encode = dict(getattr(model, "steps", [])).get(ENCODE)
    train, held_out = (
        np.asarray(part if encode is None else encode.transform(part), dtype=np.float64) for part in (dataset.train, dataset.test)
    )
    unpickled = strip_encoder(joblib.load(io.BytesIO(buffer.getvalue())))
    with fit.threads_for(len(train)):
        backend = SklearnBackend(unpickled, signature)
        scores = backend.scores(held_out)
        metrics = evaluate.measure(dataset.test_target, evaluate.predictions(scores, signature), signature, scores)
        never, seldom = _never_predicted(metrics, backend, train, signature)
    return Candidate(
        dataset=dataset,
        signature=signature,
        model=model,
        pickle=buffer.getvalue(),
        estimator=unpickled,
        train=train,
        held_out=held_out,
        rows=json_rows(dataset.test[:COMPARED_ROWS], signature),
        scores=scores,
        metrics=metrics,
        notes=(*notes, *seldom),
        never_predicted=never,
    )


def _never_predicted(
    metrics: Metrics, backend: SklearnBackend, train: Matrix, signature: Signature
) -> tuple[dict[str, int], list[str]]:
    """The classes that are never predicted with their held-out rows, and notes on those that only the held-out rows do not show.

    A class with fewer than FEW_ROWS held-out rows may be missed by chance: it counts when the training rows miss it, too.
    """
    missed = metrics.never_predicted if isinstance(metrics, ClassificationMetrics) else {}
    few = {at for at, rows in missed.items() if rows < FEW_ROWS}
    if few:
        few &= set(np.unique(predicted_positions(backend.scores(train), signature)).tolist())
    label = {at: str(signature.classes[at]) for at in missed}
    notes = [f"class '{label[at]}' is predicted for none of the {missed[at]} held-out rows that have it" for at in sorted(few)]
    return {label[at]: rows for at, rows in missed.items() if at not in few}, notes


def gather_evidence(
    candidate: Candidate,
    store: Store,
    policy: LoadPolicy,
    *,
    floors: Mapping[str, float],
    tolerance: float,
    has_onnx: bool,
    constant: Collection[str] = (),
    allow_unpredicted: bool = False,
) -> tuple[str | None, Evidence]:
    """The evidence for a verdict, and the store's pointer for which it is valid; the served model is opened under `policy`."""
    pointer = store.pointer()
    try:
        served = None if pointer is None else store.read(pointer, policy)
    except BundleRefused as error:
        comparison = Comparison(False, f"{error.reason}: {error}", refused=error.reason)
    else:
        count = len(candidate.rows)
        predicted, target = candidate.predictions[:count], candidate.target[:count]
        comparison = compare(served, candidate.rows, predicted, target, candidate.signature, policy)
    evidence = Evidence(
        metrics=candidate.metrics,
        comparison=comparison,
        floors=floors,
        tolerance=tolerance,
        constant=constant,
        compared_by="accuracy" if candidate.signature.threshold is None else "balanced_accuracy",
        never_predicted={} if allow_unpredicted else candidate.never_predicted,
        servable=has_onnx or policy.allow_joblib,
    )
    return pointer, evidence
