"""The predictor: a verified bundle made ready to answer.

ONNX Runtime answers when the bundle brings a converted model whose parity training has proven: no pickle is executed.
Otherwise scikit-learn does, without its per-call overhead where that gives bit for bit the same numbers. It is imported when the
first such bundle comes: the import takes seconds and some 80 MB, which a replica of converted models never needs.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnxruntime
import orjson

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.legacy import signature_of
from serve_app.artifacts.manifest import Libraries
from serve_app.artifacts.matrix import Matrix, Scores, batched
from serve_app.artifacts.names import GOLDEN, JOBLIB, ONNX
from serve_app.artifacts.signature import Feature, Label, Signature
from serve_app.artifacts.signing import Verify
from serve_app.errors import BundleRefused, InvalidInput
from serve_app.inference.onnx_guard import check_onnx

TOLERANCE = 1e-5
"""Largest difference between two predictors of one model, in probability (regression: relative)."""

SLOW_SECONDS = 0.0002
"""A row that takes longer is always predicted with those that wait; a quicker one only where it does not notice."""
TOGETHER_ROWS = 32

Prefer = Literal["auto", "onnx", "scikit-learn"]
Score = Callable[[Matrix], Scores]


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """What the operator allows: pickled models, which backend, whose bundles."""

    allow_joblib: bool = True
    prefer: Prefer = "auto"
    verify: Verify | None = None


class Predictor:
    """Answers requests with one version of the model; immutable, so a request may keep it to the end.

    `kind` says how: `onnx`, `scikit-learn-fast` or `scikit-learn`. `scores` takes a matrix, shape (rows, features).
    """

    def __init__(self, bundle: Bundle, signature: Signature, kind: str, scores: Score) -> None:
        self.bundle = bundle
        self.version = bundle.version
        self.digest = bundle.digest
        self.signature = signature
        self.kind = kind
        self.scores = scores
        self.row_seconds = math.inf  # what a call with one row costs, seen while warming up
        self.further_seconds = 0.0  # and each further row in the same call
        self.multiple = 1  # a call for single rows has so many of them, or twice as many, …: what is missing is made up
        self.together = False  # whether up to TOGETHER_ROWS then get bit for bit the scores that each gets alone

    @property
    def slow(self) -> bool:
        """Whether a row costs so much that it is worth waiting for others."""
        return self.row_seconds >= SLOW_SECONDS

    def row_scores(self, row: Matrix) -> Scores:
        """The scores of one row, shape (1, features)."""
        return self.scores(row) if self.multiple == 1 else self.scores(row.repeat(self.multiple, axis=0))[:1]

    def rows_scores(self, rows: list[Matrix]) -> Scores:
        """The scores of rows that came one by one, computed in one call; there may be more scores than rows."""
        missing = -len(rows) % self.multiple
        return self.scores(np.concatenate([*rows, *rows[:1] * missing] if missing else rows))

    def seconds_of(self, rows: float) -> float:
        """About how long one call with so many rows takes."""
        return self.row_seconds + max(0.0, rows - 1) * self.further_seconds


def open_predictor(bundle: Bundle, terms: LoadPolicy | None = None) -> Predictor:
    """Load, check library versions, replay the golden examples, warm up. Raises BundleRefused."""
    terms = terms or LoadPolicy()
    if terms.verify is not None and not terms.verify(bundle.digest, bundle.seal):
        raise BundleRefused("unsigned", "the bundle is not signed with a key that is trusted here")
    if ONNX in bundle.files and terms.prefer != "scikit-learn":
        signature = bundle.signature
        assert signature is not None  # a bundle with a manifest has one
        bundle = _without(bundle, JOBLIB)
        predictor = Predictor(bundle, signature, "onnx", _open_onnx(bundle, signature))
    elif terms.prefer == "onnx":
        raise BundleRefused("forbidden", "the model has no ONNX form and the settings allow no other")
    elif not terms.allow_joblib:
        raise BundleRefused("forbidden", "the model would have to be unpickled, which the settings forbid")
    else:
        predictor = _open_joblib(bundle)
    _replay(predictor)
    warm_up(predictor)
    predictor.bundle = _without(predictor.bundle, JOBLIB, ONNX)
    return predictor


def _without(bundle: Bundle, *names: str) -> Bundle:
    """The bundle without files that are not needed any more: while a model is replaced, each would be there twice."""
    return replace(bundle, files={name: data for name, data in bundle.files.items() if name not in names})


# --- ONNX Runtime


def onnx_scores(model: bytes, signature: Signature, *, rounded: bool) -> Score:
    """The score function of an ONNX model; `rounded`: inputs go through float32 first, as scikit-learn's trees do.

    Raises BundleRefused for a model that holds what none may.
    """
    check_onnx(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a row is too little work to share
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    outputs = [output.name for output in session.get_outputs()]
    wanted = [outputs[-1]]  # a classifier gives label, probabilities; a regressor its value
    dtype = {"tensor(double)": np.float64, "tensor(float)": np.float32}[source.type]
    name, run, narrow = source.name, session.run, np.float32
    flat = signature.task == "regression"

    def scores(matrix: Matrix) -> Scores:
        data = matrix.astype(narrow).astype(dtype) if rounded else matrix.astype(dtype, copy=False)
        result: Scores = run(wanted, {name: data})[0]
        return result.ravel() if flat else result

    return scores


def _open_onnx(bundle: Bundle, signature: Signature) -> Score:
    conversion = bundle.manifest.onnx
    if conversion is None or conversion.rounded is None:
        raise BundleRefused("load", "the manifest does not say how the ONNX form takes its rows")
    try:
        scores = onnx_scores(bundle.files[ONNX], signature, rounded=conversion.rounded)
        shape = scores(np.zeros((1, len(signature.features)))).shape
    except BundleRefused:
        raise
    except Exception as error:
        raise BundleRefused("load", f"{ONNX} cannot be loaded ({type(error).__name__})") from error
    expected = (1,) if signature.task == "regression" else (1, len(signature.classes))
    if shape != expected:
        raise BundleRefused("signature", f"{ONNX} gives {shape} where the signature says {expected}")
    return scores


# --- scikit-learn


def _open_joblib(bundle: Bundle) -> Predictor:
    import joblib
    import sklearn

    _check_libraries(bundle.manifest.libraries or Libraries())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", sklearn.exceptions.InconsistentVersionWarning)
            model = joblib.load(io.BytesIO(bundle.files[JOBLIB]))
    except sklearn.exceptions.InconsistentVersionWarning as error:
        raise BundleRefused(
            "libraries", f"the model was made with scikit-learn {error.original_sklearn_version}, this is {sklearn.__version__}"
        ) from error
    except Exception as error:
        raise BundleRefused("load", f"{JOBLIB} cannot be loaded ({type(error).__name__})") from error
    signature = bundle.signature or signature_of(bundle.manifest, getattr(model, "classes_", ()))
    return sklearn_predictor(bundle, model, signature)


def sklearn_predictor(bundle: Bundle, model: Any, signature: Signature) -> Predictor:
    """A predictor over a fitted estimator; raises BundleRefused when it does not fit the signature."""
    from serve_app.inference.plan import compile_plan

    estimator = strip_encoder(model)
    width = getattr(estimator, "n_features_in_", None)
    if width not in (None, len(signature.features)):
        raise BundleRefused("signature", f"the model takes {width} features, the signature names {len(signature.features)}")
    try:
        scores = sklearn_scores(estimator, signature)
        sample = sample_rows(signature)
        scores(sample[:1])
        plan = compile_plan(estimator, scores, sample) if signature.probabilistic else None
    except BundleRefused:
        raise
    except Exception as error:
        raise BundleRefused("load", f"the model cannot answer a row of its own signature ({type(error).__name__})") from error
    return Predictor(bundle, signature, "scikit-learn-fast" if plan else "scikit-learn", plan or scores)


def strip_encoder(model: Any) -> Any:
    """The part of our pipeline behind its first step, which turns a table into the matrix that requests are decoded to."""
    steps = getattr(model, "steps", None)
    if steps and steps[0][0] == ENCODE:
        model = steps[1][1] if len(steps) == 2 else model[1:]
    first = model.steps[0][1] if hasattr(model, "steps") else model
    with contextlib.suppress(AttributeError):
        del first.feature_names_in_  # else each call warns that a matrix has no names
    return model


ENCODE = "encode"
"""Name of the pipeline step that codes the categories of a table; requests arrive coded already."""


def sklearn_scores(estimator: Any, signature: Signature) -> Score:
    """The score function of an estimator on coded matrices; raises BundleRefused when its classes are not the signature's."""
    if signature.task == "regression":
        return lambda matrix: np.asarray(estimator.predict(matrix), dtype=np.float64).ravel()
    order = _class_order(list(estimator.classes_), signature.classes)
    if not signature.probabilistic or not hasattr(estimator, "predict_proba"):
        if signature.probabilistic:
            raise BundleRefused("signature", "the model gives no probabilities though its signature says so")
        position = {label: order.index(i) for i, label in enumerate(estimator.classes_)}
        return lambda matrix: np.array([position[label] for label in estimator.predict(matrix)], dtype=np.float64)
    predict = estimator.predict_proba
    if order == list(range(len(order))):
        return lambda matrix: predict(matrix)
    return lambda matrix: predict(matrix)[:, order]


