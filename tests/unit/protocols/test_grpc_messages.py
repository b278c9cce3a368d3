"""ModelInfer over gRPC reads and writes what the Open Inference Protocol does over REST, in typed fields and as raw bytes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.fields import Unknown
from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import Coverage, Feature, Signature
from serve_app.errors import InvalidInput, Malformed, NotFinite, NotServed, TooLarge, TooManyRows
from serve_app.protocols.codec import Batch, Codec
from serve_app.protocols.grpc.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from serve_app.protocols.oip_metadata import input_datatype
from tests.support.calls import infer, message_codec, values_of
from tests.support.oip import NUMPY, binary, codec_of, outputs, tensor
from tests.support.signatures import rows, signatures

NUMBERS = Signature((Feature("a", minimum=0.1, maximum=0.7), Feature("b", nullable=True), Feature("c", "boolean")), "regression")
MIXED = Signature(
    (
        Feature("age", nullable=True),
        Feature("city", "category", categories=("Oslo", "Rome", "Zürich")),
        Feature("member", "boolean"),
        Feature("note", "text", nullable=True, max_length=8),
    ),
    "regression",
)
AGE = tensor([20.5, math.nan], name="age")
CITY = tensor(["Rome", "Oslo"], name="city", datatype="BYTES")
MEMBER = tensor([True, False], name="member", datatype="BOOL")
X = Signature((Feature("x"),), "classification", classes=("a", "b"))


def matrix(signature: Signature, message: ModelInferRequest | bytes, **options: Any) -> Matrix:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    return message_codec(signature, **options).decode(body, []).matrix


def refusals(signature: Signature, message: ModelInferRequest | bytes, **options: Any) -> list[tuple[str, str]]:
    """What is wrong with a request, as (field, code)."""
    with pytest.raises(InvalidInput) as refused:
        matrix(signature, message, **options)
    return [(problem.field, problem.code) for problem in refused.value.problems]


def outcome(codec: Codec, body: bytes, headers: list[tuple[bytes, bytes]]) -> Any:
    """The matrix to the last bit, where a missing value is one; or what is wrong."""
    try:
        read = codec.decode(body, headers).matrix
    except InvalidInput as refused:
        return [(each.field, each.code) for each in refused.problems]
    return read.dtype, repr(read.tolist())


# --- the rows


@pytest.mark.parametrize("unknown", ["refuse", "unseen"])
@given(data=st.data())
def test_rows_are_read_and_refused_as_over_rest(unknown: Unknown, data: st.DataObject) -> None:
    signature = data.draw(signatures())
    table = data.draw(st.lists(rows(signature), min_size=1, max_size=4))
    inputs = []
    for feature in signature.features:
        datatype = input_datatype(feature)
        kind, other = {"FP64": (float, math.nan), "BOOL": (bool, True), "BYTES": (str, "?")}[datatype]
        values = [value if type(value := row.get(feature.name)) is kind else other for row in table]
        inputs.append(tensor(values, name=feature.name, shape=[len(table)], datatype=datatype))
    body, headers = binary(*inputs)
    rest = codec_of(signature, unknown=unknown)
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    for raw in (False, True):
        message = infer(*inputs, raw=raw)
        assert outcome(message_codec(signature, unknown=unknown), message.SerializeToString(), []) == outcome(rest, body, pairs)


@pytest.mark.parametrize("raw", [False, True])
def test_a_mixed_table_with_a_gap_in_any_order(raw: bool) -> None:
    expected = [[20.5, 1.0, 1.0, math.nan], [math.nan, 0.0, 0.0, math.nan]]
    message = infer(MEMBER, {**CITY, "shape": [2, 1]}, AGE, raw=raw)
    message.parameters["content_type"].string_param = "pd"
    message.inputs[0].parameters["content_type"].string_param = "np"
    assert repr(matrix(MIXED, message).tolist()) == repr(expected)


@pytest.mark.parametrize("datatype", [*NUMPY, "INT8", "INT16", "UINT16", "UINT32", "UINT64"])
@pytest.mark.parametrize("raw", [False, True])
def test_every_datatype_of_numbers_is_read(datatype: str, raw: bool) -> None:
    if datatype == "FP16" and not raw:
        message = infer(tensor([1.5], name="n", datatype="FP32"))
        message.inputs[0].datatype = "FP16"
        assert refusals(Signature((Feature("n"),), "regression"), message) == [("inputs[0].datatype", "datatype")]
        return
    values = [False, True] if datatype == "BOOL" else [0, 1, 100]
    kind = {"INT8": "i1", "INT16": "<i2", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", **NUMPY}[datatype]
    message = infer(tensor(values, name="n", datatype="FP64"), raw=True)
    message.inputs[0].datatype = datatype
    message.raw_input_contents[0] = np.array(values, kind).tobytes()
    if not raw:
        message = infer(tensor(values, name="n", datatype=datatype))
    feature = Feature("n", "boolean") if datatype == "BOOL" else Feature("n")
    read = matrix(Signature((feature,), "regression"), message)
    assert read[:, 0].tolist() == [float(value) for value in values]


def test_numbers_beyond_a_small_datatype_are_refused() -> None:
    signature = Signature((Feature("n"),), "regression")
    for datatype, value in (("INT8", 128), ("INT16", -32769), ("UINT8", 256), ("UINT16", 65536)):
        message = infer(tensor([value], name="n", datatype=datatype))
        assert refusals(signature, message) == [
            ("inputs[0].contents." + ("uint_contents" if value > 0 and datatype[0] == "U" else "int_contents"), "out_of_range")
        ]


@pytest.mark.parametrize("raw", [False, True])
def test_the_bounds_of_float32_are_rounded(raw: bool) -> None:
    message = infer(tensor([[0.1, 1, 0], [0.7, 2, 1]], datatype="FP32"), raw=raw)
    assert matrix(NUMBERS, message)[:, 0].tolist() == [np.float32(0.1), np.float32(0.7)]
    assert refusals(NUMBERS, infer(tensor([[0.71, 1, 0]], datatype="FP32"), raw=raw)) == [("a[0]", "out_of_range")]


# --- broken requests


def test_values_stand_in_the_field_of_their_datatype_and_in_no_other() -> None:
    wrong = infer(tensor([1.0], name="x"))
    wrong.inputs[0].datatype = "FP32"
    assert refusals(X, wrong) == [("inputs[0].contents.fp64_contents", "datatype")]
    two = infer(tensor([1.0], name="x"))
    two.inputs[0].contents.bool_contents.append(True)
    assert refusals(X, two) == [("inputs[0].contents.bool_contents", "datatype")]


def test_values_that_do_not_fill_the_shape() -> None:
    assert refusals(X, infer(tensor([1.0, 2.0], name="x", shape=[3]))) == [("inputs[0].contents.fp64_contents", "shape")]
    assert refusals(X, infer(tensor([], name="x", shape=[1]))) == [("inputs[0].contents.fp64_contents", "shape")]
    assert refusals(X, infer(tensor([1.0, 2.0], name="x", shape=[3]), raw=True)) == [("inputs[0].raw_input_contents", "size")]
    texts = infer(CITY, MEMBER, raw=True)
    texts.raw_input_contents[0] = b"\xff\xff\xff\xff1234"
    assert refusals(MIXED, texts) == [("inputs[0].data", "size")]
    assert refusals(MIXED, infer({**CITY, "data": [b"\xff", b"Oslo"]}, MEMBER)) == [("inputs[0].data", "utf8")]


def test_raw_contents_for_each_input_and_nothing_beside_them() -> None:
    for count in (1, 3):
        message = infer(CITY, MEMBER, raw=True)
        del message.raw_input_contents[count:]
        message.raw_input_contents.extend([b""] * (count - len(message.raw_input_contents)))
        assert refusals(MIXED, message) == [("raw_input_contents", "size")]
    both = infer(CITY, MEMBER, raw=True)
    both.inputs[1].contents.bool_contents.extend([True, False])
    assert refusals(MIXED, both) == [("inputs[1].contents", "data")]
    both = infer(CITY, MEMBER, raw=True)
    both.inputs[1].contents.SetInParent()
    assert refusals(MIXED, both) == [("inputs[1].contents", "data")]


@pytest.mark.parametrize("shape", [[], [0], [-1], [1, 2], [2**62], [2**62, 2**62], [1, 1, 1]])
@pytest.mark.parametrize("raw", [False, True])
def test_wrong_shapes(shape: list[int], raw: bool) -> None:
    message = infer(tensor([1.0], name="x", shape=shape), raw=raw)
    if shape == [2**62]:
        with pytest.raises(TooManyRows):
            matrix(X, message)
    else:
        assert [field for field, _ in refusals(X, message)] == ["inputs[0].shape"]


def test_inputs_that_are_none_unknown_or_twice() -> None:
    assert refusals(X, infer()) == [("inputs", "too_short")]
    assert refusals(MIXED, infer(AGE, CITY, tensor([1.0, 2.0], name="salary"))) == [("inputs[2].name", "unknown_input")]
    assert refusals(MIXED, infer(AGE, AGE)) == [("inputs[1].name", "duplicate_input")]
    odd = infer(tensor([1.0], name="x"))
    odd.inputs[0].datatype = "FLOAT"
    assert refusals(X, odd) == [("inputs[0].datatype", "datatype")]


def test_another_model_or_version_is_not_served() -> None:
    others: tuple[tuple[str | None, dict[str, Any]], ...] = (
        (None, {"model_name": "other"}),
        (None, {"model_name": ""}),
        ("1", {"model_version": "2"}),
    )
    for served, changes in others:
        with pytest.raises(NotServed) as refused:
            matrix(X, infer(tensor([1.0], name="x"), **changes))
        assert refused.value.served == served
    assert len(matrix(X, infer(tensor([1.0], name="x"), model_version="1"))) == 1


@pytest.mark.parametrize("body", [b"\xff\xff", b"\x2a\x05\x0a", b"\x0a\x02\xff\xfe", b"\x0b", b"{}"])
def test_what_is_no_message_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        matrix(X, body)
    with pytest.raises(InvalidInput):  # the same behind a message that is large enough to be measured before it is read
        matrix(X, infer(tensor([1.0] * 10_000, name="x"), raw=True).SerializeToString() + body)


@pytest.mark.parametrize(
    "piece", [b"\x2a\x00", b"\x32\x00", b"\x3a\x00", b"\x22\x05\x0a\x03abc", b"\x92\x03\x00", b"\x1a\x01r", b"\x2a\x04\x12\x02FP"]
)
def test_a_message_is_small_beside_its_values(piece: bytes) -> None:
    with pytest.raises(TooLarge):
        matrix(X, piece * (80_000 // len(piece) + 1))


@pytest.mark.parametrize("raw", [False, True])
def test_a_long_message_is_large_in_its_values_alone(raw: bool) -> None:
    values = np.arange(20_000.0)
    assert matrix(X, infer(tensor(values, name="x"), raw=raw), max_rows=20_000)[:, 0].tolist() == values.tolist()


# --- the answers


def answer(signature: Signature, scores: Any, *, raw: bool, requested: Any = (), **members: Any) -> ModelInferResponse:
    codec = message_codec(signature)
    request = codec.read(infer(tensor([1.0], name="x"), raw=raw, outputs=requested, **members).SerializeToString(), [])
    response = codec.respond(Batch(np.empty((len(scores), 1)), request.content.asked), scores)
    assert not response.headers
    answered: ModelInferResponse = ModelInferResponse.FromString(bytes(response.body))
    return answered


@pytest.mark.parametrize("raw", [False, True])
@given(data=st.data())
def test_answers_hold_what_answers_over_rest_hold(raw: bool, data: st.DataObject) -> None:
    drawn = data.draw(signatures())
    signature = Signature(
        (Feature("x"),),
        drawn.task,
        **{name: getattr(drawn, name) for name in ("classes", "probabilistic", "outputs", "quantiles", "coverage", "distance")},
    )
    count = data.draw(st.integers(1, 3))
    scores = (
        np.random.default_rng(data.draw(st.integers(0, 99)))
        .random((count, *signature.score_shape))
        .astype(data.draw(st.sampled_from(["f4", "f8"])))
    )
    if signature.task == "clustering":
        scores[:, 0] = data.draw(st.integers(0, len(signature.classes) - 1))
    rest = codec_of(signature)
    body, headers = binary(tensor([1.0], name="x"), parameters={"binary_data_output": True})
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    answered = rest.respond(Batch(np.empty((count, 1)), rest.decode(body, pairs).meta), scores)
    expected = outputs(bytes(answered.body), {name.decode().title(): value.decode() for name, value in answered.headers})
    response = answer(signature, scores, raw=raw)
    found = values_of(response)
    assert list(found) == list(expected)
    assert all(found[name].shape == value.shape and found[name].tolist() == value.tolist() for name, value in expected.items())
    assert (response.model_name, response.model_version, response.id) == ("IrisClassifier", "1", "")


@pytest.mark.parametrize("raw", [False, True])
def test_labels_of_every_type(raw: bool) -> None:
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])
    for classes, datatype in (
        ((-5, 2**40), "INT64"),
        ((False, True), "BOOL"),
        ((0.5, 1e300), "FP64"),
        (("", "ä€"), "BYTES"),
        ((1, "x"), "BYTES"),
    ):
        response = answer(Signature((Feature("x"),), "classification", classes=classes), scores, raw=raw)
        assert response.outputs[0].datatype == datatype
        assert values_of(response)["predict"][:, 0].tolist() == [
            str(classes[1]) if classes == (1, "x") else classes[1],
            str(classes[0]) if classes == (1, "x") else classes[0],
        ]


@pytest.mark.parametrize("raw", [False, True])
def test_the_outputs_that_are_asked_for(raw: bool) -> None:
    signature = Signature((Feature("x"),), "classification", classes=("a", "b"), coverage=Coverage(0.9, 0.5))
    scores = np.array([[0.25, 0.75]])
    response = answer(signature, scores, raw=raw, requested=[{"name": "predict_proba"}, {"name": "predict"}], id="r7")
    assert list(values_of(response)) == ["predict_proba", "predict"]
    assert response.id == "r7"
    ranking = answer(
        signature, scores, raw=raw, requested=[{"name": "predict_proba", "parameters": {"classification": 2, "binary_data": True}}]
    )
    assert ranking.outputs[0].datatype == "BYTES"
    assert values_of(ranking)["predict_proba"].tolist() == [["0.75:1:b", "0.25:0:a"]]


@pytest.mark.parametrize(
    ("requested", "field"),
    [
        ([{"name": "nope"}], "outputs[0].name"),
        ([{"name": "predict"}, {"name": "predict"}], "outputs"),
        ([{"name": "predict"}] * 3, "outputs"),
        ([{"name": "predict", "parameters": {"classification": 1}}], "outputs[0].parameters.classification"),
        ([{"name": "predict_proba", "parameters": {"classification": 0}}], "outputs[0].parameters.classification"),
        ([{"name": "predict_proba", "parameters": {"classification": "2"}}], "outputs[0].parameters.classification"),
    ],
)
def test_outputs_that_cannot_be_answered(requested: Any, field: str) -> None:
    assert [each for each, _ in refusals(X, infer(tensor([1.0], name="x"), outputs=requested))] == [field]


@pytest.mark.parametrize("raw", [False, True])
def test_what_is_no_finite_number_is_not_answered(raw: bool) -> None:
    with pytest.raises(NotFinite) as refused:
        answer(Signature((Feature("x"),), "regression"), np.array([1.0, math.nan]), raw=raw)
    assert refused.value.rows == [1]
