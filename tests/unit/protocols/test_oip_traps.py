"""What goes wrong between clients and servers of the Open Inference Protocol elsewhere goes right here, one test for each."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import Feature, Label, Signature
from serve_app.errors import InvalidInput, Malformed
from serve_app.protocols.codec import Batch
from serve_app.protocols.oip_metadata import model_document
from tests.support.oip import LENGTH, binary, codec_of, outputs, request, tensor, unpacked

TABLE = Signature(
    (
        Feature("age", nullable=True),
        Feature("code", "category", categories=("001", "1", "None", "ü")),
        Feature("member", "boolean"),
    ),
    "classification",
    ("no", "yes"),
)
FOUR = Signature(tuple(Feature(name) for name in "dbca"), "regression")
AGE = tensor([20], name="age", datatype="INT64")
CODE = tensor(["001"], name="code", datatype="BYTES")
MEMBER = tensor([True], name="member", datatype="BOOL")


def matrix(signature: Signature, body: bytes, headers: dict[str, str] | None = None) -> Matrix:
    return (
        codec_of(signature)
        .decode(body, [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()])
        .matrix
    )


def message(signature: Signature, body: bytes, headers: dict[str, str] | None = None) -> str:
    with pytest.raises(InvalidInput) as refused:
        matrix(signature, body, headers)
    return str(refused.value)


def test_a_column_of_integers_may_have_missing_values() -> None:
    assert repr(matrix(TABLE, request({**AGE, "data": [None]}, CODE, MEMBER)).tolist()) == repr([[math.nan, 0.0, 1.0]])
    assert matrix(TABLE, request({**AGE, "data": [20]}, CODE, MEMBER))[0, 0] == 20.0


def test_leading_zeros_are_a_part_of_a_text() -> None:
    codes = {**CODE, "data": ["001", "1"], "shape": [2]}
    for body, headers in ((request({**MEMBER, "data": [1, 0], "shape": [2]}, codes), {}), binary({**MEMBER, "shape": [1]}, CODE)):
        assert matrix(TABLE, body, headers)[:, 1].tolist() in ([0.0, 1.0], [0.0])


def test_columns_are_placed_by_name_in_whatever_order_they_come() -> None:
    for order in ("abcd", "dbca", "cabd"):
        inputs = [tensor([float(ord(name))], name=name) for name in order]
        for body, headers in ((request(*inputs), {}), binary(*inputs)):
            assert matrix(FOUR, body, headers).tolist() == [[float(ord(name)) for name in "dbca"]]


def test_a_column_is_of_one_or_of_two_dimensions() -> None:
    for shape in ([2], [2, 1]):
        for data in ([1.0, 2.0], [[1.0], [2.0]])[: len(shape)]:
            inputs = [{"name": name, "shape": shape, "datatype": "FP64", "data": data} for name in "abcd"]
            assert matrix(FOUR, request(*inputs)).tolist() == [[1.0] * 4, [2.0] * 4]


def test_a_row_without_the_dimension_of_rows_is_refused_with_the_shape_to_send() -> None:
    for body, headers in ((request(tensor([1, 2, 3, 4])), {}), binary(tensor([1, 2, 3, 4]))):
        assert "[rows, 4]" in message(FOUR, body, headers)
    assert all(each["shape"][0] == -1 for each in model_document(FOUR, name="m", version="1", platform="onnx")["inputs"])


def test_texts_and_numbers_stand_in_one_request_without_a_parameter_that_says_so() -> None:
    assert matrix(TABLE, request(AGE, CODE, MEMBER)).tolist() == [[20.0, 0.0, 1.0]]
    for kind in ("pd", "np", "str"):
        body = request(AGE, CODE, MEMBER, parameters={"content_type": kind, "headers": {"a": []}})
        assert matrix(TABLE, body).tolist() == [[20.0, 0.0, 1.0]]


@pytest.mark.parametrize("value", [True, 1, 1.0])
@pytest.mark.parametrize("datatype", ["BOOL", "INT64", "FP32"])
def test_a_boolean_is_true_or_1(value: object, datatype: str) -> None:
    flag = tensor([value], name="member", datatype=datatype)
    assert matrix(TABLE, request(CODE, flag))[0, 2] == 1.0
    assert matrix(TABLE, *binary(CODE, flag))[0, 2] == 1.0


def test_a_single_text_in_bytes_has_its_length_before_it_too() -> None:
    assert matrix(TABLE, *binary({**CODE, "data": ["ü"]}, MEMBER))[0, 1] == 3.0
    head = request({"name": "code", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 3}}, MEMBER)
    assert "binary_data_size" in message(TABLE, head + b"001", {LENGTH: str(len(head))})


def test_the_text_none_that_clients_write_for_a_missing_value_is_one_where_a_feature_is_nullable() -> None:
    assert matrix(TABLE, request({**CODE, "data": ["None"]}, MEMBER))[0, 1] == 2.0
    for nullable, expected in ((True, "nan"), (False, "'None'")):
        text = Signature((Feature("note", "text", nullable=nullable),), "regression")
        assert repr(matrix(text, *binary(tensor(["None"], name="note", datatype="BYTES"))).tolist()) == f"[[{expected}]]"
    codes = Signature((Feature("code", "category", categories=("a",), nullable=True),), "regression")
    assert np.isnan(matrix(codes, *binary(tensor(["None"], name="code", datatype="BYTES")))[0, 0])


def test_the_token_nan_is_a_missing_value_and_infinity_is_refused_by_its_place() -> None:
    body = request(tensor([[1.0, math.nan, 3.0, 4.0]]))
    assert b"NaN" in body
    assert "b[0]" in message(FOUR, body)
    nullable = Signature(tuple(Feature(name, nullable=True) for name in "dbca"), "regression")
    assert np.isnan(matrix(nullable, body)[0, 1])
    for token in ("Infinity", "-Infinity"):
        assert "b[0]" in message(nullable, body.replace(b"NaN", token.encode()))


def test_answers_hold_no_nan() -> None:
    codec = codec_of(FOUR)
    batch = codec.decode(request(tensor([[1, 2, 3, 4]])), [])
    assert b"NaN" not in codec.respond(Batch(batch.matrix, batch.meta), np.array([1e308])).body


@pytest.mark.parametrize(
    ("classes", "expected"), [(("no", "yes"), "yes"), ((3, 7), 7), ((False, True), True)], ids=["texts", "numbers", "booleans"]
)
@pytest.mark.parametrize("in_bytes", [False, True])
def test_the_label_is_answered_and_not_its_index_and_the_metadata_has_the_order(
    classes: tuple[Label, ...], expected: Label, in_bytes: bool
) -> None:
    signature = Signature((Feature("x"),), "classification", classes)
    codec = codec_of(signature)
    body = request(tensor([[1.0]]), parameters={"binary_data_output": in_bytes})
    response = codec.respond(Batch(np.ones((1, 1)), codec.decode(body, []).meta), np.array([[0.25, 0.75]]))
    answered = outputs(bytes(response.body), {name.decode().title(): value.decode() for name, value in response.headers})
    assert answered["predict"].tolist() == [[expected]]
    assert answered["predict_proba"].tolist() == [[0.25, 0.75]]
    document = model_document(signature, name="m", version="1", platform="onnx")
    assert json.loads(document["properties"]["classes"]) == list(classes)


def test_a_text_of_an_answer_in_bytes_has_its_length_before_it() -> None:
    codec = codec_of(TABLE)
    batch = codec.decode(request(CODE, MEMBER, outputs=[{"name": "predict", "parameters": {"binary_data": True}}]), [])
    response = codec.respond(batch, np.array([[0.25, 0.75]]))
    length = int(dict(response.headers)[LENGTH.lower().encode()])
    assert unpacked(bytes(response.body)[length:]) == ["yes"]


def test_a_length_of_the_json_that_is_one_off_is_named() -> None:
    body, headers = binary(tensor([[1, 2, 3, 4]]))
    for wrong in (int(headers[LENGTH]) - 1, int(headers[LENGTH]) + 1):
        with pytest.raises(Malformed, match=LENGTH):
            matrix(FOUR, body, {LENGTH: str(wrong)})
    whole = request(tensor([[1, 2, 3, 4]]))
    assert matrix(FOUR, whole, {LENGTH: str(len(whole))}).tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_members_and_parameters_of_other_servers_are_ignored() -> None:
    body: dict[str, Any] = {
        "model_name": "m",
        "model_version": "9",
        "parameters": {"sequence_id": 7, "sequence_start": True, "priority": 1, "timeout": 5000, "triton_x": "y", "headers": {}},
        "inputs": [{**tensor([[1, 2, 3, 4]]), "parameters": {"content_type": "np", "shared_memory_offset": 0}, "more": []}],
        "outputs": [{"name": "predict", "parameters": {"content_type": "np"}}],
    }
    assert matrix(FOUR, json.dumps(body).encode()).tolist() == [[1.0, 2.0, 3.0, 4.0]]
