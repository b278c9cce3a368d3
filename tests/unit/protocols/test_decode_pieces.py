"""A large batch is read in pieces, and that changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import InvalidInput, TooManyRows
from serve_app.protocols import decode as codec
from tests.support.models import A_FLOWER, iris_signature

ROW = 10_000
TRAPS = ("},{", '"},{"', "}],", "]}", "\\", '"', "} , {", "[{", "a")
NOTES = Signature((Feature("x", "number"), Feature("note", "category", categories=TRAPS)), "regression")

traps: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(TRAPS) | st.integers(-5, 5) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("x", "instances", *TRAPS)), inner, max_size=2),
    max_leaves=6,
)
row = st.fixed_dictionaries({"x": st.floats(-9, 9), "note": st.sampled_from(TRAPS)}, optional={"more": traps, "instances": traps})
bodies = st.one_of(
    st.lists(row, max_size=8).map(lambda rows: {"instances": rows}),
    st.fixed_dictionaries({"instances": st.lists(row | traps, max_size=4)}, optional={"more": traps, "x": traps}),
    traps,
)
indents = st.sampled_from((None, 0, 3))


def outcome(body: bytes, *, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(codec, "PIECE_BYTES", piece_bytes)
    try:
        return codec.rows_decoder(NOTES, max_rows=6, max_row_bytes=ROW, unknown="refuse")(body).tolist()
    except InvalidInput as error:
        return type(error), [(problem.field, problem.code) for problem in error.problems]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300)
@given(body=bodies, indent=indents, size=st.integers(0, 40), cut=st.integers(0, 30))
def test_cuts_anywhere_give_what_the_whole_gives(
    monkeypatch: pytest.MonkeyPatch, body: Any, indent: int | None, size: int, cut: int
) -> None:
    text = json.dumps(body, indent=indent).encode()
    for raw in (text, text[: len(text) - cut]):
        whole = outcome(raw, piece_bytes=10**9, monkeypatch=monkeypatch)
        assert outcome(raw, piece_bytes=size, monkeypatch=monkeypatch) == whole


def test_a_large_batch_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[bytes] = []
    cut = codec._pieces

    def recorded(body: bytes, max_row_bytes: int) -> Iterator[bytes]:
        for piece in cut(body, max_row_bytes):
            pieces.append(piece)
            yield piece

    monkeypatch.setattr(codec, "_pieces", recorded)
    raw = json.dumps({"instances": [A_FLOWER | {"sepal_length": i % 20} for i in range(5000)]}).encode()
    found = codec.rows_decoder(iris_signature(), max_rows=5000, max_row_bytes=ROW, unknown="refuse")(raw)
    np.testing.assert_array_equal(found[:, 0], np.arange(5000) % 20)
    assert len(pieces) == len(raw) // codec.PIECE_BYTES + 1
    assert max(map(len, pieces)) < codec.PIECE_BYTES + 200


def test_too_many_rows_are_refused_before_all_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json.dumps({"instances": [A_FLOWER] * 5000}).encode()
    with pytest.raises(TooManyRows):
        codec.rows_decoder(iris_signature(), max_rows=4999, max_row_bytes=ROW, unknown="refuse")(raw)


def test_a_large_batch_with_one_wrong_row_names_that_row_and_one_with_text_is_read() -> None:
    read = codec.rows_decoder(NOTES, max_rows=20_000, max_row_bytes=ROW, unknown="refuse")
    right = [{"x": i % 9, "note": TRAPS[i % len(TRAPS)]} for i in range(20_000)]
    for change, problem in (({"note": "new"}, "unknown_category"), ({"x": "old"}, "type"), ({"x": None}, "type")):
        with pytest.raises(InvalidInput) as refused:
            read(json.dumps({"instances": [*right[:11_111], right[11_111] | change, *right[11_112:]]}).encode())
        assert [(found.field.partition(".")[0], found.code) for found in refused.value.problems] == [("instances[11111]", problem)]
    found = read(json.dumps({"instances": [*right[:15_000], right[15_000] | {"x": "7"}, *right[15_001:]]}).encode())
    assert found[14_999:15_002, 0].tolist() == [14_999 % 9, 7.0, 15_001 % 9]
    assert found.shape == (20_000, 2)
