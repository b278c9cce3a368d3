"""A fitted model with all that must be known of it before anybody decides."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt

from serve_app.artifacts.manifest import Verdict
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import Label, Signature
from serve_app.artifacts.store import Store
from serve_app.errors import BundleRefused
from serve_app.inference.backends.sklearn_backend import ENCODE, SklearnBackend, strip_encoder
from training import evaluate, fit
from training.dataset import Dataset, json_rows
from training.evaluate import Metrics

COMPARED_ROWS = 10_000
"""Held-out rows on which the candidate and the served model are compared, at most."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """`file` is the pickle; `tail` is what it gives back behind the `encode` step; `train` and `held_out` are coded matrices.

    `rows` are the held-out rows as a client would send them (the first COMPARED_ROWS); `scores` are the tail's for all of them.
    """

    dataset: Dataset
    signature: Signature
    model: Any
    file: bytes
    tail: Any
    train: Matrix
    held_out: Matrix
    rows: list[dict[str, Label | None]]
    scores: Scores
    metrics: Metrics
    notes: tuple[str, ...]

    @property
    def target(self) -> npt.NDArray[Any]:
        return self.dataset.test_target

    @property
    def predictions(self) -> npt.NDArray[Any]:
        return evaluate.predictions(self.scores, self.signature)


def fit_candidate(dataset: Dataset, estimator: str, params: Mapping[str, Any], *, random_state: int) -> Candidate:
    """Fit, write the pickle, and measure what comes out of that pickle."""
    signature = dataset.signature
    model = fit.build(signature, estimator, params, random_state=random_state)
    notes = fit.fit(model, dataset.train, dataset.train_target)
    if signature.task == "classification" and not hasattr(model, "predict_proba"):
        signature = replace(signature, probabilistic=False)
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=("zlib", 3))
    encode = dict(getattr(model, "steps", [])).get(ENCODE)
    train, held_out = (
        np.asarray(part if encode is None else encode.transform(part), dtype=np.float64) for part in (dataset.train, dataset.test)
    )
    tail = strip_encoder(joblib.load(io.BytesIO(buffer.getvalue())))
    with fit.threads_for(len(train)):
        scores = SklearnBackend(tail, signature).scores(held_out)
    return Candidate(
        dataset=dataset,
        signature=signature,
        model=model,
        file=buffer.getvalue(),
        tail=tail,
        train=train,
        held_out=held_out,
        rows=json_rows(dataset.test[:COMPARED_ROWS], signature),
        scores=scores,
        metrics=evaluate.measure(dataset.test_target, evaluate.predictions(scores, signature), signature),
        notes=notes,
    )


def judge(candidate: Candidate, store: Store, *, limits: Mapping[str, float], tolerance: float) -> tuple[str | None, Verdict]:
    """The verdict, and the store's pointer that it is true for."""
    signature = candidate.signature
    target = candidate.target[: len(candidate.rows)]
    pointer = store.pointer()
    try:
        served = None if pointer is None else store.read(pointer)
    except BundleRefused as error:
        comparison: dict[str, Any] = {"compared": False, "why": f"the served model cannot be read: {error}"}
        return pointer, evaluate.judge(candidate.metrics, None, None, limits=limits, comparison=comparison, tolerance=tolerance)
    theirs, comparison = evaluate.served_predictions(served, candidate.rows, signature)
    if theirs is None:
        return pointer, evaluate.judge(candidate.metrics, None, None, limits=limits, comparison=comparison, tolerance=tolerance)
    mine = candidate.predictions[: len(candidate.rows)]
    new, old = evaluate.measure(target, mine, signature), evaluate.measure(target, theirs, signature)
    names = evaluate.NAMES[signature.task]
    comparison |= {"rows": len(target), "new": {name: new[name] for name in names}, "served": {name: old[name] for name in names}}
    if signature.task == "classification":
        comparison |= evaluate.paired(mine, theirs, target)
    return pointer, evaluate.judge(candidate.metrics, new, old, limits=limits, comparison=comparison, tolerance=tolerance)
