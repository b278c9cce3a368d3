"""An ONNX form of the model, kept only when it is proven to answer like scikit-learn.

Several ways to write and to feed it are tried; the one nearest to scikit-learn wins, if labels are equal and scores agree on the
held-out rows and on rows made to sit on the decision thresholds, where a tree that is given other float32 features goes wrong.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.artifacts.manifest import OnnxConversion
from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import UNSEEN, Signature
from serve_app.inference.backends.onnx_backend import OnnxBackend
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from serve_app.inference.parity import TOLERANCE, same_scores
from training import fit

CONVERSIONS = (
    # input, rounded through float32 before it, our float64 operators
    ("float64", False, True),
    ("float64", False, False),
    ("float64", True, False),
    ("float32", False, False),
)

MAX_PROBES = 4000
"""Rows made to look for differences."""

EXACT = 1e-12
"""A difference that no other way could better."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The model's bytes (None: scikit-learn will answer) and what was found, for the metadata."""

    model: bytes | None
    facts: OnnxConversion


def convert(tail: Any, signature: Signature, train: Matrix, held_out: Matrix) -> Converted:
    """`tail` is the fitted model on coded matrices; `train` and `held_out` are such matrices."""
    if signature.task == "classification" and not signature.probabilistic:
        return Converted(None, OnnxConversion(available=False, reason="the estimator gives no probabilities"))
    rows = np.vstack([held_out[:MAX_PROBES], probe_rows(signature, train)])
    with fit.threads_for(len(train)):
        expected = SklearnBackend(tail, signature).scores(rows)
    best: tuple[float, bytes, OnnxConversion] | None = None
    reasons = []
    for dtype, rounded, exact in CONVERSIONS:
        name = f"{dtype}{' rounded through float32' if rounded else ''}{' with exact operators' if exact else ''}"
        try:
            model = to_onnx(tail, signature, dtype, exact=exact)
            found = OnnxBackend(model, signature, rounded=rounded).scores(rows)
        except Exception as error:  # a converter fails in many ways; each means that scikit-learn answers
            reasons.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
            continue
        difference = float(np.max(np.abs(expected - found), initial=0.0)) if found.shape == expected.shape else float("inf")
        if found.shape != expected.shape or not np.isfinite(found).all() or not same_scores(expected, found, signature):
            reasons.append(f"{name}: differs from scikit-learn by {difference:.3g}")
            continue
        if best is None or difference < best[0]:
            facts = OnnxConversion(
                available=True,
                input=dtype,
                rounded=rounded,
                largest_difference=difference,
                tolerance=TOLERANCE,
                rows_compared=len(rows),
            )
            best = (difference, model, facts)
        if difference <= EXACT:
            break
    if best is None:
        return Converted(None, OnnxConversion(available=False, reason="; ".join(reasons)))
    _, model, facts = best
    return Converted(model, facts)


def probe_rows(signature: Signature, train: Matrix) -> Matrix:
    """Rows on the edges: half-way between neighbouring training values, a float32 step beside, gaps and unseen categories."""
    random = np.random.default_rng(0)
    per_feature = max(8, MAX_PROBES // len(signature.features))
    blocks = [train[:200]]
    for at, feature in enumerate(signature.features):
        if feature.kind == "number":
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


def to_onnx(tail: Any, signature: Signature, dtype: str, *, exact: bool) -> bytes:
    """The ONNX form of `tail` for this kind of input, probabilities or values as its only output."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    from training import onnx_float64 as exact_ops

    kind = DoubleTensorType if dtype == "float64" else FloatTensorType
    arguments: dict[str, Any] = {"initial_types": [("X", kind([None, len(signature.features)]))]}
    if signature.task == "classification":
        arguments["options"] = {id(tail): {"zipmap": False}}
    if exact:
        arguments |= {
            "target_opset": exact_ops.OPSET,
            "custom_conversion_functions": exact_ops.converters(),
            "custom_shape_calculators": exact_ops.shapes(),
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_sklearn(tail, **arguments)
        exact_ops.raise_opset(model)
    if signature.task == "classification":
        del model.graph.output[0]  # the label: serving takes the class of the highest probability
    serialized: bytes = model.SerializeToString()
    return serialized
