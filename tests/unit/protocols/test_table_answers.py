"""Answers of every shape as CSV text, lines of JSON and plain predictions."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.matrix import PIECE_ROWS
from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import NotFinite
from serve_app.protocols.arrow_answers import answer_types
from serve_app.protocols.encode import rows_encoder
from serve_app.protocols.table_answers import cell_names, csv_encoder, lines_encoder, predictions_encoder
from tests.support.answers import MODELS, fitted, rows, signature_of
from tests.support.signatures import signatures

pytestmark = pytest.mark.filterwarnings("ignore:.*precision.*:RuntimeWarning")


def scores_of(name: str) -> tuple[Signature, Any]:
    from serve_app.inference.backends.sklearn_backend import SklearnBackend

    model = fitted(name)
    signature = signature_of(model)
    return signature, SklearnBackend(model.estimator, signature).scores(rows()[:24])


def table(text: bytes | bytearray) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


@pytest.mark.parametrize("name", MODELS)
def test_lines_hold_the_answers_of_a_batch(name: str) -> None:
    signature, scores = scores_of(name)
    answers = json.loads(rows_encoder(signature)(scores))["predictions"]
    assert [json.loads(line) for line in lines_encoder(signature)(scores).splitlines()] == answers


@pytest.mark.parametrize("name", MODELS)
def test_plain_predictions_are_those_of_the_estimator(name: str) -> None:
    signature, scores = scores_of(name)
    answer = json.loads(predictions_encoder(signature)(scores))
    own = np.asarray(fitted(name).estimator.predict(rows()[:24])).tolist()
    if signature.task == "regression":
        assert np.allclose(answer["predictions"], own, rtol=1e-9)
    else:
        assert answer["predictions"] == own
    if signature.classes and signature.probabilistic:
        assert [len(row) for row in answer["probabilities"]] == [len(answer["classes"])] * 24
        if signature.task == "classification" and signature.threshold is None:
            best = [answer["classes"][int(np.argmax(row))] for row in answer["probabilities"]]
            assert best == answer["predictions"]
    else:
        assert list(answer) == ["predictions"]


@pytest.mark.parametrize("name", MODELS)
def test_csv_text_holds_the_numbers_of_a_batch(name: str) -> None:
    signature, scores = scores_of(name)
    answers = json.loads(rows_encoder(signature)(scores))["predictions"]
    for row, answer in zip(table(csv_encoder(signature)(scores)), answers, strict=True):
        named = (
            {f"{key}_{target}": value for target, each in answer["outputs"].items() for key, value in each.items()}
            if ("outputs" in answer)
            else answer
        )
        for key, value in named.items():
            if isinstance(value, dict):
                first = {"probabilities": "probability", "quantiles": "quantile"}
                base, _, target = key.partition("_")
                prefix = first[base] + (f"_{target}" if target else "")
                assert {f"{prefix}_{each}": json.loads(row[f"{prefix}_{each}"]) for each in value} == {
                    f"{prefix}_{each}": number for each, number in value.items()
                }
            elif value is None:
                assert row.get(key, "") == ""
            else:
                cell = row[key] if isinstance(value, str) else json.loads(row[key])
                assert (type(cell), cell) == (type(value), value)


@given(signatures())
def test_the_columns_are_those_of_scoring(signature: Signature) -> None:
    assert cell_names(signature) == [name for name, _ in answer_types(signature)]


TEXTS = ("=1+1", 'a,"b"', "-5", " x", "", "naïve\nline")


def test_labels_are_quoted_and_no_formula_is_run() -> None:
    signature = Signature((Feature("x"),), "classification", TEXTS, probabilistic=False)
    cells = [row["prediction"] for row in table(csv_encoder(signature)(np.arange(6.0)))]
    assert cells == ["'=1+1", 'a,"b"', "-5", " x", "", "naïve\nline"]
    header = csv_encoder(replace(signature, probabilistic=True))(np.full((1, 6), 1 / 6)).decode()
    assert header.startswith('prediction,confidence,probability_=1+1,"probability_a,""b""",')


@given(st.sampled_from(("csv", "lines", "predictions")), st.integers(0, PIECE_ROWS + 3))
def test_a_result_that_is_not_finite_is_named_by_its_row(form: str, row: int) -> None:
    signature = Signature((Feature("x"),), "classification", ("a", "b"))
    encoder = {"csv": csv_encoder, "lines": lines_encoder, "predictions": predictions_encoder}[form](signature)
    scores = np.full((PIECE_ROWS + 4, 2), 0.5)
    scores[row, 1] = np.nan
    with pytest.raises(NotFinite) as failed:
        encoder(scores)
    assert failed.value.rows == [row]


def test_float32_scores_are_printed_with_their_shortest_text() -> None:
    signature = Signature((Feature("x"),), "regression")
    scores = np.array([0.985, 1e-30], np.float32)
    assert csv_encoder(signature)(scores) == b"prediction\n0.985\n1e-30\n"
    assert predictions_encoder(signature)(scores) == b'{"predictions":[0.985,1e-30]}'
