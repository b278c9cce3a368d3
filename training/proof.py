"""The proof that the model in a bundle answers like the given model, which got the same rows before any change.

The given model gets the examples row by row, like requests, because a single row can have other types than the same row in a table.
Some examples have gaps or unknown categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import Label, Signature
from serve_app.inference.backends import Score
from training import evaluate
from training.candidate import GoldenExamples
from training.dataset import json_rows
from training.derived_signature import UNKNOWN_TEXT, DerivedSignature, gap_of, unknown_of
from training.original import Original
from training.publication import select_golden_rows
from training.unlabelled import UNLABELLED

ROWS = 2_000
"""Most rows of the sample in the single call of the given model."""

MORE_ROWS = 40
"""Most examples with a gap, and most with an unknown category."""

EQUAL = 1e-9
"""Largest difference between the given model and the rewritten one, in probability (regression: relative to the scale)."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The answers of the given model: to the first rows of the sample in one call, and to the examples row by row."""

    scores: Scores
    golden: GoldenExamples


@dataclass(frozen=True, slots=True)
class Proof:
    """The comparison of the rewritten model with the given one; `why` names the difference, None when they are equal."""

    rows: int
    largest_difference: float
    why: str | None = None


def ask(model: Original, derived: DerivedSignature) -> Expected:
    """The answers of the given model to the rows of the sample and to the examples."""
    signature = derived.signature
    frame = derived.asked.head(ROWS)
    scores = model.scores(frame, signature)
    rows = json_rows(derived.plain.head(ROWS), signature)
    selected = select_golden_rows(rows, labels_of(scores, signature), signature)
    examples = [(rows[at], frame.iloc[[at]]) for at in selected]
    examples += _more_examples(rows, frame, derived)
    alone = [model.scores(row, signature) for _, row in examples]
    return Expected(scores, GoldenExamples([row for row, _ in examples], np.concatenate(alone)))


def labels_of(scores: Scores, signature: Signature) -> npt.NDArray[Any]:
    """The predicted labels or values of a task with a target; the scores themselves for another task."""
    if signature.task in UNLABELLED:
        return scores
    return evaluate.predictions(scores, signature)


def _more_examples(
    rows: Sequence[dict[str, Label | None]], frame: pd.DataFrame, derived: DerivedSignature
) -> list[tuple[dict[str, Label | None], pd.DataFrame]]:
    """Copies of one row of the sample: with a gap in each column that takes gaps, and an unknown category if it is answered."""
    examples = []
    for at, column in enumerate(derived.columns):
        name = column.feature.name
        place = at % len(rows)
        changes: list[tuple[Label | None, Any]] = []
        if column.feature.nullable:
            changes.append((None, gap_of(frame[name])))
        if column.unknown == "answered":
            changes.append((UNKNOWN_TEXT, unknown_of(frame[name])))
        for value, cell in changes:
            row = frame.iloc[[place]].reset_index(drop=True)
            row[name] = cell
            examples.append(({**rows[place], name: value}, row))
    return examples[:MORE_ROWS]


def compare(expected: Expected, score: Score, matrix: Matrix, signature: Signature) -> Proof:
    """Compare `score`, which takes the coded matrix, with the given model; `matrix` are the coded rows of the sample."""
    examples = read_rows(signature, expected.golden.rows, unknown="unseen")
    pairs = [(expected.scores, score(matrix[: len(expected.scores)])), (expected.golden.scores, score(examples))]
    count, largest = 0, 0.0
    for given, own in pairs:
        count += len(given)
        if own.shape != given.shape:
            return Proof(count, largest, f"it gives scores of shape {own.shape} instead of {given.shape}")
        difference = np.abs(given - own)
        if not np.array_equal(np.isnan(given), np.isnan(own)):
            return Proof(count, largest, "it gives NaN for other rows")
        scale = 1.0 if signature.task == "classification" else max(1.0, float(np.nanmax(np.abs(given), initial=0.0)))
        largest = max(largest, float(np.nanmax(difference, initial=0.0)) / scale)
    if largest > EQUAL:
        return Proof(count, largest, f"its answers differ by {largest:.3g}")
    return Proof(count, largest)
