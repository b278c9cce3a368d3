"""The Open Inference Protocol over HTTP: every address, what answers it, and how it refuses."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from sklearn.linear_model import LinearRegression
from starlette.testclient import TestClient

from serve_app.artifacts.names import GOLDEN, JOBLIB, METRICS
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.http import prediction_service
from serve_app.http.rate_window import Rate
from serve_app.telemetry.collector import MetricsCollector
from tests.support.apps import HEADERS, KEY, client_of, rate_limits
from tests.support.asgi import ask
from tests.support.models import A_FLOWER, bundle_manifest, dumped, golden, iris, logistic, logistic_store, publish_iris, slow_model
from tests.support.oip import INFER, LENGTH, binary, outputs, request, tensor

MODEL = "/v2/models/IrisClassifier"
FLOWER = list(A_FLOWER.values())
BODY = request(tensor([FLOWER], name="input-0"))
CLASSES = ["setosa", "versicolor", "virginica"]
PAGE = "http://localhost:3000"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[TestClient]:
    with client_of(store) as client:
        yield client


@pytest.fixture
def empty(tmp_path: Path) -> TestClient:
    """A client of an application without a model."""
    return client_of(Store(tmp_path))


def infer(client: TestClient, body: bytes = BODY, path: str = INFER, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(path, content=body, headers={**HEADERS, **named})


# --- health, metadata and the index


def test_health_is_json_and_needs_no_key(client: TestClient, empty: TestClient) -> None:
    assert client.get("/v2/health/live").json() == empty.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True, "live": True}
    for path in (f"{MODEL}/ready", f"{MODEL}/versions/1/ready"):
        assert client.get(path).json() == {"name": "IrisClassifier", "ready": True}
    assert client.get(f"{MODEL}/versions/2/ready").status_code == client.get("/v2/models/other/ready").status_code == 404
    for path in ("/v2/health/ready", f"{MODEL}/ready"):
        reply = empty.get(path)
        assert (reply.status_code, reply.json()["ready"], reply.headers["retry-after"]) == (503, False, "5")
        assert isinstance(reply.json()["error"], str)


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2?verbose=1"])
def test_the_server_names_its_extensions_without_a_redirect(client: TestClient, path: str) -> None:
    reply = client.get(path, follow_redirects=False)
    assert reply.status_code == 200
    assert reply.json()["name"] == "iris-api"
    assert reply.json()["extensions"] == ["binary_tensor_data", "classification", "model_repository"]


def test_the_server_is_described_to_those_with_a_key_when_pages_are_not_public(store: Store) -> None:
    client = client_of(store, public_pages=False)
    assert client.get("/v2").status_code == 401
    assert client.get("/v2", headers=HEADERS).status_code == client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/versions/1"])
def test_the_metadata_of_a_model_follows_its_signature(client: TestClient, path: str) -> None:
    document = client.get(path, headers=HEADERS).json()
    assert (document["name"], document["versions"], document["platform"]) == ("IrisClassifier", ["1"], "iris-api_onnx")
    assert document["inputs"] == [{"name": name, "datatype": "FP64", "shape": [-1, 1]} for name in A_FLOWER]
    assert document["outputs"] == [
        {"name": "predict", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 3]},
    ]
    assert json.loads(document["properties"]["classes"]) == CLASSES
    answered = outputs((reply := infer(client)).content, reply.headers)
    assert [list(array.shape) for array in answered.values()] == [[1, output["shape"][1]] for output in document["outputs"]]


def test_models_and_the_index_list_what_is_served(client: TestClient, empty: TestClient) -> None:
    assert client.get("/v2/models", headers=HEADERS).json() == {"models": ["IrisClassifier"]}
    assert empty.get("/v2/models", headers=HEADERS).json() == {"models": []}
    ready = [{"name": "IrisClassifier", "version": "1", "state": "READY", "reason": ""}]
    for body in (b"", b"{}", b'{"ready":true}', b'{"ready":false,"more":1}'):
        assert client.post("/v2/repository/index", content=body, headers=HEADERS).json() == ready
    (listed,) = empty.post("/v2/repository/index", headers=HEADERS).json()
    assert (listed["state"], listed["version"]) == ("UNAVAILABLE", "")
    assert listed["reason"]
    assert empty.post("/v2/repository/index", content=b'{"ready":true}', headers=HEADERS).json() == []
    for body, status in ((b"[]", 400), (b"{", 400), (b'{"ready":1}', 400), (b" " * 70_000, 413)):
        assert client.post("/v2/repository/index", content=body, headers=HEADERS).status_code == status


@pytest.mark.parametrize("action", ["load", "unload"])
def test_models_are_not_loaded_by_requests(client: TestClient, action: str) -> None:
    body = b'{"parameters":{"unload_dependents":false}}'
    reply = client.post(f"/v2/repository/models/IrisClassifier/{action}", content=body, headers=HEADERS)
    assert (reply.status_code, reply.json()["code"]) == (400, "not_supported")
    assert infer(client).status_code == 200


def test_a_model_that_is_not_there_answers_503_everywhere(empty: TestClient) -> None:
    for reply in (empty.get(MODEL, headers=HEADERS), infer(empty), infer(empty, path=f"{MODEL}/versions/1/infer")):
        assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "no_model", "5")


# --- inference


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain; charset=latin-1", "?"],
)
def test_no_content_type_is_looked_at(client: TestClient, content_type: str | None) -> None:
    headers: Any = {} if content_type is None else {"Content_Type": content_type}
    reply = infer(client, **headers)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    body, length = binary(tensor([FLOWER]))
    assert infer(client, body, **length, **headers).status_code == 200


def test_the_answer_is_that_of_the_native_protocol(client: TestClient) -> None:
    X, _ = iris()
    for rows in (X[:1], X[:7], X):
        native = client.post(
            "/predict/batch", json={"instances": [dict(zip(A_FLOWER, row, strict=True)) for row in rows.tolist()]}, headers=HEADERS
        ).json()["predictions"]
        labels = [answer["prediction"] for answer in native]
        shares = [list(answer["probabilities"].values()) for answer in native]
        for body, headers in (
            (request(tensor(rows.tolist())), {}),
            (request(*(tensor(column, name=name) for name, column in zip(A_FLOWER, rows.T.tolist(), strict=True))), {}),
            binary(tensor(rows), parameters={"binary_data_output": True}) if len(rows) == 1 else binary(tensor(rows.tolist())),
        ):
            reply = infer(client, body, **headers)
            answered = outputs(reply.content, reply.headers)
            assert answered["predict"].ravel().tolist() == labels
            if len(rows) > 1:  # a single row may be computed by another call, which rounds its last bit otherwise
                assert answered["predict_proba"].tolist() == shares
            else:
                assert np.allclose(answered["predict_proba"], shares, rtol=0, atol=1e-12)


def test_the_answer_echoes_the_id_and_names_model_and_version(client: TestClient) -> None:
    for identity in ("r7", "", 'ü"\\ \u2028', "x" * 3000):
        reply = infer(client, request(tensor([FLOWER]), id=identity, model_name="other", more={"a": [1]}))
        assert reply.json()["id"] == identity
        assert (reply.json()["model_name"], reply.json()["model_version"]) == ("IrisClassifier", "1")
        assert reply.headers["x-model-version"] == "1"
    assert "id" not in infer(client).json()
    assert "id" not in infer(client, request(tensor([FLOWER]), id=None)).json()
    assert infer(client, request(tensor([FLOWER]), id=7)).status_code == 400
    assert infer(client, BODY[:-1] + b',"id":"\\ud800"}').status_code == 400


@pytest.mark.parametrize("version", [None, "1"])
def test_a_version_in_the_path_is_the_served_one_or_404(client: TestClient, version: str | None) -> None:
    path = INFER if version is None else f"{MODEL}/versions/{version}/infer"
    assert infer(client, path=path).json()["model_version"] == "1"
    for other in ("2", "01", "latest", "1 "):
        reply = infer(client, path=f"{MODEL}/versions/{other}/infer")
        assert (reply.status_code, reply.json()["code"]) == (404, "unknown_version")
        assert reply.json()["error"].endswith(" 1.")
    for odd in (f"{MODEL}/versions//infer", f"{MODEL}/versions/1/2/infer", f"{MODEL}/version/1/infer", f"{INFER}/"):
        assert infer(client, path=odd).status_code == 404


def test_outputs_are_chosen_by_name_and_come_in_the_order_asked_for(client: TestClient) -> None:
    for names in (["predict_proba"], ["predict"], ["predict_proba", "predict"]):
        reply = infer(client, request(tensor([FLOWER]), outputs=[{"name": name} for name in names]))
        assert [output["name"] for output in reply.json()["outputs"]] == names
    for everything in list[Any](([], None)):
        reply = infer(client, request(tensor([FLOWER]), outputs=everything))
        assert [output["name"] for output in reply.json()["outputs"]] == ["predict", "predict_proba"]
    wrong: list[Any] = [[{"name": "output-0"}], [{"name": "predict"}] * 2, [{"name": "predict"}] * 50, [{}], "predict"]
    for chosen in wrong:
        assert infer(client, request(tensor([FLOWER]), outputs=chosen)).status_code == 400


@pytest.mark.parametrize(
    ("everywhere", "each", "expected"),
    [
        (None, [None, None], [False, False]),
        (True, [None, None], [True, True]),
        (False, [True, None], [True, False]),
        (True, [False, None], [False, True]),
        (None, [True, False], [True, False]),
    ],
)
def test_each_output_is_binary_when_it_or_the_request_says_so(
    client: TestClient, everywhere: bool | None, each: list[bool | None], expected: list[bool]
) -> None:
    names = ["predict", "predict_proba"]
    chosen = [{"name": n} if b is None else {"name": n, "parameters": {"binary_data": b}} for n, b in zip(names, each, strict=True)]
    more = {} if everywhere is None else {"parameters": {"binary_data_output": everywhere, "timeout": 5}}
    reply = infer(client, request(tensor([FLOWER, FLOWER]), outputs=chosen, **more))
    head = json.loads(reply.content[: int(reply.headers.get(LENGTH, len(reply.content)))])
    assert ["data" not in output for output in head["outputs"]] == expected
    assert reply.headers["content-type"] == ("application/octet-stream" if any(expected) else "application/json")
    assert (LENGTH in reply.headers) == any(expected)
    answered = outputs(reply.content, reply.headers)
    assert answered["predict"].tolist() == [["setosa"], ["setosa"]]
    assert answered["predict_proba"].argmax(axis=1).tolist() == [0, 0]


@pytest.mark.parametrize("in_bytes", [False, True])
def test_the_best_classes_are_answered_as_value_index_and_label(client: TestClient, in_bytes: bool) -> None:
    for count, length in ((1, 1), (2, 2), (3, 3), (10, 3)):
        chosen = [{"name": "predict_proba", "parameters": {"classification": count, "binary_data": in_bytes}}]
        reply = infer(client, request(tensor([FLOWER, [6.8, 2.8, 4.8, 1.4]]), outputs=chosen))
        (ranking,) = outputs(reply.content, reply.headers).values()
        assert ranking.shape == (2, length)
        for row in ranking.tolist():
            values = [float(text.split(":")[0]) for text in row]
            assert values == sorted(values, reverse=True)
            assert all(CLASSES[int(text.split(":")[1])] == text.split(":", 2)[2] for text in row)
    for output, wrong in (("predict_proba", 0), ("predict_proba", -1), ("predict_proba", "2"), ("predict", 1)):
        chosen = [{"name": output, "parameters": {"classification": wrong}}]
        assert infer(client, request(tensor([FLOWER]), outputs=chosen)).status_code == 400


def test_compressed_binary_requests_count_decompressed_bytes(client: TestClient) -> None:
    body, headers = binary(tensor([FLOWER] * 3))
    for coding, packed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
        reply = infer(client, packed, Content_Encoding=coding, **headers)
        assert outputs(reply.content, reply.headers)["predict"].ravel().tolist() == ["setosa"] * 3
        assert_error(infer(client, body, Content_Encoding=coding, **headers), 400, "malformed")
    refused = infer(client, body, Content_Encoding="br", **headers)
    assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "gzip, deflate, identity")
    assert isinstance(refused.json()["error"], str)


# --- limits, keys and errors are those of the other routes


def assert_error(reply: Any, status: int, code: str) -> None:
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/json")
    document = reply.json()
    assert isinstance(document["error"], str)
    assert document["error"]
    assert document["code"] == code


def test_keys_are_asked_for_as_on_other_routes_and_before_anything_is_read(client: TestClient) -> None:
    calls = [
        *(("POST", path) for path in (INFER, f"{MODEL}/versions/1/infer", "/v2/models/other/infer", "/v2/repository/index")),
        *(("POST", f"/v2/repository/models/IrisClassifier/{action}") for action in ("load", "unload")),
        *(("GET", path) for path in ("/v2/models", MODEL, f"{MODEL}/versions/1", "/v2/models/other")),
    ]
    for method, path in calls:
        assert_error(client.request(method, path, content=b"{"), 401, "missing_key")
        assert_error(client.request(method, path, content=b"{", headers={"X-API-Key": KEY[:-1]}), 403, "wrong_key")
    assert client.post(INFER, content=BODY, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_errors_have_the_form_of_the_protocol_on_every_address(client: TestClient) -> None:
    for method, path, status, code in (
        ("GET", "/v2/nowhere", 404, "not_found"),
        ("POST", "/v2/models/other/infer", 404, "unknown_model"),
        ("GET", "/v2/models/other", 404, "unknown_model"),
        ("GET", f"{MODEL}/versions/9", 404, "unknown_version"),
        ("GET", f"{MODEL}/config", 404, "not_found"),
        ("GET", INFER, 405, "method_not_allowed"),
        ("PUT", "/v2/health/live", 405, "method_not_allowed"),
        ("POST", MODEL, 405, "method_not_allowed"),
    ):
        assert_error(client.request(method, path, headers=HEADERS), status, code)
    for body, code in ((b"{", "malformed"), (b"", "malformed"), (b"[]", "invalid_input"), (b"{}", "invalid_input")):
        assert_error(infer(client, body), 400, code)
    assert client.get("/nowhere").headers["content-type"] == "application/problem+json"
    assert client.get("/v2x").headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'"text"', 400),
        (b'{"id":"r7"}', 400),
        (BODY.replace(b'"FP64"', b"7"), 400),
        (BODY.replace(b'"FP64"', b'"FLOAT"'), 400),
        (BODY.replace(b"[1, 4]", b"[2, 4]"), 400),
        (BODY.replace(b"[1, 4]", b"[4]"), 400),
        (BODY.replace(b"[1, 4]", b"[1, 3]"), 400),
        (BODY.replace(b"5.1", b"null"), 400),
        (BODY.replace(b"5.1", b"500"), 400),
        (request(tensor([FLOWER]), outputs=[{"name": "output-0"}]), 400),
        (request(tensor([FLOWER]), id=7), 400),
        (request(tensor([list(map(str, FLOWER))], datatype="FP32")), 200),
        (request(tensor([FLOWER], datatype="FP32")), 200),
        (request(tensor([[5, 3, 1, 0]], datatype="INT32")), 200),
        (request(tensor(FLOWER, shape=[1, 4])), 200),
        (request(tensor([FLOWER]), parameters={"headers": {"a": {"b": 1}}}, model_name="other"), 200),
    ],
)
def test_a_request_is_answered_or_refused_as_the_protocol_says(client: TestClient, body: bytes, status: int) -> None:
    for path in (INFER, f"{INFER}?trace=1", f"{MODEL}/versions/1/infer"):
        reply = infer(client, body, path=path)
        assert reply.status_code == status
        assert isinstance(reply.json()["outputs" if status == 200 else "error"], list if status == 200 else str)


def test_an_error_names_the_fields_and_repeats_no_value(client: TestClient) -> None:
    reply = infer(client, request(tensor([[987.0, 3.5, 1.4, 0.2]])))
    assert_error(reply, 400, "invalid_input")
    assert "sepal_length[0]" in reply.json()["error"]
    assert [(each["field"], each["code"]) for each in reply.json()["errors"]] == [("sepal_length[0]", "out_of_range")]
    for body in (
        request(tensor([FLOWER], name="secret-1")).replace(b"[1, 4]", b"[1, 5]"),
        request(*(tensor([1.0], name=name) for name in A_FLOWER), tensor([1.0], name="secret-1")),
        request(tensor([FLOWER]), outputs=[{"name": "secret-1"}]),
        request(tensor([FLOWER], datatype="secret-1")),
        request(tensor([["secret-1", 1, 1, 1]])),
        request(tensor([FLOWER]), parameters="secret-1"),
        request(tensor([FLOWER]), outputs=[{"name": "predict", "parameters": {"binary_data": "secret-1"}}]),
    ):
        refused = infer(client, body)
        assert refused.status_code == 400
        assert "secret-1" not in refused.text


def test_bodies_and_rows_over_the_limits_are_413(store: Store) -> None:
    client = client_of(store, max_body_bytes=5000, max_rows=10)
    assert_error(infer(client, BODY + b" " * 5000), 413, "body_too_large")
    for coding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        assert_error(infer(client, compress(BODY + b" " * 5000), Content_Encoding=coding), 413, "body_too_large")
    body, headers = binary(tensor([FLOWER] * 11))
    assert_error(infer(client, body, **headers), 413, "too_many_rows")
    assert_error(infer(client, request(tensor([1], shape=[2**40, 4]))), 413, "too_many_rows")
    assert infer(client, request(tensor([FLOWER] * 10))).status_code == 200


def test_rates_are_limited_as_on_other_routes_and_probes_are_free(store: Store) -> None:
    client = client_of(store, rate_limits=rate_limits(per_key=Rate(2, 3600.0)))
    assert infer(client).status_code == 200
    assert client.post("/predict", json=A_FLOWER, headers=HEADERS).status_code == 200
    for reply in (infer(client), client.get(MODEL, headers=HEADERS), infer(client, path=f"{MODEL}/versions/1/infer")):
        assert_error(reply, 429, "rate_limited")
        assert reply.headers["retry-after"]
    assert {client.get(f"/v2/health/{probe}", headers=HEADERS).status_code for probe in ("live", "ready")} == {200}


def test_a_full_server_answers_429(store: Store) -> None:
    client = client_of(store, max_in_flight=0)
    assert_error(infer(client), 429, "too_busy")


async def test_a_repeated_header_about_the_body_is_refused(store: Store) -> None:
    app: Any = client_of(store).app
    pairs = [(b"x-api-key", KEY.encode()), (b"inference-header-content-length", b"5"), (b"inference-header-content-length", b"6")]
    reply = await ask(app, "POST", INFER, pairs, [BODY])
    assert (reply.status, orjson.loads(reply.body)["code"]) == (400, "invalid_header")


def test_pages_from_other_origins_may_read_the_length_of_the_json(store: Store) -> None:
    client = client_of(store, cors_origins=(PAGE,))
    reply = infer(client, Origin=PAGE)
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert LENGTH in reply.headers["access-control-expose-headers"]
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    assert client.options(INFER, headers=preflight).status_code == 200


def test_the_routes_are_answered_below_a_path_too(store: Store) -> None:
    client = client_of(store, root_path="/api/v1")
    for prefix in ("", "/api/v1"):
        for path in (INFER, f"{MODEL}/versions/1/infer"):
            assert infer(client, path=prefix + path).status_code == 200
        assert client.get(f"{prefix}/v2/health/ready").status_code == 200
        assert_error(infer(client, path=f"{prefix}/v2/models/other/infer"), 404, "unknown_model")
        assert_error(infer(client, path=f"{prefix}{MODEL}/versions/8/infer"), 404, "unknown_version")
    assert infer(client, path=f"/shop{INFER}", X_Forwarded_Prefix="/shop").status_code == 200


# --- many rows, slow models, counts


def test_rows_are_counted_by_route_and_not_by_version_asked_for(store: Store) -> None:
    client = client_of(store)
    collector: MetricsCollector = client.app.state.collector  # type: ignore[attr-defined]
    infer(client, request(tensor([FLOWER] * 5)))
    infer(client)
    for version in ("1", "2", "3"):
        infer(client, path=f"{MODEL}/versions/{version}/infer")
    collector.flush()
    routes = {(route, status) for route, _, status, _ in collector.state.seconds}
    assert ("/v2/models/{model}/infer", "2xx") in routes
    assert {route for route, _ in routes if "versions" in route} == {"/v2/models/{model}/versions/{version}/infer"}
    assert collector.state.predictions["setosa"] == 7


@pytest.mark.parametrize("limit", [0, 10**9])
def test_bodies_that_are_counted_in_a_thread_are_answered_as_others(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(prediction_service, "COUNT_BYTES", limit)
    for count in (1, 3, 9000):
        body, headers = binary(tensor([FLOWER] * count))
        reply = infer(client, body, **headers)
        assert outputs(reply.content, reply.headers)["predict"].ravel().tolist() == ["setosa"] * count
        assert_error(infer(client, request(tensor([[1, 2, 3, 400]] * count))), 400, "invalid_input")


def test_single_rows_of_a_slow_model_are_gathered_and_shed_as_on_predict(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, slow_model())
    client = client_of(store, max_wait_seconds=0.1)
    with client, ThreadPoolExecutor(30) as pool:
        replies = list(pool.map(lambda _: infer(client), range(60)))
        assert infer(client, request(tensor([FLOWER] * 3))).status_code == 200  # batches have a queue of their own
    assert {reply.status_code for reply in replies} == {200, 429}
    assert_error(next(reply for reply in replies if reply.status_code == 429), 429, "too_busy")


def test_batches_of_a_slow_model_are_shed_when_too_much_of_them_waits(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, slow_model())
    client = client_of(store, max_wait_seconds=0.01)
    body = request(tensor([FLOWER] * 10))
    with client, ThreadPoolExecutor(10) as pool:
        statuses = {reply.status_code for reply in pool.map(lambda _: infer(client, body), range(10))}
    assert statuses == {200, 429}


def test_a_request_is_answered_by_the_version_that_it_names_after_a_replacement(tmp_path: Path) -> None:
    store = logistic_store(tmp_path)
    client = client_of(store)
    assert infer(client, path=f"{MODEL}/versions/1/infer").status_code == 200
    publish_iris(store, logistic(0.5), onnx=True)
    client.app_state["slot"].refresh()
    assert infer(client, path=f"{MODEL}/versions/1/infer").status_code == 404
    assert infer(client, path=f"{MODEL}/versions/2/infer").json()["model_version"] == "2"
    assert client.get(MODEL, headers=HEADERS).json()["versions"] == ["2"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy; a replica ignores all warnings
def test_a_result_that_is_no_number_is_500_as_json_and_in_bytes(tmp_path: Path) -> None:
    estimator = LinearRegression().fit([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 1.0, 1.0])
    estimator.coef_ = np.array([1e300, 1.0])
    signature = Signature((Feature("x"), Feature("y")), "regression")
    store = Store(tmp_path)
    files = {JOBLIB: dumped(estimator), METRICS: b"{}", GOLDEN: golden(estimator, signature, np.zeros((2, 2)))}
    store.publish(files, bundle_manifest(signature, target_names=None))
    client = client_of(store)
    for rows in ([[1e38, 0]], [[0, 0], [1e38, 0]]):
        for members in ({}, {"parameters": {"binary_data_output": True}}):
            assert_error(infer(client, request(tensor(rows), **members)), 500, "not_finite_result")
    assert infer(client, request(tensor([[0, 1]]))).json()["outputs"][0]["datatype"] == "FP64"