def _class_order(known: list[Any], classes: Sequence[Label]) -> list[int]:
    """Positions in the estimator's classes, in the order of the signature's."""
    plain = [label.item() if hasattr(label, "item") else label for label in known]
    if sorted(map(str, plain)) == sorted(map(str, classes)):
        texts = [str(label) for label in plain]
        return [texts.index(str(label)) for label in classes]
    if plain == list(range(len(classes))):  # numbers that stand for target_names, as the system of old trained
        return plain
    raise BundleRefused("signature", "the model's classes are not those of its signature")


def _check_libraries(libraries: Libraries) -> None:
    """A pickled estimator is only right with the scikit-learn minor version and the numpy major version it was made with."""
    import sklearn

    for name, trained, installed, parts in (
        ("scikit-learn", libraries.scikit_learn, sklearn.__version__, 2),
        ("numpy", libraries.numpy, np.__version__, 1),
    ):
        if trained is not None and trained.split(".")[:parts] != installed.split(".")[:parts]:
            raise BundleRefused(
                "libraries", f"the model was trained with {name} {trained}, {installed} is installed: train it again here"
            )


# --- proof and warm-up

WARM_UP_SECONDS = 1.0
WARM_UP_ROWS = 8
MULTIPLES = {1: (2, 3, 5, 7, 8, 12, 13, 25, 31, TOGETHER_ROWS), 8: (16, 24, TOGETHER_ROWS)}
"""Of how many rows a call has a multiple, and the numbers of rows it is tried with. No vector is wider than eight float64."""
TOGETHER_SAMPLE = 256


