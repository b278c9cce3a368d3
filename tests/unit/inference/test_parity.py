"""When two backends answer the same: labels are equal, numbers within the tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serve_app.artifacts.signature import Feature, Output, Signature
from serve_app.inference.parity import TOLERANCE, same_scores

X = (Feature("x"),)
CASES = {
    "number": (Signature(X, "regression"), [1.0, -200.0]),
    "class": (Signature(X, "classification", ("a", "b")), [[0.5, 0.5], [0.9, 0.1]]),
    "label": (Signature(X, "classification", ("a", "b"), probabilistic=False), [0.0, 1.0]),
    "quantiles": (Signature(X, "regression", quantiles=(0.1, 0.9)), [[1.0, 2.0], [3.0, 400.0]]),
    "outlier": (Signature(X, "outlier detection"), [0.0, -0.3]),
    "distance": (Signature(X, "clustering", (0, 1, 2), probabilistic=False, distance=True), [[0.0, 0.5], [2.0, 3.0]]),
    "clusters": (Signature(X, "clustering", (0, 1)), [[0.0, 0.7, 0.3], [1.0, 0.2, 0.8]]),
    "numbers": (Signature(X, "regression", outputs=(Output("a"), Output("b"))), [[1.0, 1e6], [2.0, 2e6]]),
    "classes": (
        Signature(X, "classification", outputs=(Output("a", ("x", "y")), Output("b", (0, 1, 2)))),
        [[0.5, 0.5, 0.2, 0.4, 0.4], [0.1, 0.9, 0.3, 0.3, 0.4]],
    ),
    "labels": (
        Signature(X, "classification", outputs=(Output("a", ("x", "y"), False), Output("b", (0, 1, 2), False))),
        [[0.0, 2.0], [1.0, 1.0]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_scores_are_the_same_and_another_number_is_not(name: str) -> None:
    signature, rows = CASES[name]
    expected = np.array(rows)
    assert expected.shape == (2, *signature.score_shape)
    assert same_scores(expected, expected.copy(), signature)
    for position in np.ndindex(*expected.shape):
        other = expected.copy()
        other[position] += 100.0 * TOLERANCE * max(1.0, float(np.abs(expected).max()))
        assert not same_scores(expected, other, signature), position


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("label", "labels")])
def test_a_difference_within_the_tolerance_is_none(name: str) -> None:
    signature, rows = CASES[name]
    expected = np.array(rows)
    other = expected + 0.5 * TOLERANCE
    if name in ("distance", "clusters"):
        other[:, 0] = expected[:, 0]
    assert same_scores(expected, other, signature)


@pytest.mark.parametrize(
    ("name", "position", "value"),
    [("outlier", (0,), -1e-9), ("class", (0, 1), 0.5 + 1e-9), ("classes", (0, 4), 0.4 + 1e-9), ("clusters", (0, 0), 1.0)],
)
def test_another_label_is_a_difference_however_small_it_is(name: str, position: Any, value: float) -> None:
    signature, rows = CASES[name]
    expected, other = np.array(rows), np.array(rows)
    other[position] = value
    assert not same_scores(expected, other, signature)
