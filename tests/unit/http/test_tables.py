"""Tables over HTTP, and the addresses of MLflow, SageMaker, Vertex AI and KServe v1."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app import __version__
from serve_app.artifacts.store import Store
from serve_app.http.rate_window import Rate
from tests.support.apps import HEADERS, KEY, client_of, rate_limits
from tests.support.asgi import ask
from tests.support.models import A_FLOWER, iris, logistic, logistic_store

NAMES = list(A_FLOWER)
FLOWERS = [dict(zip(NAMES, row, strict=True)) for row in iris()[0][::10].tolist()]
VALUES = [list(flower.values()) for flower in FLOWERS]
CSV = ",".join(NAMES) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in VALUES)
LINES = "".join(json.dumps(flower) + "\n" for flower in FLOWERS)
INSTANCES = json.dumps({"instances": FLOWERS})
V1 = "/v1/models/IrisClassifier:predict"
VERTEX = "/v1/endpoints/1/deployedModels/2:predict"
FOREIGN = ("/invocations", V1, VERTEX)
every_format = pytest.mark.parametrize(
    ("body", "media_type"),
    [(INSTANCES, "application/json"), (CSV, "text/csv"), (LINES, "application/x-ndjson")],
    ids=["JSON", "CSV", "lines"],
)
predicts = pytest.mark.parametrize("path", ["/predict/batch", *FOREIGN])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[TestClient]:
    with client_of(store, predict_route=VERTEX, health_route="/v1/endpoints/1/deployedModels/2") as client:
        yield client


def post(client: TestClient, path: str, body: Any, media_type: str = "", accept: str = "", **headers: str) -> Any:
    named = {"Content-Type": media_type, "Accept": accept, **HEADERS, **headers}
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return client.post(path, content=content, headers={name: value for name, value in named.items() if value})


def natives(client: TestClient) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = post(client, "/predict/batch", INSTANCES).json()["predictions"]
    return answers


# --- formats


@every_format
def test_a_batch_in_any_format_has_the_same_answer_in_any_format(client: TestClient, body: str, media_type: str) -> None:
    expected = natives(client)
    as_json = post(client, "/predict/batch", body, media_type)
    assert (as_json.status_code, as_json.headers["content-type"]) == (200, "application/json")
    assert as_json.json()["predictions"] == expected
    as_lines = post(client, "/predict/batch", body, media_type, "application/x-ndjson")
    assert as_lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in as_lines.text.splitlines()] == expected
    as_csv = post(client, "/predict/batch", body, media_type, "text/csv")
    assert as_csv.headers["content-type"] == "text/csv"
    rows = list(csv.DictReader(io.StringIO(as_csv.text)))
    assert [row["prediction"] for row in rows] == [answer["prediction"] for answer in expected]
    assert [float(row["confidence"]) for row in rows] == [answer["confidence"] for answer in expected]
    for name in ("setosa", "versicolor", "virginica"):
        assert [float(row[f"probability_{name}"]) for row in rows] == [answer["probabilities"][name] for answer in expected]
    for answer in (as_json, as_lines, as_csv):
        assert answer.headers["x-model-version"] == "1"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]


@every_format
def test_a_batch_in_any_format_is_answered_in_columns_when_accept_names_them(
    client: TestClient, body: str, media_type: str
) -> None:
    expected = natives(client)
    answer = post(client, "/predict/batch", body, media_type, "application/json; orient=columns")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json; orient=columns")
    assert answer.json()["predictions"] == {
        "prediction": [each["prediction"] for each in expected],
        "confidence": [each["confidence"] for each in expected],
        "probabilities": {name: [each["probabilities"][name] for each in expected] for name in expected[0]["probabilities"]},
    }
    assert answer.headers["x-model-version"] == "1"


def test_the_description_has_the_columns_beside_the_rows(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    content = document["paths"]["/predict/batch"]["post"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Predictions"}
    assert content["application/json; orient=columns"]["schema"] == {"$ref": "#/components/schemas/PredictionColumns"}
    assert content["text/csv"]["schema"] == {"type": "string"}
    columns = document["components"]["schemas"]["PredictionColumns"]["properties"]["predictions"]["properties"]
    assert columns["confidence"]["items"] == {"type": "number", "minimum": 0, "maximum": 1}


@pytest.mark.parametrize(("path", "accept"), [("/invocations", "columns"), ("/predict/batch", "index")])
def test_an_orientation_that_is_not_written_is_406(client: TestClient, path: str, accept: str) -> None:
    assert post(client, path, INSTANCES, accept=f"application/json; orient={accept}").status_code == 406


@every_format
def test_a_body_in_any_format_may_be_packed(client: TestClient, body: str, media_type: str) -> None:
    packed = {"Content-Encoding": "gzip"}
    assert post(client, "/predict/batch", gzip.compress(body.encode()), media_type, **packed).json()["predictions"] == natives(
        client
    )
    assert post(client, "/predict/batch", gzip.compress(body.encode())[:-9], media_type, **packed).json()["code"] == "malformed"


@pytest.mark.parametrize("path", ["/predict/batch", "/invocations"])
def test_a_response_that_is_not_acceptable_is_406_and_names_those_that_are(client: TestClient, path: str) -> None:
    answer = post(client, path, INSTANCES, accept="text/html")
    assert answer.status_code == 406
    for media_type in ("application/json", "text/csv", "application/x-ndjson"):
        assert media_type in answer.text
    assert post(client, path, INSTANCES, accept="text/html, */*;q=0.1").status_code == 200


def test_accept_does_not_matter_where_there_is_one_format(client: TestClient) -> None:
    assert post(client, "/predict", A_FLOWER, accept="text/html").status_code == 200
    assert post(client, V1, INSTANCES, accept="text/html").status_code == 200


@pytest.mark.parametrize("path", ["/predict/batch", "/invocations"])
@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "text/csv; charset=cp1252", "application/xml"]
)
def test_another_format_is_415_and_the_answer_names_those_that_are_read(client: TestClient, path: str, media_type: str) -> None:
    answer = post(client, path, CSV, media_type)
    assert answer.status_code == 415
    assert "text/csv" in answer.text


@pytest.mark.parametrize("path", ["/predict", V1, VERTEX])
def test_a_protocol_of_json_alone_takes_no_csv_text(client: TestClient, path: str) -> None:
    assert post(client, path, CSV, "text/csv").status_code == 415


@pytest.mark.parametrize(
    ("body", "media_type", "code"),
    [
        (b"a,b\n\xff", "text/csv", "malformed"),
        (CSV + "1,2\n", "text/csv", "invalid_input"),
        (b"{}\n{", "application/x-ndjson", "malformed"),
        (LINES + '{"sepal_length":-1}\n', "application/x-ndjson", "invalid_input"),
        ("x" * 70_000, "text/csv", "row_too_large"),
        ("x" * 70_000, "application/x-ndjson", "row_too_large"),
        (",".join(NAMES) + "\n" + "1,1,1,1\n" * 21, "text/csv", "too_many_rows"),
        (LINES * 2, "application/x-ndjson", "too_many_rows"),
    ],
)
def test_a_wrong_body_is_a_problem_of_the_native_protocol(store: Store, body: Any, media_type: str, code: str) -> None:
    answer = post(client_of(store, max_rows=20), "/predict/batch", body, media_type, "text/csv")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert answer.status_code == {"malformed": 400, "invalid_input": 422}.get(code, 413)


@pytest.mark.parametrize("media_type", ["text/csv", "application/x-ndjson"])
def test_a_bomb_in_gzip_is_refused_by_its_unpacked_size(store: Store, media_type: str) -> None:
    client = client_of(store, max_body_bytes=100_000)
    answer = post(client, "/predict/batch", gzip.compress(b"1" * 10_000_000), media_type, **{"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


# --- what every protocol shares


@predicts
def test_every_protocol_asks_for_the_key_before_the_body(client: TestClient, path: str) -> None:
    assert client.post(path, content=b"{").status_code == 401
    assert client.post(path, content=b"{", headers={"X-API-Key": "wrong"}).status_code == 403
    assert client.post(path, content=INSTANCES, headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


@predicts
def test_every_protocol_has_the_limits_of_the_native_one(store: Store, path: str) -> None:
    client = client_of(store, predict_route=VERTEX, max_rows=2, max_body_bytes=1500)
    too_many = {"instances": FLOWERS[:3]}
    assert post(client, path, too_many).status_code == 413
    assert post(client, path, {"instances": FLOWERS[:2]}).status_code == 200
    assert post(client, path, {"instances": FLOWERS * 4}).status_code == 413
    assert post(client, path, INSTANCES, **{"Content-Encoding": "br"}).status_code == 415
    assert client.get(path).status_code == 405
    limited = client_of(store, predict_route=VERTEX, rate_limits=rate_limits(per_key=Rate(1, 3600.0)))
    assert [post(limited, path, {"instances": FLOWERS[:1]}).status_code for _ in range(2)] == [200, 429]
    crowded = client_of(store, predict_route=VERTEX, max_in_flight=0)
    refused = post(crowded, path, {"instances": FLOWERS[:1]})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


@predicts
def test_every_protocol_answers_503_while_no_model_is_loaded(tmp_path: Path, path: str) -> None:
    answer = post(client_of(Store(tmp_path), predict_route=VERTEX), path, INSTANCES)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@predicts
def test_every_protocol_is_counted_under_its_path(store: Store, path: str) -> None:
    client = client_of(store, predict_route=VERTEX)
    post(client, path, INSTANCES)
    post(client, path, b"{")
    samples = client.get("/metrics").text
    protocol = {"/invocations": "mlflow", V1: "kserve_v1", VERTEX: "vertex"}.get(path, "native")
    labels = f'format="json",model_version="1",protocol="{protocol}",route="{path}",status_class="2xx"'
    assert f"http_requests_total{{{labels}}} 1.0" in samples
    assert f'api_errors_total{{endpoint="{path}",error_type="malformed"}} 1.0' in samples
    assert "model_predictions_total" in samples


async def test_a_client_that_leaves_gets_no_answer_and_holds_nothing(store: Store) -> None:
    app: Any = client_of(store).app
    headers = [(b"x-api-key", KEY.encode()), (b"content-type", b"text/csv"), (b"transfer-encoding", b"chunked")]
    for path in ("/predict/batch", "/invocations"):
        reply = await ask(app, "POST", path, headers, [CSV.encode()] * 3, leaves=True)
        assert reply.status == 499
    assert app.state.gateway._budget.bytes == 0
    assert app.state.collector.in_flight == 0


# --- MLflow and SageMaker

LABELS = logistic().predict(iris()[0][::10]).tolist()


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": NAMES, "index": list(range(15)), "data": VALUES}, "params": {"temperature": 0.5}},
        {"dataframe_records": FLOWERS},
        {"instances": VALUES},
        {"inputs": FLOWERS},
        {"inputs": {name: [flower[name] for flower in FLOWERS] for name in NAMES}},
        {"input_data": {"columns": NAMES, "index": [], "data": VALUES}},
    ],
)
@pytest.mark.parametrize("media_type", ["", "application/json", "application/json; charset=utf-8"])
def test_invocations_answer_with_what_the_estimator_predicts(client: TestClient, body: Any, media_type: str) -> None:
    answer = post(client, "/invocations", body, media_type)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["predictions"] == LABELS
    assert answer.json()["classes"] == ["setosa", "versicolor", "virginica"]
    assert [max(row) for row in answer.json()["probabilities"]] == [native["confidence"] for native in natives(client)]


@pytest.mark.parametrize("media_type", ["text/csv", "text/csv; charset=UTF-8", "TEXT/CSV"])
@pytest.mark.parametrize(
    "body", [CSV, CSV.partition("\n")[2], CSV.partition("\n")[2].rstrip("\n")], ids=["header", "none", "no end"]
)
def test_invocations_take_csv_text_with_and_without_a_header(client: TestClient, media_type: str, body: str) -> None:
    assert post(client, "/invocations", body, media_type).json()["predictions"] == LABELS
    answer = post(client, "/invocations", body, media_type, "text/csv")
    assert [row["prediction"] for row in csv.DictReader(io.StringIO(answer.text))] == LABELS


def test_a_batch_takes_csv_text_without_a_header_when_the_type_says_so(client: TestClient) -> None:
    body = CSV.partition("\n")[2]
    assert post(client, "/predict/batch", body, "text/csv").status_code == 422
    assert post(client, "/predict/batch", body, "text/csv; header=absent").json()["predictions"] == natives(client)


@pytest.mark.parametrize("body", [LINES, "".join(json.dumps(row) + "\n" for row in VALUES)], ids=["objects", "lists"])
def test_invocations_take_lines_of_json(client: TestClient, body: str) -> None:
    assert post(client, "/invocations", body, "application/jsonlines").json()["predictions"] == LABELS


SECRET = 918273.645


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"instances": [[SECRET, 1, 1, 1]]}, 400, "INVALID_PARAMETER_VALUE"),
        ({"dataframe_split": {"columns": ["secret-column"], "data": [[SECRET]]}}, 400, "INVALID_PARAMETER_VALUE"),
        ({"instances": [["secret-text", 1, 1, 1]]}, 400, "INVALID_PARAMETER_VALUE"),
        ({}, 400, "INVALID_PARAMETER_VALUE"),
        (b"{", 400, "BAD_REQUEST"),
        ({"dataframe_records": []}, 400, "INVALID_PARAMETER_VALUE"),
    ],
)
def test_errors_of_invocations_have_a_code_and_never_a_value(client: TestClient, body: Any, status: int, code: str) -> None:
    answer = post(client, "/invocations", body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert set(answer.json()) == {"error_code", "message"}
    assert answer.json()["error_code"] == code
    assert "secret" not in answer.text
    assert "918273" not in answer.text


def test_errors_of_keys_and_limits_have_codes_of_mlflow(store: Store) -> None:
    client = client_of(store, rate_limits=rate_limits(per_key=Rate(1, 3600.0)))
    assert client.post("/invocations", content=b"{}").json()["error_code"] == "UNAUTHENTICATED"
    assert client.post("/invocations", content=b"{}", headers={"X-API-Key": "x"}).json()["error_code"] == "PERMISSION_DENIED"
    codes = [post(client, "/invocations", INSTANCES).json().get("error_code") for _ in range(2)]
    assert codes == [None, "RESOURCE_EXHAUSTED"]


def test_ping_and_version_need_no_key_and_ping_says_whether_a_model_is_loaded(client: TestClient, tmp_path: Path) -> None:
    ping = client.get("/ping")
    assert (ping.status_code, ping.text, ping.headers["content-type"]) == (200, "\n", "application/json")
    assert client.get("/version").text == __version__
    assert client.get("/health").json()["status"] == "healthy"
    empty = client_of(Store(tmp_path)).get("/ping")
    assert (empty.status_code, empty.json()["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")


def test_probes_are_not_limited(store: Store) -> None:
    health = "/vertex/health"
    client = client_of(store, health_route=health, rate_limits=rate_limits(per_client=Rate(1, 3600.0)))
    assert {client.get(path).status_code for path in ("/ping", health) for _ in range(4)} == {200}


# --- KServe v1 and Vertex AI


@pytest.mark.parametrize("path", [V1, VERTEX])
@pytest.mark.parametrize(
    "body", [{"instances": VALUES}, {"instances": FLOWERS, "parameters": {"k": [1]}}], ids=["lists", "objects"]
)
def test_instances_get_predictions(client: TestClient, path: str, body: Any) -> None:
    answer = post(client, path, body, "application/json; charset=utf-8")
    assert (answer.status_code, answer.json()["predictions"]) == (200, LABELS)


def test_inputs_stand_for_instances_in_kserve_v1_alone(client: TestClient) -> None:
    assert post(client, V1, {"inputs": VALUES}).json()["predictions"] == LABELS
    assert post(client, VERTEX, {"inputs": VALUES}).status_code == 400


@pytest.mark.parametrize("path", [V1, VERTEX])
@pytest.mark.parametrize("body", [b"{", {"instances": [[SECRET, 1, 1, 1]]}, {"instances": VALUES[0]}, {"predictions": []}])
def test_errors_are_400_with_a_text(client: TestClient, path: str, body: Any) -> None:
    answer = post(client, path, body)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert list(answer.json()) == ["error"]
    assert "918273" not in answer.text


def test_the_models_of_kserve_v1_are_the_one_that_is_served(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/v1/models", headers=HEADERS).json() == {"models": ["IrisClassifier"]}
    assert client.get("/v1/models/IrisClassifier", headers=HEADERS).json() == {"name": "IrisClassifier", "ready": True}
    for path in ("/v1/models/other", "/v1/models/other:predict", "/v1/models/other:explain"):
        answer = client.request("GET" if ":" not in path else "POST", path, headers=HEADERS)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])
    assert client.post("/v1/models/IrisClassifier:explain", headers=HEADERS).status_code == 501
    for path in ("/v1/models", "/v1/models/IrisClassifier", "/v1/models/other"):
        assert client.get(path).status_code == 401
    empty = client_of(Store(tmp_path))
    assert empty.get("/v1/models", headers=HEADERS).json() == {"models": []}
    assert empty.get("/v1/models/IrisClassifier", headers=HEADERS).status_code == 503
    assert client.get("/").json()["status"] == "alive"


def test_a_name_with_a_blank_is_part_of_the_path(store: Store) -> None:
    client = client_of(store, model_name="Iris 2.0")
    assert client.get("/v1/models/Iris%202.0", headers=HEADERS).json()["ready"] is True
    assert post(client, "/v1/models/Iris%202.0:predict", {"instances": VALUES}).json()["predictions"] == LABELS


def test_the_health_route_of_vertex_answers_without_a_key(client: TestClient, tmp_path: Path) -> None:
    route = "/v1/endpoints/1/deployedModels/2"
    assert client.get(route).status_code == 200
    assert client_of(Store(tmp_path), health_route=route).get(route).status_code == 503
    for own in ("/ping", "/readyz", "/health"):
        assert client_of(Store(tmp_path), health_route=own).get(own).status_code in (200, 503)


def test_routes_are_answered_below_a_path(store: Store) -> None:
    client = client_of(store, root_path="/api/v1")
    for prefix in ("", "/api/v1"):
        assert post(client, f"{prefix}/invocations", CSV, "text/csv").json()["predictions"] == LABELS
        assert client.get(f"{prefix}/ping").status_code == 200
        assert post(client, f"{prefix}{V1}", {"instances": VALUES}).json()["predictions"] == LABELS


def test_the_document_names_the_formats_of_a_batch(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/predict/batch"]["post"]
    formats = {"application/json", "text/csv", "application/x-ndjson", "application/vnd.apache.arrow.stream"}
    assert set(operation["requestBody"]["content"]) == {*formats, "application/vnd.apache.parquet"}
    assert set(operation["responses"]["200"]["content"]) == {*formats, "application/json; orient=columns"}
    assert "406" in operation["responses"]