def sample_rows(signature: Signature, *, rows: int = 32) -> Matrix:
    """Rows inside the ranges that training saw, always the same: to warm up and to compare two ways of computing."""
    random = np.random.default_rng(0)
    return np.column_stack([_sample(feature, rows, random) for feature in signature.features])


def _sample(feature: Feature, rows: int, random: np.random.Generator) -> Matrix:
    if feature.kind == "boolean":
        return random.integers(0, 2, rows).astype(np.float64)
    if feature.kind == "category":
        return random.integers(0, max(1, len(feature.categories)), rows).astype(np.float64)
    return random.uniform(*feature.usual, rows)


def _replay(predictor: Predictor) -> None:
    """Compare with the examples recorded at training: another library, another processor must not change an answer."""
    raw = predictor.bundle.files.get(GOLDEN)
    if raw is None:
        return
    try:
        golden = orjson.loads(raw)
        matrix = read_rows(predictor.signature, golden["rows"], unknown="unseen")
        expected = np.array(golden["scores"], dtype=np.float64)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, InvalidInput) as error:
        raise BundleRefused("golden", f"{GOLDEN} cannot be used ({type(error).__name__})") from None
    if not len(matrix):
        raise BundleRefused("golden", f"{GOLDEN} holds no examples")
    try:
        found = predictor.scores(matrix)
    except Exception as error:
        raise BundleRefused("load", f"the model cannot answer its golden examples ({type(error).__name__})") from error
    if found.shape != expected.shape or not same_scores(expected, found, predictor.signature):
        raise BundleRefused("golden", "the model does not repeat the answers recorded at training")


def same_scores(expected: Scores, found: Scores, signature: Signature) -> bool:
    """True when the labels are equal and no probability differs by more than TOLERANCE (regression: relative to the scale)."""
    if signature.task == "classification" and signature.probabilistic:
        same_labels = np.array_equal(expected.argmax(axis=1), found.argmax(axis=1))
        return bool(same_labels and np.all(np.abs(expected - found) <= TOLERANCE))
    if signature.task == "classification":
        return bool(np.array_equal(expected, found))
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    return bool(np.all(np.abs(expected - found) <= TOLERANCE * scale))


def warm_up(predictor: Predictor) -> None:
    """Answer until the first calls are over, and see what a call costs and whether rows may share one. Raises BundleRefused."""
    sample = sample_rows(predictor.signature, rows=WARM_UP_ROWS)
    many = math.inf
    began = time.perf_counter()
    try:
        example = read_rows(predictor.signature, [predictor.signature.example()])
        for _ in range(20):
            started = time.perf_counter()
            predictor.row_scores(example)
            between = time.perf_counter()
            predictor.scores(sample)
            predictor.row_seconds = min(predictor.row_seconds, between - started)
            many = min(many, time.perf_counter() - between)
            if time.perf_counter() - began > WARM_UP_SECONDS:
                break  # a slow model is as warm after two
    except Exception as error:
        raise BundleRefused("load", f"the model cannot answer its own example ({type(error).__name__})") from error
    predictor.further_seconds = max(0.0, many - predictor.row_seconds) / (WARM_UP_ROWS - 1)
    if not predictor.slow:
        predictor.together = _together(predictor)


def _together(predictor: Predictor) -> bool:
    """Whether rows do not notice each other in calls with some multiple of rows, which is left in `predictor.multiple`.

    Matrix libraries compute what is left over from their blocks and vectors by other routines, which may round differently.
    """
    sample = sample_rows(predictor.signature, rows=TOGETHER_SAMPLE)
    for multiple, sizes in MULTIPLES.items():
        predictor.multiple = multiple
        alone = np.concatenate([predictor.row_scores(row) for row in batched(sample, 1)])
        if all(np.array_equal(alone, _scores_by(predictor, sample, rows), equal_nan=True) for rows in sizes):
            return True
    predictor.multiple = 1
    return False


def _scores_by(predictor: Predictor, sample: Matrix, rows: int) -> Scores:
    """The scores of a sample, computed with so many rows in each call."""
    short = -len(sample) % rows
    filled = np.concatenate([sample, sample[:short]])
    return np.concatenate([predictor.scores(piece) for piece in batched(filled, rows)])[: len(sample)]
