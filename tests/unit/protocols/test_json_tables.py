"""Tables as JSON in the forms of MLflow, SageMaker, Vertex AI and KServe v1: the same matrix, the same refusals."""

from __future__ import annotations

import contextlib
import json
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest

from serve_app.artifacts.fields import MAX_PROBLEMS, read_rows
from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import InvalidInput, Malformed, TooLarge, TooManyRows
from serve_app.protocols.json_tables import table_decoder
from tests.support.table_rows import NAMES, NUMBERS, ORDER, ROWS, context, json_forms, values

FORMS = json_forms()
every_form = pytest.mark.parametrize("form", FORMS)
ascii_or_not = pytest.mark.parametrize("is_ascii", [True, False], ids=["escaped", "UTF-8"])


def decoded(document: Any, signature: Signature = ORDER, **changes: Any) -> Any:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return table_decoder(context(signature, **changes))(body)


def refusals(document: Any, signature: Signature = ORDER, **changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as refused:
        decoded(document, signature, **changes)
    return [(problem.field, problem.code) for problem in refused.value.problems]


def same(matrix: Any, expected: Any) -> bool:
    """Whether two matrices hold the same values to the last bit, and gaps in the same places."""
    return matrix.dtype == expected.dtype and repr(matrix.tolist()) == repr(expected.tolist())


@every_form
@ascii_or_not
def test_every_form_of_a_table_is_the_same_matrix(form: str, is_ascii: bool) -> None:
    expected = read_rows(ORDER, ROWS)
    assert same(decoded(json.dumps(FORMS[form], ensure_ascii=is_ascii).encode()), expected)
    assert same(decoded(json.dumps(FORMS[form], ensure_ascii=is_ascii, indent=3).encode()), expected)
    assert same(decoded(b"\xef\xbb\xbf" + json.dumps(FORMS[form], separators=(",", ":")).encode()), expected)


@every_form
def test_a_large_table_is_read_in_pieces_and_is_the_same_matrix_at_every_length(form: str) -> None:
    source = random.Random(form)
    rows = [{**source.choice(ROWS), "age": round(source.uniform(0, 120), source.randrange(9))} for _ in range(2500)]
    expected = read_rows(ORDER, rows)
    document = json_forms(rows)[form]
    for indent in (None, 1):
        assert same(decoded(json.dumps(document, indent=indent).encode(), max_rows=2500), expected)


@every_form
def test_a_wrong_value_is_named_by_its_row_and_column_in_every_form(form: str) -> None:
    rows = [dict(row) for row in ROWS]
    rows[2]["pieces"] = 10
    rows[3]["city"] = "Oslo"
    assert sorted(refusals(json_forms(rows)[form])) == [
        ("instances[2].pieces", "out_of_range"),
        ("instances[3].city", "unknown_category"),
    ]


@every_form
def test_nan_is_a_gap_and_one_and_zero_are_booleans(form: str) -> None:
    rows = [{**row, "member": int(row["member"]), "age": float("nan") if row["age"] is None else row["age"]} for row in ROWS]
    assert same(decoded(json_forms(rows)[form]), read_rows(ORDER, ROWS))


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_not_finite_is_refused_where_no_gap_is_allowed(token: str) -> None:
    code = "type" if token == "NaN" else "not_finite"
    assert refusals(b'{"instances":[[1,%b]]}' % token.encode(), NUMBERS) == [("instances[0].b", code)]
    assert refusals(b'{"inputs":{"a":[1],"b":[%b]}}' % token.encode(), NUMBERS) == [("instances[0].b", code)]


@pytest.mark.parametrize("value", [2, "true", "false", None, [], 0.5])
def test_nothing_else_is_a_boolean(value: Any) -> None:
    assert refusals({"instances": [{**ROWS[0], "member": value}]}) == [("instances[0].member", "type")]


def test_a_number_is_no_text_and_no_category_and_a_numeric_text_is_a_number() -> None:
    assert refusals({"instances": [{**ROWS[0], "city": 7, "note": 8}]}) == [
        ("instances[0].city", "type"),
        ("instances[0].note", "type"),
    ]
    assert decoded({"instances": [["1.5", 2]]}, NUMBERS).tolist() == [[1.5, 2.0]]
    assert decoded({"inputs": {"a": ["1.5"], "b": [2]}}, NUMBERS).tolist() == [[1.5, 2.0]]


def test_whole_numbers_and_their_gaps_stay_what_they_are() -> None:
    assert decoded({"inputs": {"a": [1, 1.5], "b": [0, -0.5]}}, NUMBERS).tolist() == [[1.0, 0.0], [1.5, -0.5]]


def test_columns_are_placed_by_name_not_by_position() -> None:
    document = {"dataframe_split": {"columns": ["b", "a"], "data": [[1, 2], [3, 4]]}}
    assert decoded(document, NUMBERS).tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert decoded({"dataframe_records": [{"b": 1, "a": 2}]}, NUMBERS).tolist() == [[2.0, 1.0]]
    assert decoded({"inputs": {"b": [1], "a": [2]}}, NUMBERS).tolist() == [[2.0, 1.0]]


def test_one_row_may_be_an_object_of_values() -> None:
    assert same(decoded({"inputs": ROWS[0]}), read_rows(ORDER, ROWS[:1]))


def test_columns_that_may_be_left_out_are_gaps() -> None:
    short = [{name: row[name] for name in ("pieces", "member", "placed")} for row in ROWS]
    expected = read_rows(ORDER, short)
    names = list(short[0])
    for document in (
        {"instances": short},
        {"inputs": {name: [row[name] for row in short] for name in names}},
        {"dataframe_split": {"columns": names, "data": values(short, names)}},
    ):
        assert same(decoded(document), expected)


def test_a_missing_column_is_named_once() -> None:
    assert refusals({"dataframe_split": {"columns": ["a"], "data": [[1], [2]]}}, NUMBERS) == [("b", "missing")]
    assert refusals({"inputs": {"a": [1, 2]}}, NUMBERS) == [("b", "missing")]


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"instances": [1.0, 2.0]}, ("instances[0]", "type")),  # one row as a flat list
        ({"instances": [[1.0]]}, ("instances[0]", "shape")),
        ({"instances": [[1.0, 2.0, 3.0]]}, ("instances[0]", "shape")),
        ({"instances": [[1, 2], [[1, 2]]]}, ("instances[1]", "shape")),
        ({"instances": [[1, 2], None]}, ("instances[1]", "type")),
        ({"instances": []}, ("instances", "too_short")),
        ({"dataframe_records": []}, ("instances", "too_short")),
        ({"inputs": {"a": [], "b": []}}, ("instances", "too_short")),
        ({"dataframe_split": {"columns": ["a", "b"], "data": []}}, ("instances", "too_short")),
        ({"instances": {"a": 1, "b": 2}}, ("instances", "type")),
        ({"instances": None}, ("instances", "type")),
        ({"dataframe_records": "x"}, ("dataframe_records", "type")),
        ({"dataframe_split": [[1, 2]]}, ("dataframe_split", "type")),
        ({"dataframe_split": {"columns": ["a", "b"]}}, ("dataframe_split.data", "missing")),
        ({"dataframe_split": {"columns": ["a", "b"], "data": {"a": 1}}}, ("dataframe_split.data", "missing")),
        ({"dataframe_split": {"columns": ["a", "b", "a"], "data": [[1, 2, 3]]}}, ("dataframe_split.columns", "duplicate")),
        ({"dataframe_split": {"columns": "ab", "data": [[1, 2]]}}, ("dataframe_split.columns", "type")),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2, 3]]}}, ("instances[0]", "shape")),
        ({"inputs": {"a": [1, 2], "b": [1]}}, ("inputs", "shape")),
        ({"inputs": {"a": [1, 2], "b": 1}}, ("inputs", "shape")),
        ({"inputs": 7}, ("inputs", "type")),
        (b'{"inputs":{"a":[1],"b":[2],"a":[3]}}', ("inputs", "duplicate")),
        ({}, ("body", "missing")),
        ({"rows": [[1, 2]]}, ("body", "missing")),
        ({"instances": [[1, 2]], "inputs": [[1, 2]]}, ("body", "ambiguous")),
        (b'{"instances":[[1,2]],"instances":[[1,2]]}', ("body", "ambiguous")),
        ([[1, 2]], ("body", "type")),
        (7, ("body", "type")),
    ],
    ids=str,
)
def test_a_table_of_another_shape_is_one_clear_refusal(document: Any, problem: tuple[str, str]) -> None:
    assert refusals(document, NUMBERS)[0] == problem


