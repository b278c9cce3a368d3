"""The labels under which requests are counted: those of the route and of its codec, never text of a client."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from starlette.testclient import TestClient

from serve_app.http.app import create_app
from serve_app.http.routes.predictions import MODEL_ROUTES, PREDICTION_ROUTES
from serve_app.http.routes.tables import table_routes
from serve_app.inference.slot import Slot
from serve_app.protocols.codec import FORMATS, ProtocolName
from serve_app.protocols.media_types import MEDIA_TYPES
from serve_app.telemetry.collector import MetricsCollector
from tests.support.apps import HEADERS, client_of, http_options
from tests.support.models import A_FLOWER, logistic_store
from tests.support.oip import INFER, binary, request, tensor
from tests.support.policies import ALLOW_ALL

VERTEX = "/v1/endpoints/1/deployedModels/2:predict"
V1 = "/v1/models/IrisClassifier:predict"
FLOWER = list(A_FLOWER.values())
ROW = json.dumps(A_FLOWER).encode()
ROWS = json.dumps({"instances": [A_FLOWER]}).encode()
CSV = f"{','.join(A_FLOWER)}\n{','.join(map(str, FLOWER))}\n".encode()
TENSORS = request(tensor([FLOWER]))
RAW, RAW_HEADERS = binary(tensor([FLOWER]))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(logistic_store(tmp_path), predict_route=VERTEX) as client:
        yield client


def counted(client: TestClient) -> Counter[tuple[str, str, str, str]]:
    """Requests by route, protocol, format and status class, as the replica has counted them since it started."""
    collector: MetricsCollector = client.app.state.collector  # type: ignore[attr-defined]
    collector.flush()
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for ((route, protocol, status, _), body_format), count in collector.state.requests.items():
        counts[route, protocol, body_format, status] += count
    return +counts


@pytest.mark.parametrize(
    ("path", "body", "headers", "protocol", "body_format"),
    [
        ("/predict", ROW, {}, "native", "json"),
        ("/predict/batch", ROWS, {"Content-Type": "application/json"}, "native", "json"),
        ("/predict/batch", CSV, {"Content-Type": "text/csv; charset=utf-8"}, "native", "csv"),
        ("/predict/batch", ROW + b"\n", {"Content-Type": "application/x-ndjson"}, "native", "ndjson"),
        (
            "/predict/batch",
            ROW + b"\n",
            {"Content-Type": "application/x-ndjson", "Accept": "application/x-ndjson"},
            "native",
            "ndjson",
        ),
        ("/invocations", ROWS, {}, "mlflow", "json"),
        ("/invocations", CSV, {"Content-Type": "text/csv"}, "mlflow", "csv"),
        (V1, ROWS, {}, "kserve_v1", "json"),
        (VERTEX, ROWS, {}, "vertex", "json"),
        (INFER, TENSORS, {}, "open_inference", "json"),
        (INFER, TENSORS, {"Content-Type": "text/csv"}, "open_inference", "json"),
        (INFER, RAW, RAW_HEADERS, "open_inference", "binary"),
    ],
)
def test_a_prediction_is_counted_by_the_protocol_of_its_route_and_the_format_of_its_body(
    client: TestClient, path: str, body: bytes, headers: dict[str, str], protocol: str, body_format: str
) -> None:
    assert client.post(path, content=body, headers={**HEADERS, **headers}).status_code == 200
    route = "/v2/models/{model}/infer" if path == INFER else path
    assert counted(client) == {(route, protocol, body_format, "2xx"): 1}


@pytest.mark.parametrize(
    ("method", "path", "status", "route", "protocol"),
    [
        ("GET", "/health", 200, "/health", "native"),
        ("GET", "/v2", 200, "/v2", "open_inference"),
        ("GET", "/v2/models/IrisClassifier", 200, "/v2/models/{model}", "open_inference"),
        ("POST", "/v2/models/other/infer", 404, "/v2/models/{model}/infer", "open_inference"),
        ("GET", "/v1/models", 200, "/v1/models", "kserve_v1"),
        ("POST", "/v1/models/other:predict", 404, "/v1/models/{name}:predict", "kserve_v1"),
        ("GET", "/ping", 200, "/ping", "mlflow"),
        ("GET", "/version", 200, "/version", "mlflow"),
        ("GET", "/nowhere", 404, "unmatched", "unknown"),
        ("GET", "/v2/nowhere", 404, "unmatched", "unknown"),
        ("GET", "/v2x", 404, "unmatched", "unknown"),
    ],
)
def test_what_is_no_prediction_is_counted_by_protocol_without_a_format(
    client: TestClient, method: str, path: str, status: int, route: str, protocol: str
) -> None:
    assert client.request(method, path, headers=HEADERS).status_code == status
    assert counted(client) == {(route, protocol, "", f"{status // 100}xx"): 1}


def test_no_header_and_no_path_of_a_client_makes_a_label(client: TestClient) -> None:
    for number in range(20):
        media_type = f"text/x-{number}"
        client.post("/predict/batch", content=CSV, headers={**HEADERS, "Content-Type": media_type})
        client.post("/predict", content=ROW, headers={**HEADERS, "Content-Type": media_type})
        client.post(f"/v2/models/IrisClassifier/versions/{number}/infer", content=TENSORS, headers=HEADERS)
        client.post(f"/v2/models/m{number}/infer", content=TENSORS, headers=HEADERS)
        client.get(f"/v2/{number}", headers=HEADERS)
    assert counted(client) == {
        ("/predict/batch", "native", "unknown", "4xx"): 20,
        ("/predict", "native", "json", "4xx"): 20,
        ("/v2/models/{model}/versions/{version}/infer", "open_inference", "json", "2xx"): 1,
        ("/v2/models/{model}/versions/{version}/infer", "open_inference", "json", "4xx"): 19,
        ("/v2/models/{model}/infer", "open_inference", "", "4xx"): 20,
        ("unmatched", "unknown", "", "4xx"): 20,
    }


def test_every_route_of_the_application_names_its_protocol(tmp_path: Path) -> None:
    codecs = {**PREDICTION_ROUTES, **MODEL_ROUTES, **table_routes(http_options(predict_route=VERTEX))}
    protocols = {codec.protocol for codec in codecs.values()}
    assert protocols == {*get_args(ProtocolName)} - {"unknown", "open_inference_grpc"}
    assert set(MEDIA_TYPES) <= set(FORMATS)
    app = create_app(Slot(logistic_store(tmp_path), policy=ALLOW_ALL), http_options(predict_route=VERTEX))
    gateway = app.state.gateway
    for path in codecs.keys() - MODEL_ROUTES.keys():
        route = gateway.route_of({"type": "http", "path": path, "headers": []})
        assert {(label.route, label.protocol) for label in route.labels.values()} == {(path, codecs[path].protocol)}
