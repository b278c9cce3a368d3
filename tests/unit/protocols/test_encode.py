"""Numbers to bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serve_app.artifacts.signature import Feature, Label, Signature
from serve_app.errors import NotFinite
from serve_app.protocols import native_schema
from serve_app.protocols.encode import numbers, row_encoder, rows_encoder

X = (Feature("x"),)
SPECIES = Signature(X, "classification", ("setosa", "versicolor", "virginica"))


def probabilities(dtype: Any) -> st.SearchStrategy[Any]:
    share = st.floats(0, 1, width=32)
    return hnp.arrays(dtype, st.tuples(st.integers(1, 5), st.just(3)), elements=share)


@given(probabilities(np.float64) | probabilities(np.float32))
def test_an_answer_says_the_label_and_the_numbers_of_the_model(scores: Any) -> None:
    encode, encode_all = row_encoder(SPECIES), rows_encoder(SPECIES)
    answers = [json.loads(encode(scores[i : i + 1])) for i in range(len(scores))]
    for answer, row in zip(answers, scores, strict=True):
        assert list(answer) == ["prediction", "confidence", "probabilities"]
        assert list(answer["probabilities"]) == list(SPECIES.classes)
        assert answer["prediction"] == SPECIES.classes[row.argmax()]
        assert answer["confidence"] == answer["probabilities"][answer["prediction"]]
        assert [row.dtype.type(value) for value in answer["probabilities"].values()] == row.tolist()
        assert list(answer["probabilities"].values()) == numbers(row)
    assert json.loads(encode_all(scores)) == {"predictions": answers}
    assert encode_all(np.asfortranarray(scores)) == encode_all(scores)


def test_the_answer_of_old_byte_for_byte() -> None:
    scores = np.array([[0.985, 0.01, 0.005]])
    expected = b'{"prediction":"setosa","confidence":0.985,"probabilities":{"setosa":0.985,"versicolor":0.01,"virginica":0.005}}'
    assert row_encoder(SPECIES)(scores) == expected
    assert row_encoder(SPECIES)(scores.astype(np.float32)) == expected


def test_a_float32_is_written_with_its_shortest_text() -> None:
    assert numbers(np.array([0.985, 1 / 3], dtype=np.float32)) == [0.985, 0.33333334]
    assert numbers(np.array([[0.985], [1 / 3]])) == [0.985, 1 / 3]


@pytest.mark.parametrize(
    ("classes", "says", "names"),
    [
        (("no", "yes"), "yes", ["no", "yes"]),
        ((0, 1), 1, ["0", "1"]),
        ((False, True), True, ["false", "true"]),
        ((0.5, 1.5), 1.5, ["0.5", "1.5"]),
        ((0.0, 1.0), 1, ["0", "1"]),
        ((-2.0, -0.0), 0, ["-2", "0"]),
        (("", " "), " ", ["", " "]),
        (("true", 2**53), 2**53, ["true", "9007199254740992"]),
        (('"', "\n🌷"), "\n🌷", ['"', "\n🌷"]),
    ],
    ids=str,
)
def test_labels_keep_their_type_and_name_their_probability(classes: tuple[Label, ...], says: Label, names: list[str]) -> None:
    signature = Signature(X, "classification", classes)
    scores = np.array([[0.25, 0.75]])
    answer = json.loads(row_encoder(signature)(scores))
    assert answer == {"prediction": says, "confidence": 0.75, "probabilities": {names[0]: 0.25, names[1]: 0.75}}
    assert json.loads(rows_encoder(signature)(scores)) == {"predictions": [answer]}
    said = answer["prediction"]
    assert answer["probabilities"][said if isinstance(said, str) else json.dumps(said)] == 0.75
    schema = native_schema.prediction(signature)["properties"]
    assert said in schema["prediction"]["enum"]
    assert schema["probabilities"]["required"] == names
    assert type(answer["prediction"]) is type(says)


def test_of_two_equal_probabilities_the_first_class_wins_as_in_scikit_learn() -> None:
    assert json.loads(row_encoder(SPECIES)(np.array([[0.2, 0.4, 0.4]])))["prediction"] == "versicolor"


@given(hnp.arrays(np.float64, st.integers(1, 5), elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_a_regression_answers_its_numbers_exactly(scores: Any) -> None:
    signature = Signature(X, "regression")
    assert json.loads(row_encoder(signature)(scores[:1])) == {"prediction": scores[0]}
    assert json.loads(rows_encoder(signature)(scores)) == {"predictions": [{"prediction": value} for value in scores.tolist()]}


def test_a_classifier_without_probabilities_says_null_for_them() -> None:
    signature = Signature(X, "classification", ("a", "b"), probabilistic=False)
    answers = json.loads(rows_encoder(signature)(np.array([1.0, 0.0])))["predictions"]
    assert answers == [{"prediction": label, "confidence": None, "probabilities": None} for label in ("b", "a")]


def test_equal_texts_of_two_labels_are_no_signature() -> None:
    for classes in ((True, "true"), (1, 1.0), (1.0, "1")):
        with pytest.raises(ValueError, match="unique"):
            Signature(X, "classification", classes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("signature", "good"),
    [(Signature(X, "regression"), 0.5), (SPECIES, [0.25, 0.25, 0.5])],
    ids=["regression", "classification"],
)
def test_a_result_that_is_not_finite_is_never_written(signature: Signature, good: Any, dtype: Any, value: float) -> None:
    bad = value if signature.task == "regression" else [value, 0.0, 0.0]
    with pytest.raises(NotFinite):
        row_encoder(signature)(np.array([bad], dtype=dtype))
    scores = np.array([good] * 5000, dtype=dtype)
    scores[[7, 4999]] = bad
    with pytest.raises(NotFinite) as refused:
        rows_encoder(signature)(scores)
    assert refused.value.rows == [7, 4999]