def test_a_model_of_one_column_takes_values_with_and_without_brackets() -> None:
    one = Signature((Feature("x"),), "regression")
    for document in ({"inputs": [1, 2]}, {"inputs": [[1], [2]]}, {"instances": [1, [2]]}, {"inputs": {"x": [1, 2]}}):
        assert decoded(document, one).tolist() == [[1.0], [2.0]]


def test_an_unknown_category_is_unseen_where_that_is_allowed() -> None:
    for document in json_forms([{**ROWS[0], "city": "Oslo"}]).values():
        assert decoded(document, unknown="unseen")[0, NAMES.index("city")] == -1.0


def test_a_further_column_is_refused_where_unknown_fields_are() -> None:
    rows = [{**row, "zip": 1} for row in ROWS]
    for document, field in (
        ({"instances": rows}, "instances[0]"),
        ({"dataframe_split": {"columns": [*NAMES, "zip"], "data": values(rows, [*NAMES, "zip"])}}, "dataframe_split.columns"),
        ({"inputs": {name: [row[name] for row in rows] for name in (*NAMES, "zip")}}, "inputs"),
    ):
        assert refusals(document, unknown_fields="refuse")[0] == (field, "unknown_field")
    assert same(decoded({"instances": ROWS, "params": {"zip": 1}}, unknown_fields="refuse"), read_rows(ORDER, ROWS))


