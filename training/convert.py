"""An ONNX form of the model, kept only when it is proven to answer like scikit-learn.

Several conversions are tried, and the one with the smallest difference from scikit-learn is kept. Labels must be equal and scores
must agree, on the held-out rows and on rows next to the decision thresholds: a tree whose features are rounded to float32 takes the
wrong branch there.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from serve_app.artifacts.manifest import OnnxConversion
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.signature import UNSEEN, Signature
from serve_app.inference.backends.onnx_backend import OnnxBackend
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from serve_app.inference.date_parts import DateParts
from serve_app.inference.parity import TOLERANCE, same_scores
from training import fit


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
"""In the order in which they are tried."""

MAX_PROBES = 4000
"""Rows that are built to find differences, at most."""

NO_DIFFERENCE = 1e-12
"""With a difference up to this, no other conversion is tried."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The ONNX model, None when scikit-learn has to answer; `facts` are the entry `onnx` of the manifest."""

    model: bytes | None
    facts: OnnxConversion


def convert(estimator: Any, signature: Signature, train: Matrix, held_out: Matrix) -> Converted:
    """Convert a fitted estimator; `train` and `held_out` are coded matrices of shape (rows, features).

    A conversion that fails is no error: its reason is in the facts.
    """
    if signature.task == "classification" and not signature.probabilistic:
        return Converted(None, OnnxConversion(available=False, reason="the estimator gives no probabilities"))
    rows = np.vstack([held_out[:MAX_PROBES], probe_rows(signature, train)])
    with fit.threads_for(len(train)):
        expected = SklearnBackend(estimator, signature).scores(rows)
    best: tuple[float, bytes, Conversion] | None = None
    reasons = []
    for conversion in CONVERSIONS:
        try:
            model, difference = _try(conversion, estimator, signature, rows, expected)
        except Exception as error:  # converters fail in many ways, and each means that scikit-learn answers
            kind = "" if isinstance(error, _Different) else f"{type(error).__name__}: "
            reasons.append(f"{conversion}: {kind}{' '.join(str(error).split())[:160]}")
            continue
        if best is None or difference < best[0]:
            best = (difference, model, conversion)
        if difference <= NO_DIFFERENCE:
            break
    if best is None:
        return Converted(None, OnnxConversion(available=False, reason="; ".join(reasons)))
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


class _Different(Exception):
    """The converted model answers otherwise than scikit-learn."""


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


def probe_rows(signature: Signature, train: Matrix) -> Matrix:
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
            values = np.concatenate([codes[: per_feature - 2], [UNSEEN]])
        if feature.nullable:
            values = np.concatenate([values, [np.nan]])
        block = train[random.integers(0, len(train), len(values))].copy()
        block[:, at] = values
        blocks.append(block)
    return np.vstack(blocks)[:MAX_PROBES]


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
    """The estimator as an ONNX model with an input of this type; its only output are the probabilities or values.

    Raises whatever the converter raises when it does not know the estimator.
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    from training import onnx_dates, onnx_float64

    kind = DoubleTensorType if dtype == "float64" else FloatTensorType
    arguments: dict[str, Any] = {"initial_types": [("X", kind([None, len(signature.features)]))]}
    if signature.task == "classification":
        arguments["options"] = {id(estimator): {"zipmap": False}}
    converters: dict[type, Any] = {DateParts: onnx_dates.convert_parts}
    shapes: dict[type, Any] = {DateParts: onnx_dates.parts_shape}
    if float64_operators:
        converters |= onnx_float64.converters()
        shapes |= onnx_float64.shapes()
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
    if signature.task == "classification":
        del model.graph.output[0]  # the label: serving takes the class of the highest probability
    serialized: bytes = model.SerializeToString()
    return serialized
