"""A fitted model with all facts that the verdict needs."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt

from serve_app.artifacts.decision import predicted_positions
from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.manifest import Frame
from serve_app.artifacts.matrix import Matrix, Scores, matrix_type
from serve_app.artifacts.signature import Label, Signature
from serve_app.artifacts.store import Store
from serve_app.errors import BundleRefused, UsageError
from serve_app.inference.backends.frame_backend import FramedEstimator, frame_builder
from serve_app.inference.backends.sklearn_backend import ENCODE, SklearnBackend, strip_encoder
from serve_app.inference.policy import LoadPolicy
from training import calibration, coverage, evaluate, fit
from training.answer_shape import answer_shape
from training.comparison import Comparison, compare, compare_answers
from training.dataset import Dataset, json_rows
from training.evaluate import AnyMetrics, ClassificationMetrics, Unmeasured
from training.rules import CoverageEvidence, Evidence
from training.train_options import CalibrationMethod
from training.unlabelled import UNLABELLED, answer_shares

FEW_ROWS = 5
"""Smallest number of held-out rows of a class for which the gate refuses a model that never predicts the class."""

SHAPE_ROWS = 100
"""Number of training rows that show the shape of the answers of a model without a target."""

COMPARED_ROWS = 10_000
"""Most held-out rows for the comparison of the candidate with the served model."""


@dataclass(frozen=True, slots=True)
class GoldenExamples:
    """Rows in the form of requests, and the scores that the model must repeat, shape (rows, classes) or (rows,)."""

    rows: list[dict[str, Label | None]]
    scores: Scores


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fitted model before the verdict.

    `model` takes a table; `pickle` is its joblib file. `estimator` is the unpickled model without the `encode` step: it takes coded
    matrices like `train` and `held_out`, of shape (rows, features). `rows` are the first COMPARED_ROWS held-out rows in the form of
    requests; `scores` are the estimator's scores for all held-out rows. `never_predicted` maps the classes that the model does not
    predict to their number of held-out rows. `golden` are the golden examples of a model that was fitted elsewhere; if None, they
    come from the held-out rows. Without labels, `metrics` are Unmeasured. `frame` belongs to a model that takes tables while
    serving; `packages` are files of the bundle with code that the pickle names.
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
    metrics: AnyMetrics
    notes: tuple[str, ...]
    never_predicted: Mapping[str, int] = field(default_factory=dict)
    golden: GoldenExamples | None = None
    frame: Frame | None = None
    packages: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def is_labelled(self) -> bool:
        """Whether the held-out rows have labels or values."""
        return not isinstance(self.metrics, Unmeasured)

    @property
    def target(self) -> npt.NDArray[Any]:
        """The true labels or values of the held-out rows."""
        return self.dataset.test_target

    @property
    def predictions(self) -> npt.NDArray[Any]:
        """The predicted labels or values of the held-out rows."""
        return evaluate.predictions(self.scores, self.signature)


def fit_candidate(
    dataset: Dataset,
    estimator: str,
    params: Mapping[str, Any],
    *,
    random_state: int,
    calibrate: CalibrationMethod | None = None,
    level: float | None = None,
) -> Candidate:
    """Fit and pickle a model, and measure the unpickled model.

    `calibrate` corrects its probabilities. With a `level`, the calibration rows of the dataset give the bound of this coverage.
    Raises UsageError when the estimator does not exist or cannot learn the table.
    """
    signature = dataset.signature
    model = fit.build(signature, estimator, params, random_state=random_state, calibrate=calibrate)
    with calibration.cross_validation(fit.final_estimator(model), dataset, random_state):
        notes = fit.fit(model, dataset.train, None if signature.task in UNLABELLED else dataset.train_target)
    if signature.task == "classification" and not hasattr(model, "predict_proba"):
        if signature.threshold is not None:
            raise UsageError(f"a threshold needs probabilities, which {estimator} does not have: use another --estimator")
        outputs = tuple(replace(output, probabilistic=False) for output in signature.outputs)
        signature = replace(signature, probabilistic=bool(outputs), outputs=outputs)
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=("zlib", 3))
    return measured_candidate(dataset, signature, model, buffer.getvalue(), notes=notes, level=level)


def measured_candidate(
    dataset: Dataset,
    signature: Signature,
    model: Any,
    pickle: bytes,
    *,
    notes: Sequence[str] = (),
    level: float | None = None,
    is_labelled: bool = True,
    golden: GoldenExamples | None = None,
    frame: Frame | None = None,
    packages: Mapping[str, bytes] | None = None,
) -> Candidate:
    """Measure the model from its `pickle`; `model` is the same model, and takes tables like those of the dataset.

    Without labels, the target of the dataset is not used. With a `frame`, the model takes tables while serving, too. With a
    `level`, the calibration rows of the dataset give the bound of this coverage.
    """
    unpickled = joblib.load(io.BytesIO(pickle))
    parts = [part for part in (dataset.train, dataset.test, dataset.calibration) if part is not None]
    if frame is None:
        unpickled = strip_encoder(unpickled)
        encode = dict(getattr(model, "steps", [])).get(ENCODE)
        dtype = matrix_type(has_texts=signature.has_texts)
        matrices = [np.asarray(part if encode is None else encode.transform(part), dtype=dtype) for part in parts]
    else:
        unpickled = FramedEstimator(unpickled, frame_builder(signature, frame))
        matrices = [read_rows(signature, json_rows(part, signature), unknown="unseen") for part in parts]
    train, held_out, *held_back = matrices
    with fit.threads_for(len(train)):
        if signature.task in UNLABELLED:  # the clusters are known after the fit
            shape = answer_shape(unpickled, train[:SHAPE_ROWS])
            signature = replace(signature, classes=shape.classes, probabilistic=shape.probabilistic, distance=shape.distance)
        backend = SklearnBackend(unpickled, signature)
        if level is not None and dataset.calibration_target is not None:
            signature = coverage.with_coverage(signature, backend.scores(held_back[0]), dataset.calibration_target, level)
        scores = backend.scores(held_out)
        metrics = (
            _measured(dataset, scores, signature) if is_labelled or signature.task in UNLABELLED else Unmeasured(len(held_out))
        )
        never, seldom = _never_predicted(metrics, backend, train, signature)
    return Candidate(
        dataset=dataset,
        signature=signature,
        model=model,
        pickle=pickle,
        estimator=unpickled,
        train=train,
        held_out=held_out,
        rows=json_rows(dataset.test[:COMPARED_ROWS], signature),
        scores=scores,
        metrics=metrics,
        notes=(*notes, *seldom),
        never_predicted=never,
        golden=golden,
        frame=frame,
        packages=packages or {},
    )


def _measured(dataset: Dataset, scores: Scores, signature: Signature) -> AnyMetrics:
    """The metrics on the held-out rows, given by their scores."""
    if signature.task in UNLABELLED:
        return answer_shares(scores, signature)
    metrics = evaluate.measure(dataset.test_target, evaluate.predictions(scores, signature), signature, scores)
    return coverage.measured(metrics, scores, dataset.test_target, signature)


def _never_predicted(
    metrics: AnyMetrics, backend: SklearnBackend, train: Matrix, signature: Signature
) -> tuple[dict[str, int], list[str]]:
    """The classes that are never predicted with their held-out rows, and notes about classes missing only in the held-out rows.

    The model may miss a class with fewer than FEW_ROWS held-out rows by chance, so it counts only if the training rows miss it,
    too.
    """
    missed = metrics.never_predicted if isinstance(metrics, ClassificationMetrics) else {}
    few = {at for at, rows in missed.items() if rows < FEW_ROWS}
    if few:
        few &= set(np.unique(predicted_positions(backend.scores(train), signature)).tolist())
    label = {at: str(signature.classes[at]) for at in missed}
    notes = [f"class '{label[at]}' is never predicted for its {missed[at]} held-out rows" for at in sorted(few)]
    return {label[at]: rows for at, rows in missed.items() if at not in few}, notes


def gather_evidence(
    candidate: Candidate,
    store: Store,
    policy: LoadPolicy,
    *,
    floors: Mapping[str, float],
    tolerance: float,
    needs_pickle: bool,
    constant: Collection[str] = (),
    allow_unpredicted: bool = False,
    adopted: bool = False,
) -> tuple[str | None, Evidence]:
    """The evidence for a verdict, and the store's pointer for which it is valid; `policy` applies to the served model."""
    pointer = store.pointer()
    try:
        served = None if pointer is None else store.read(pointer, policy)
    except BundleRefused as error:
        comparison = Comparison(False, f"{error.reason}: {error}", refused=error.reason)
    else:
        count = len(candidate.rows)
        if candidate.signature.task in UNLABELLED:
            comparison = compare_answers(served, candidate.rows, candidate.scores[:count], candidate.signature, policy)
        elif candidate.is_labelled:
            predicted, target = candidate.predictions[:count], candidate.target[:count]
            comparison = compare(served, candidate.rows, predicted, target, candidate.signature, policy)
        else:
            comparison = Comparison(False, "the sample has no labels")
    evidence = Evidence(
        metrics=candidate.metrics,
        comparison=comparison,
        floors=floors,
        tolerance=tolerance,
        constant=constant,
        compared_by="accuracy" if candidate.signature.threshold is None else "balanced_accuracy",
        never_predicted={} if allow_unpredicted else candidate.never_predicted,
        servable=policy.allow_joblib or not needs_pickle,
        coverage=_coverage_evidence(candidate),
        adopted=adopted,
    )
    return pointer, evidence


def _coverage_evidence(candidate: Candidate) -> CoverageEvidence | None:
    promised, held_back = candidate.signature.coverage, candidate.dataset.calibration
    share = candidate.metrics.scalars().get("coverage")
    if promised is None or held_back is None or share is None:
        return None
    rows = candidate.metrics.rows
    return CoverageEvidence(promised.level, share, rows, coverage.least_share(promised.level, rows, len(held_back)))