@every_form
@pytest.mark.parametrize("max_rows", [3, 4])
def test_one_row_too_many_is_refused_in_every_form(form: str, max_rows: int) -> None:
    if max_rows == len(ROWS):
        assert len(decoded(FORMS[form], max_rows=max_rows)) == len(ROWS)
    else:
        with pytest.raises(TooManyRows):
            decoded(FORMS[form], max_rows=max_rows)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"instances":[[1,2]',
        b'{"instances":[[1,2]]',
        b'{"instances":[[1,2]]}]',
        b'{"instances":[[1,2],]}',
        b'{"instances":[[1 2]]}',
        b'{"inputs":{"a":[1,2}}',
        b'{"inputs":{"a":[1,],"b":[1]}}',
        b'{"instances":[[1,"\xff"]]}',
        b'{"params":[1,2,"\xff"],"instances":[[1,2]]}',
        b"a,b\n1,2\n",
        b'{"instances":' + b"[" * 100_000,
    ],
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises((Malformed, TooLarge)):
        decoded(body, NUMBERS)


def test_no_more_problems_are_named_than_a_response_holds() -> None:
    assert len(refusals({"instances": [["x", "y"]] * 500}, NUMBERS)) == MAX_PROBLEMS
    assert len(refusals({"inputs": {"a": ["x"] * 500, "b": ["y"] * 500}}, NUMBERS)) == MAX_PROBLEMS


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":[' + b"[1,2]," * 600_000 + b"[1,2]]}",
        b'{"instances":[' + b"{}," * 600_000 + b"{}]}",
        b'{"inputs":{"a":[' + b"1," * 2_000_000 + b'1],"b":[1]}}',
        b'{"inputs":{' + b",".join(b'"%d":1' % at for at in range(400_000)) + b"}}",
        b'{"dataframe_split":{"index":[' + b"1," * 2_000_000 + b'1],"data":[[1,2]],"columns":["a","b"]}}',
        b'{"dataframe_split":{"columns":[' + b'"a",' * 1_000_000 + b'"b"],"data":[[1,2]]}}',
        b'{"instances":[[' + b"1," * 2_000_000 + b"1]]}",
        b'{"params":"' + b"x" * 4_000_000 + b'","instances":[[1,2]]}',
    ],
    ids=["lists", "objects", "columns", "names", "index", "split", "row", "params"],
)
def test_a_bomb_of_rows_or_columns_takes_little_memory(body: bytes) -> None:
    decode = table_decoder(context(NUMBERS))
    tracemalloc.start()
    try:
        with contextlib.suppress(InvalidInput):
            assert decode(body).tolist() == [[1.0, 2.0]]  # the index is read over, and holds nothing
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 6_000_000, most


def test_the_forms_of_a_protocol_are_the_only_ones_that_it_takes() -> None:
    decode = table_decoder(context(NUMBERS), ("instances",))
    assert np.array_equal(decode(b'{"instances":[[1,2]],"parameters":{"k":[1]}}'), [[1.0, 2.0]])
    with pytest.raises(InvalidInput):
        decode(b'{"inputs":[[1,2]]}')
