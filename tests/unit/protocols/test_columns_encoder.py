"""Answers as columns: what the answers by row say, for every shape of answers, digit for digit."""

from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.matrix import PIECE_ROWS
from serve_app.artifacts.signature import Coverage, Feature, Signature
from serve_app.errors import NotFinite
from serve_app.protocols import native_schema
from serve_app.protocols.columns_encoder import columns_encoder
from serve_app.protocols.encode import PIECE_SCORES, rows_encoder
from tests.support.answers import MODELS, fitted, rows, signature_of
from tests.support.signatures import scores_of, signatures

X = (Feature("x"),)


def in_columns(answers: list[Any]) -> Any:
    """Answers by row, one object with lists in it."""
    if isinstance(answers[0], dict):
        return {key: in_columns([answer[key] for answer in answers]) for key in answers[0]}
    return None if answers[0] is None else answers


def digits(text: bytes | bytearray) -> Any:
    """What a response says, each number as its text."""
    return json.loads(text, parse_float=lambda digits: ("number", digits), parse_int=lambda digits: ("number", digits))[
        "predictions"
    ]


def assert_same(signature: Signature, scores: Any) -> None:
    columns = columns_encoder(signature)(scores)
    assert digits(columns) == in_columns(digits(rows_encoder(signature)(scores)))
    jsonschema.validate(json.loads(columns), native_schema.prediction_columns(signature))


@given(st.data())
def test_columns_say_what_the_rows_say(data: st.DataObject) -> None:
    signature = data.draw(signatures())
    assert_same(signature, data.draw(scores_of(signature)))


@pytest.mark.parametrize("name", MODELS)
def test_columns_of_every_kind_of_model_say_what_the_rows_say(name: str) -> None:
    from serve_app.inference.backends.sklearn_backend import SklearnBackend

    model = fitted(name)
    signature = signature_of(model)
    assert_same(signature, SklearnBackend(model.estimator, signature).scores(rows()))


@pytest.mark.parametrize(
    "signature",
    [
        Signature(X, "classification", ("a", "b"), coverage=Coverage(0.9, 0.8)),
        Signature(X, "regression", coverage=Coverage(0.9, 0.25)),
        Signature(X, "outlier detection"),
    ],
    ids=str,
)
def test_many_rows_are_written_in_pieces_in_their_order(signature: Signature) -> None:
    scores = np.random.default_rng(7).uniform(
        -1 if signature.task == "outlier detection" else 0, 1, (PIECE_SCORES + PIECE_ROWS + 1, *signature.score_shape)
    )
    assert_same(signature, scores)


def test_the_columns_byte_for_byte() -> None:
    signature = Signature(X, "classification", ("no", "yes"))
    expected = (
        b'{"predictions":{"prediction":["no","yes"],"confidence":[0.985,0.75],'
        b'"probabilities":{"no":[0.985,0.25],"yes":[0.015,0.75]}}}'
    )
    scores = np.array([[0.985, 0.015], [0.25, 0.75]])
    assert columns_encoder(signature)(scores) == expected
    assert columns_encoder(signature)(scores.astype(np.float32)) == expected


@given(st.sampled_from(("classes", "values", "outliers", "distances")), st.integers(0, PIECE_ROWS + 3))
def test_a_result_that_is_not_finite_is_named_by_its_row(shape: str, row: int) -> None:
    signature = {
        "classes": Signature(X, "classification", ("a", "b")),
        "values": Signature(X, "regression", coverage=Coverage(0.9, 0.25)),
        "outliers": Signature(X, "outlier detection"),
        "distances": Signature(X, "clustering", (0, 1), probabilistic=False, distance=True),
    }[shape]
    scores = np.full((PIECE_ROWS + 4, *signature.score_shape), 0.5)
    scores[(row, -1)[: scores.ndim]] = np.inf
    with pytest.raises(NotFinite) as failed:
        columns_encoder(signature)(scores)
    assert failed.value.rows == [row]
