"""Converts the model to ONNX, and keeps the result only when it is proven to answer like the trained model.

This module tries several conversions, and keeps the one with the smallest difference from scikit-learn. Labels must be equal and
scores must agree, on the held-out rows and on rows next to the decision thresholds, where a tree takes the wrong branch if its
features are rounded to float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from serve_app.artifacts.manifest import OnnxConversion
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import LARGEST, UNSEEN, Signature
from serve_app.inference.backends.onnx_backend import OnnxBackend
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from serve_app.inference.date_parts import DateParts
from serve_app.inference.parity import TOLERANCE, same_scores
from training import fit
from training.booster_trees import read_ensemble
from training.boosters import Native, is_booster, to_native


class Conversion(NamedTuple):
    """One way to convert: type of the input, whether rows are rounded through float32 first, whether float64 operators are used."""

    dtype: str
    rounded: bool
    float64_operators: bool

    def __str__(self) -> str:
        rounded = " rounded through float32" if self.rounded else ""
        return f"{self.dtype}{rounded}{' with float64 operators' if self.float64_operators else ''}"


CONVERSIONS = (
    Conversion("float64", False, True),
    Conversion("float64", False, False),
    Conversion("float64", True, False),
    Conversion("float32", False, False),
)
"""The conversions in the order of the attempts."""

MAX_PROBES = 4000
"""Most rows that are built to find differences; for a booster, as many again at its own thresholds."""

NO_DIFFERENCE = 1e-12
"""The largest difference after which no other conversion is tried."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The ONNX model, None when no conversion is proven; `facts` are the entry `onnx` of the manifest.

    `native` is a booster without an ONNX form, in the format of its library. Without both, scikit-learn computes the answers.
    """

    model: bytes | None
    facts: OnnxConversion
    native: Native | None = None


def convert(
    estimator: Any, signature: Signature, train: Matrix, held_out: Matrix, *, refuses_unknown: Collection[str] = ()
) -> Converted:
    """Convert a fitted estimator; `train` and `held_out` are coded matrices of shape (rows, features).

    `refuses_unknown` are the features for which the estimator raises for an unknown category, so no such row is built. A failed
    conversion is not an error: `facts` has its reason.
    """
    if not _gives_scores(signature):
        return Converted(None, OnnxConversion(available=False, reason="the estimator has no probabilities"))
    final = fit.final_estimator(estimator)
    booster = is_booster(final)
    probes = probe_rows(signature, train, refuses_unknown=refuses_unknown)
    rows = np.vstack([held_out if booster else held_out[:MAX_PROBES], probes])
    if booster:
        rows = np.vstack([rows, threshold_rows(final, signature, train)])
    with fit.threads_for(len(train)):
        expected = SklearnBackend(estimator, signature).scores(rows)
    best: tuple[float, bytes, Conversion] | None = None
    reasons = []
    for conversion in CONVERSIONS[:1] if booster else CONVERSIONS:
        try:
            model, difference = _try(conversion, estimator, signature, rows, expected)
        except Exception as error:  # converters fail in many ways; scikit-learn computes the answers then
            kind = "" if isinstance(error, _Different) else f"{type(error).__name__}: "
            reasons.append(f"{conversion}: {kind}{' '.join(str(error).split())[:160]}")
            continue
        if best is None or difference < best[0]:
            best = (difference, model, conversion)
        if difference <= NO_DIFFERENCE:
            break
    if best is None:
        native = None
        if booster:
            try:
                native = to_native(estimator, signature, rows, expected)
            except Exception as error:  # as above
                reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        return Converted(None, OnnxConversion(available=False, reason="; ".join(reasons)), native)
    difference, model, conversion = best
    return Converted(
        model,
        OnnxConversion(
            available=True,
            input=conversion.dtype,
            rounded=conversion.rounded,
            largest_difference=difference,
            tolerance=TOLERANCE,
            rows_compared=len(rows),
        ),
    )


def _gives_scores(signature: Signature) -> bool:
    """Whether the estimator gives numbers that can be compared, and not only labels."""
    parts = [part for _, part in signature.parts] or [signature]
    return all(part.probabilistic or part.task != "classification" for part in parts)


class _Different(Exception):
    """The answers of the converted model differ from those of scikit-learn."""


def _try(conversion: Conversion, estimator: Any, signature: Signature, rows: Matrix, expected: Scores) -> tuple[bytes, float]:
    """The converted model and its largest difference from the expected scores; raises when it is too large."""
    model = to_onnx(estimator, signature, conversion.dtype, float64_operators=conversion.float64_operators)
    scores = OnnxBackend(model, signature, rounded=conversion.rounded).scores(rows)
    if scores.shape != expected.shape:
        raise _Different(f"gives scores of shape {scores.shape} instead of {expected.shape}")
    difference = float(np.max(np.abs(expected - scores), initial=0.0))
    if not np.isfinite(scores).all() or not same_scores(expected, scores, signature):
        raise _Different(f"differs from scikit-learn by {difference:.3g}")
    return model, difference


def probe_rows(signature: Signature, train: Matrix, *, refuses_unknown: Collection[str] = ()) -> Matrix:
    """Rows at likely thresholds: midpoints of adjacent training values and one float32 step beside them, gaps, unseen categories.

    Shape (at most MAX_PROBES, features).
    """
    random = np.random.default_rng(0)
    per_feature = max(8, MAX_PROBES // len(signature.features))
    blocks = [train[:200]]
    for at, feature in enumerate(signature.features):
        if feature.kind in ("number", "date"):
            values = _edges(train[:, at], per_feature, random)
        elif feature.kind == "boolean":
            values = np.array([0.0, 1.0])
        else:
            codes = np.arange(len(feature.categories), dtype=np.float64)
            values = np.concatenate([codes[: per_feature - 2], [] if feature.name in refuses_unknown else [UNSEEN]])
        if feature.nullable:
            values = np.concatenate([values, [np.nan]])
        block = train[random.integers(0, len(train), len(values))].copy()
        block[:, at] = values
        blocks.append(block)
    return np.vstack(blocks)[:MAX_PROBES]


def threshold_rows(booster: Any, signature: Signature, train: Matrix) -> Matrix:
    """Rows at the thresholds of the booster's trees and at the nearest float64 and float32 numbers beside them.

    Every second row has such a number in one column, the other rows have one in every column. Shape (at most MAX_PROBES, features);
    empty for a booster whose trees cannot be read or use columns of unknown origin.
    """
    columns = _columns(signature)
    nothing: Matrix = np.empty((0, len(signature.features)))
    try:
        known = read_ensemble(booster).thresholds()
    except NotImplementedError:
        return nothing
    if getattr(booster, "n_features_in_", len(columns)) != len(columns):
        return nothing
    random = np.random.default_rng(0)
    values = {at: _beside(known[column], random) for column, at in columns.items() if at is not None and column in known}
    if not values:
        return nothing
    rows: Matrix = train[random.integers(0, len(train), min(MAX_PROBES, 2 * sum(map(len, values.values()))))].copy()
    single = np.arange(0, len(rows), 2)
    owners = random.permutation(np.repeat(list(values), [len(numbers) for numbers in values.values()]))
    owners = np.resize(owners, len(single))
    for at, numbers in values.items():
        own = single[owners == at]
        rows[own, at] = np.resize(numbers, len(own))
        rows[1::2, at] = np.resize(np.roll(numbers, len(own)), len(rows[1::2]))
    return rows


def _columns(signature: Signature) -> dict[int, int | None]:
    """Maps each column that the model learns from to its column of the coded matrix; None for a part of a date."""
    origins: list[int | None] = []
    for at, feature in enumerate(signature.features):
        origins += [at] if feature.date is None else [None] * len(feature.date.parts)
    return dict(enumerate(origins))


def _beside(thresholds: Matrix, random: np.random.Generator) -> Matrix:
    """The thresholds, the float64 and float32 numbers next to them, and the numbers at which rounding to float32 changes sides.

    The numbers are in random order, and within the range of request values.
    """
    narrow = thresholds.astype(np.float32)
    below, above = (np.nextafter(narrow, np.float32(side)).astype(np.float64) for side in (-np.inf, np.inf))
    middle = (narrow.astype(np.float64) + below) / 2
    numbers = [thresholds, np.nextafter(thresholds, -np.inf), np.nextafter(thresholds, np.inf), below, above, middle]
    numbers += [np.nextafter(middle, -np.inf), np.nextafter(middle, np.inf)]
    beside = np.concatenate(numbers)
    return random.permutation(beside[np.abs(beside) <= LARGEST])


def _edges(column: Matrix, count: int, random: np.random.Generator) -> Matrix:
    known = np.unique(column[~np.isnan(column)])
    middles = (known[:-1] + known[1:]) / 2 if len(known) > 1 else known
    if len(middles) > count // 3:
        middles = random.choice(middles, max(1, count // 3), replace=False)
    narrow = middles.astype(np.float32)
    below, above = np.nextafter(narrow, np.float32(-np.inf)), np.nextafter(narrow, np.float32(np.inf))
    edges: Matrix = np.concatenate([middles, below.astype(np.float64), above.astype(np.float64), known[:1], known[-1:]])
    return edges


def to_onnx(estimator: Any, signature: Signature, dtype: str, *, float64_operators: bool) -> bytes:
    """The estimator as an ONNX model with an input of this type and one output, the probabilities or values.

    Raises the converter's own errors for an estimator that it does not know.
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    from training import onnx_answers, onnx_dates, onnx_float64

    onnx_float64.register_boosters()
    kind = DoubleTensorType if dtype == "float64" else FloatTensorType
    arguments: dict[str, Any] = {"initial_types": [("X", kind([None, len(signature.features)]))]}
    if signature.task == "classification":
        arguments["options"] = {id(estimator): {"zipmap": False}}
    single = not signature.outputs and signature.task in ("classification", "regression")
    converters: dict[type, Any] = {DateParts: onnx_dates.convert_parts}
    shapes: dict[type, Any] = {DateParts: onnx_dates.parts_shape}
    if float64_operators:
        converters |= onnx_float64.converters()
        shapes |= onnx_float64.shapes()
        if not single:
            converters |= onnx_answers.converters(converters)
            shapes |= onnx_answers.shapes(shapes)
    if float64_operators or any(feature.date for feature in signature.features):
        arguments |= {
            "target_opset": onnx_float64.OPSET,
            "custom_conversion_functions": converters,
            "custom_shape_calculators": shapes,
            "custom_parsers": {DateParts: onnx_dates.parse_parts},
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_sklearn(estimator, **arguments)
        onnx_float64.raise_opset(model)
    if not single:
        onnx_answers.join_outputs(model, signature)
    elif signature.task == "classification":
        del model.graph.output[0]  # the label, because serving takes the class of the highest probability
    serialized: bytes = model.SerializeToString()
    return serialized
