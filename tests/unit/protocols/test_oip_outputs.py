"""The outputs of the Open Inference Protocol hold what the native protocol answers, for every shape of answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.signature import Coverage, Feature, Label, Output, Signature, label_text
from serve_app.errors import NotFinite
from serve_app.protocols.codec import Batch
from serve_app.protocols.encode import rows_encoder
from serve_app.protocols.oip_metadata import model_document
from tests.support.oip import codec_of, outputs
from tests.support.signatures import scores_of, signatures

X = (Feature("x"),)


def answer(signature: Signature, scores: Any, **members: Any) -> tuple[bytes, dict[str, str]]:
    """The body of the response to a request with these members, and the headers that describe it."""
    codec = codec_of(signature)
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1]}], **members}).encode()
    batch = Batch(np.empty((len(scores), 1)), codec.decode(body, []).meta)
    response = codec.respond(batch, scores)
    return bytes(response.body), {name.decode().title(): value.decode() for name, value in response.headers}


def native(signature: Signature, scores: Any) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = json.loads(rows_encoder(signature)(scores))["predictions"]
    return answers


def expected(signature: Signature, answers: list[dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """The outputs that say what these native answers say, row by row."""
    if signature.outputs:
        return {
            f"{part.target}.{name}": rows
            for _, part in signature.parts
            for name, rows in expected(part, [each["outputs"][label_text(part.target)] for each in answers]).items()
        }
    names = {"prediction": "predict", "outlier": "predict", "cluster": "predict", "score": "decision_function"}
    found: dict[str, list[list[Any]]] = {}
    for key in answers[0]:
        values = [each[key] for each in answers]
        if key == "confidence" or values[0] is None:
            continue
        if key in ("probabilities", "quantiles"):
            found[{"probabilities": "predict_proba"}.get(key, key)] = [list(value.values()) for value in values]
        elif key == "prediction_set":
            found[key] = [[any(same(label, each) for each in value) for label in signature.classes] for value in values]
        else:
            found[names.get(key, key)] = [value if isinstance(value, list) else [value] for value in values]
    return found


def same(label: Label, written: Label) -> bool:
    return label_text(label) == label_text(written)


def texts(rows: Any) -> list[list[str]]:
    return [[label_text(value) for value in row] for row in rows]


@pytest.mark.parametrize("in_bytes", [False, True])
@given(data=st.data())
def test_every_shape_of_answers_is_answered_as_in_the_native_protocol(in_bytes: bool, data: st.DataObject) -> None:
    signature = data.draw(signatures(st.just("x")))
    signature = Signature(**{**{name: getattr(signature, name) for name in signature.__dataclass_fields__}, "features": X})
    scores = data.draw(scores_of(signature))
    body, headers = answer(signature, scores, parameters={"binary_data_output": in_bytes})
    found = outputs(body, headers)
    wanted = expected(signature, native(signature, scores))
    assert list(found) == list(wanted)
    document = model_document(signature, name="m", version="1", platform="onnx")
    head = json.loads(body[: int(headers.get("Inference-Header-Content-Length", len(body)))])
    assert [{**each, "shape": [-1, each["shape"][1]]} for each in (strip(each) for each in head["outputs"])] == document["outputs"]
    for name, rows in wanted.items():
        if found[name].dtype.kind == "f":
            assert found[name].tolist() == [list(map(float, row)) for row in rows]
        else:
            assert texts(found[name].tolist()) == texts(rows)


def strip(output: dict[str, Any]) -> dict[str, Any]:
    return {key: output[key] for key in ("name", "datatype", "shape")}


@pytest.mark.parametrize(
    ("classes", "datatype", "values"),
    [
        (("no", "yes"), "BYTES", ["no", "yes"]),
        ((0, 1), "INT64", [0, 1]),
        ((2**62, -(2**62)), "INT64", [2**62, -(2**62)]),
        ((2**70, 1), "BYTES", [str(2**70), "1"]),
        ((0.0, 1.0), "INT64", [0, 1]),
        ((0.5, 1.0), "FP64", [0.5, 1.0]),
        ((False, True), "BOOL", [False, True]),
        ((1, "1.5"), "BYTES", ["1", "1.5"]),
        ((True, 2), "BYTES", ["true", "2"]),
        (('"', "\n🌷"), "BYTES", ['"', "\n🌷"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("in_bytes", [False, True])
def test_labels_keep_their_datatype(classes: tuple[Label, ...], datatype: str, values: list[Any], in_bytes: bool) -> None:
    signature = Signature(X, "classification", classes)
    body, headers = answer(signature, np.array([[0.9, 0.1], [0.2, 0.8]]), parameters={"binary_data_output": in_bytes})
    found = outputs(body, headers)["predict"].ravel().tolist()
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]
    assert f'"datatype":"{datatype}"'.encode() in body


def test_metadata_lists_the_classes_the_levels_and_what_may_be_missing() -> None:
    features = (Feature("n", nullable=True), Feature("b", "boolean"), Feature("c", "category", categories=("x",)))
    several = Signature(features, "classification", outputs=(Output("u", ("a", "b")), Output("v", (1, 2), probabilistic=False)))
    document = model_document(several, name="m", version="1", platform="onnx")
    assert [(each["name"], each["datatype"]) for each in document["inputs"]] == [("n", "FP64"), ("b", "BOOL"), ("c", "BYTES")]
    assert [each["name"] for each in document["outputs"]] == ["u.predict", "u.predict_proba", "v.predict"]
    assert {key: json.loads(value) for key, value in document["properties"].items()} == {
        "classes": {"u": ["a", "b"], "v": [1, 2]},
        "nullable": ["n"],
    }
    levels = model_document(Signature(X, "regression", quantiles=(0.1, 0.9)), name="m", version="1", platform="onnx")
    assert json.loads(levels["properties"]["quantiles"]) == [0.1, 0.9]
    assert levels["outputs"] == [{"name": "quantiles", "datatype": "FP64", "shape": [-1, 2]}]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "members",
    [
        {},
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "predict_proba", "parameters": {"classification": 1}}]},
        {"outputs": [{"name": "predict_proba", "parameters": {"classification": 1, "binary_data": True}}]},
    ],
    ids=str,
)
def test_a_result_that_is_not_finite_is_never_written(value: float, dtype: Any, members: dict[str, Any]) -> None:
    scores = np.full((5000, 2), 0.5, dtype)
    scores[[7, 4999], 1] = value
    with pytest.raises(NotFinite) as refused:
        answer(Signature(X, "classification", ("a", "b")), scores, **members)
    assert refused.value.rows == [7, 4999]


def test_a_ranking_is_stable_and_names_classes_as_text() -> None:
    signature = Signature(X, "classification", (False, True))
    ranked = {"outputs": [{"name": "predict_proba", "parameters": {"classification": 2}}]}
    body, headers = answer(signature, np.array([[0.5, 0.5], [0.25, 0.75]], np.float32), **ranked)
    assert outputs(body, headers)["predict_proba"].tolist() == [["0.5:0:false", "0.5:1:true"], ["0.75:1:true", "0.25:0:false"]]
    interval = Signature(X, "regression", coverage=Coverage(0.9, 1.5))
    body, headers = answer(interval, np.array([2.0]), outputs=[{"name": "interval", "parameters": {"classification": 1}}])
    assert outputs(body, headers)["interval"].tolist() == [["3.5:1"]]
