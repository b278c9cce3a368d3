"""The HTTP contract of the prediction routes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_app.artifacts.store import Store
from tests.support.apps import HEADERS, KEY, client_of
from tests.support.models import (
    A_FLOWER,
    bundle_files,
    bundle_manifest,
    diabetes_signature,
    iris,
    iris_signature,
    linear,
    logistic,
    publish_iris,
    without_probabilities,
)
from tests.support.signatures import anything

JSON = {**HEADERS, "Content-Type": "application/json"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    store = Store(tmp_path)
    publish_iris(store, logistic(), onnx=True)
    with client_of(store) as client:
        yield client


def test_a_flower_gets_its_species_confidence_and_probabilities(client: TestClient) -> None:
    answer = client.post("/predict", json=A_FLOWER, headers=HEADERS)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["prediction", "confidence", "probabilities"]
    assert body["prediction"] == "setosa"
    assert list(body["probabilities"]) == ["setosa", "versicolor", "virginica"]
    assert body["confidence"] == max(body["probabilities"].values())
    X, _ = iris()
    assert list(body["probabilities"].values()) == pytest.approx(list(logistic().predict_proba(X[:1])[0]), abs=1e-6)


def test_the_answer_names_the_model_that_computed_it(client: TestClient) -> None:
    answer = client.post("/predict", json=A_FLOWER, headers=HEADERS)
    ready = client.get("/readyz").json()
    assert answer.headers["x-model-name"] == "IrisClassifier"
    assert answer.headers["x-model-version"] == ready["model_version"] == "1"
    assert answer.headers["x-model-digest"] == ready["digest"]


def test_further_fields_are_ignored_and_a_number_may_be_a_string(client: TestClient) -> None:
    plain = client.post("/predict", json=A_FLOWER, headers=HEADERS).content
    assert client.post("/predict", json={**A_FLOWER, "colour": ["blue"]}, headers=HEADERS).content == plain
    assert client.post("/predict", json={**A_FLOWER, "sepal_length": "5.1"}, headers=HEADERS).content == plain


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({**A_FLOWER, "sepal_length": "long"}, "sepal_length", "type"),
        ({**A_FLOWER, "sepal_length": True}, "sepal_length", "type"),
        ({**A_FLOWER, "sepal_length": None}, "sepal_length", "type"),
        ({**A_FLOWER, "sepal_length": -0.1}, "sepal_length", "out_of_range"),
        ({**A_FLOWER, "petal_width": 20.1}, "petal_width", "out_of_range"),
        ({**A_FLOWER, "petal_width": float("nan")}, "petal_width", "not_finite"),
        ({**A_FLOWER, "petal_width": float("inf")}, "petal_width", "not_finite"),
        ({"sepal_length": 1}, "sepal_width", "missing"),
        ([A_FLOWER], "body", "type"),
    ],
)
def test_bad_input_is_422_and_names_the_field(client: TestClient, body: object, field: str, code: str) -> None:
    answer = client.post("/predict", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == 422
    assert isinstance(problem["detail"], str)
    assert (field, code) in [(error["field"], error["code"]) for error in problem["errors"]]


@pytest.mark.parametrize("body", [b"", b"{", b"sepal_length=5", b"\xff\xfe", b"[" * 50_000])
def test_what_is_not_json_is_400(client: TestClient, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["code"] == "malformed"


def test_another_content_type_is_415_and_none_is_taken_as_json(client: TestClient) -> None:
    form = client.post(
        "/predict", content=b"sepal_length=5", headers={**HEADERS, "Content-Type": "application/x-www-form-urlencoded"}
    )
    assert form.status_code == 415
    assert client.post("/predict", content=json.dumps(A_FLOWER), headers=HEADERS).status_code == 200
    charset = client.post(
        "/predict", content=json.dumps(A_FLOWER), headers={**HEADERS, "Content-Type": "application/json; charset=utf-8"}
    )
    assert charset.status_code == 200


def test_no_key_is_401_and_a_wrong_key_403_before_the_body_is_looked_at(client: TestClient) -> None:
    for headers, status in (
        ({}, 401),
        ({"X-API-Key": ""}, 401),
        ({"Authorization": "Basic abc"}, 401),
        ({"X-API-Key": KEY[:-1]}, 403),
    ):
        for path in ("/predict", "/predict/batch"):
            answer = client.post(path, content=b"{", headers=headers)
            assert answer.status_code == status, (path, headers)
            assert answer.headers["www-authenticate"] == "ApiKey"
            assert KEY[:-1] not in answer.text
    assert client.get("/model/info").status_code == 401
    assert client.get("/model", headers={"X-API-Key": "x"}).status_code == 403


def test_a_bearer_token_is_a_key(client: TestClient) -> None:
    assert client.post("/predict", json=A_FLOWER, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert client.post("/predict", json=A_FLOWER, headers={"Authorization": "Bearer wrong"}).status_code == 403


def test_a_body_over_the_limit_is_413(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, logistic())
    big = json.dumps({**A_FLOWER, "note": "x" * 2000})
    with client_of(store, max_body_bytes=1024) as client:
        assert client.post("/predict", content=big, headers=JSON).status_code == 413
        streamed = client.post("/predict", content=(part for part in [big[:1000].encode(), big[1000:].encode()]), headers=JSON)
        assert streamed.status_code == 413
        assert client.post("/predict/batch", content=big, headers=JSON).status_code == 413


def test_a_batch_keeps_its_order_and_repeats_the_single_answers(client: TestClient) -> None:
    X, _ = iris()
    rows = [dict(zip(A_FLOWER, map(float, X[i]), strict=True)) for i in (149, 0, 75, 1)]
    answer = client.post("/predict/batch", json={"instances": rows}, headers=HEADERS)
    assert answer.status_code == 200
    assert answer.headers["x-model-version"] == "1"
    single = [client.post("/predict", json=row, headers=HEADERS).json() for row in rows]
    many = answer.json()["predictions"]
    assert [item["prediction"] for item in many] == [item["prediction"] for item in single]
    for one, other in zip(single, many, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-12)


def test_a_large_batch_is_answered_whole(client: TestClient) -> None:
    X, _ = iris()
    rows = [dict(zip(A_FLOWER, map(float, row), strict=True)) for row in X] * 20
    answer = client.post("/predict/batch", json={"instances": rows}, headers=HEADERS)
    predicted = [item["prediction"] for item in answer.json()["predictions"]]
    assert predicted == [str(label) for label in logistic().predict(X)] * 20


def test_a_batch_over_the_cap_or_empty_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, logistic())
    with client_of(store, max_rows=2) as client:
        many = client.post("/predict/batch", json={"instances": [A_FLOWER] * 3}, headers=HEADERS)
        assert (many.status_code, many.json()["code"]) == (413, "too_many_rows")
        assert client.post("/predict/batch", json={"instances": []}, headers=HEADERS).status_code == 422
        wrong = client.post("/predict/batch", json={"instances": [A_FLOWER, {**A_FLOWER, "sepal_width": "x"}]}, headers=HEADERS)
        assert wrong.json()["errors"][0]["field"] == "instances[1].sepal_width"


def test_without_a_model_predict_is_503_and_says_when_to_come_back(tmp_path: Path) -> None:
    with client_of(Store(tmp_path)) as client:
        answer = client.post("/predict", json=A_FLOWER, headers=HEADERS)
        assert (answer.status_code, answer.json()["code"]) == (503, "no_model")
        assert int(answer.headers["retry-after"]) > 0
        assert client.get("/model/info", headers=HEADERS).status_code == 404
        assert client.get("/health").json() == {"status": "unhealthy", "model_loaded": False, "version": "1.0.0"}
        assert client.get("/readyz").status_code == 503
        assert client.get("/livez").status_code == 200


def test_a_regression_answers_a_number(tmp_path: Path) -> None:
    store = Store(tmp_path)
    signature = diabetes_signature()
    store.publish(bundle_files(linear(), signature), bundle_manifest(signature))
    with client_of(store) as client:
        answer = client.post("/predict", json=signature.example(), headers=HEADERS).json()
        assert list(answer) == ["prediction"]
        assert isinstance(answer["prediction"], float)


def test_a_classifier_without_probabilities_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    signature = iris_signature(probabilistic=False)
    store.publish(bundle_files(without_probabilities(), signature), bundle_manifest(signature))
    with client_of(store) as client:
        answer = client.post("/predict", json=A_FLOWER, headers=HEADERS).json()
        assert answer == {"prediction": "setosa", "confidence": None, "probabilities": None}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200)
@given(body=st.one_of(st.binary(max_size=60), anything.map(lambda value: json.dumps(value).encode())))
def test_no_body_gets_a_server_error(client: TestClient, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers=JSON)
    assert answer.status_code in (200, 400, 422)
    assert client.post("/predict/batch", content=body, headers=JSON).status_code in (200, 400, 413, 422)
