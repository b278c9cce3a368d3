"""The check that a loaded model repeats its answers from training, and the measurement of its calls."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import orjson

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.manifest_bounds import MAX_GOLDEN_VALUES
from serve_app.artifacts.matrix import Matrix, Scores, batched
from serve_app.artifacts.names import GOLDEN
from serve_app.artifacts.signature import EXAMPLE_TEXT, Feature, Signature
from serve_app.errors import BundleRefused, InvalidInput
from serve_app.inference.backends import Backend
from serve_app.inference.padding import pad_row
from serve_app.inference.parity import same_scores

SLOW_SECONDS = 0.0002
"""A slower row always shares its call with waiting rows; a quicker row only if the model is batch-invariant."""
MAX_SHARED_ROWS = 32
"""Maximum number of rows in one shared call of a quick model."""

WARM_UP_SECONDS = 1.0
WARM_UP_CALLS = 20
WARM_UP_ROWS = 8
INVARIANCE_ROWS = 256
CALL_SIZES = {1: (2, 3, 5, 7, 8, 12, 13, 25, 31, MAX_SHARED_ROWS), 8: (16, 24, MAX_SHARED_ROWS)}
"""Multiples of rows to try, and the sizes of the calls for each. Vectors have at most eight float64."""


@dataclass(frozen=True, slots=True)
class CallProfile:
    """The cost of calls of one backend, and whether rows may share calls; measured once, after the load.

    `row_seconds` is the time of a call with one row; `extra_row_seconds` is that of each further row in the same call.
    `batch_invariant`: a row gets bit-identical scores alone and in calls of up to MAX_SHARED_ROWS rows, if the number of rows of
    each call is a multiple of `batch_multiple`.
    """

    row_seconds: float
    extra_row_seconds: float
    batch_multiple: int = 1
    batch_invariant: bool = False

    @property
    def slow(self) -> bool:
        """Whether a row is so expensive that it should wait for other rows."""
        return self.row_seconds >= SLOW_SECONDS

    def seconds(self, rows: float) -> float:
        """The approximate time in seconds of one call with this number of rows."""
        return self.row_seconds + max(0.0, rows - 1) * self.extra_row_seconds


def replay_golden(backend: Backend, signature: Signature, files: Mapping[str, bytes]) -> None:
    """Compare the answers with the golden examples, because another library or processor must not change an answer.

    A bundle without examples passes. Raises BundleRefused `golden`, or `load` when the model cannot answer.
    """
    raw = files.get(GOLDEN)
    if raw is None:
        return
    try:
        golden = orjson.loads(raw)
        if len(golden["rows"]) * len(signature.features) > MAX_GOLDEN_VALUES:
            raise BundleRefused("golden", f"{GOLDEN} holds more than {MAX_GOLDEN_VALUES} values")
        matrix = read_rows(signature, golden["rows"], unknown="unseen")
        expected = np.array(golden["scores"], dtype=np.float64)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, InvalidInput) as error:
        raise BundleRefused("golden", f"{GOLDEN} cannot be used ({type(error).__name__})") from None
    if not len(matrix):
        raise BundleRefused("golden", f"{GOLDEN} holds no examples")
    try:
        actual = backend.scores(matrix)
    except Exception as error:
        raise BundleRefused("load", f"the model cannot answer its golden examples ({type(error).__name__})") from error
    if actual.shape != expected.shape or not same_scores(expected, actual, signature):
        raise BundleRefused("golden", "the model does not repeat the answers recorded at training")


def warm_up(backend: Backend, signature: Signature) -> CallProfile:
    """Call the model until the slow first calls are over, and return the measurement; raises BundleRefused `load`."""
    try:
        row_seconds, batch_seconds = _best_seconds(backend, signature)
        profile = CallProfile(row_seconds, max(0.0, batch_seconds - row_seconds) / (WARM_UP_ROWS - 1))
        if profile.slow:
            return profile
        multiple = _invariant_multiple(backend, signature)
    except Exception as error:
        raise BundleRefused("load", f"the model cannot answer its own example ({type(error).__name__})") from error
    if multiple is None:
        return profile
    return CallProfile(profile.row_seconds, profile.extra_row_seconds, multiple, batch_invariant=True)


def sample_rows(signature: Signature, rows: int) -> Matrix:
    """Deterministic coded rows within the ranges of the training data, shape (rows, features)."""
    random = np.random.default_rng(0)
    return np.column_stack([_sample_column(feature, rows, random) for feature in signature.features])


def _sample_column(feature: Feature, rows: int, random: np.random.Generator) -> Matrix:
    if feature.kind == "boolean":
        return random.integers(0, 2, rows).astype(np.float64)
    if feature.kind == "category":
        return random.integers(0, max(1, len(feature.categories)), rows).astype(np.float64)
    if feature.kind == "text":
        return np.array([EXAMPLE_TEXT if feature.example is None else feature.example] * rows, object)
    return random.uniform(*feature.usual, rows)


def _best_seconds(backend: Backend, signature: Signature) -> tuple[float, float]:
    """The shortest times in seconds of a call with one row and of a call with WARM_UP_ROWS rows."""
    example = read_rows(signature, [signature.example()])
    sample = sample_rows(signature, WARM_UP_ROWS)
    row_seconds = batch_seconds = math.inf
    deadline = time.perf_counter() + WARM_UP_SECONDS
    for _ in range(WARM_UP_CALLS):
        started = time.perf_counter()
        backend.scores(example)
        between = time.perf_counter()
        backend.scores(sample)
        ended = time.perf_counter()
        row_seconds = min(row_seconds, between - started)
        batch_seconds = min(batch_seconds, ended - between)
        if ended > deadline:
            break  # a slow model needs no more calls
    return row_seconds, batch_seconds


def _invariant_multiple(backend: Backend, signature: Signature) -> int | None:
    """The smallest multiple for which rows do not affect each other's scores; None without such a multiple."""
    sample = sample_rows(signature, INVARIANCE_ROWS)
    for multiple, sizes in CALL_SIZES.items():
        alone = np.concatenate([backend.scores(pad_row(row, multiple))[:1] for row in batched(sample, 1)])
        if all(np.array_equal(alone, _scores_by(backend, sample, rows), equal_nan=True) for rows in sizes):
            return multiple
    return None


def _scores_by(backend: Backend, sample: Matrix, rows: int) -> Scores:
    """The scores of a sample, computed with `rows` rows in each call."""
    missing = -len(sample) % rows
    whole = np.concatenate([sample, sample[:missing]])
    return np.concatenate([backend.scores(piece) for piece in batched(whole, rows)])[: len(sample)]
