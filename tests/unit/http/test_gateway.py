"""What every answer carries, and the pages that need no key."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from serve_app.artifacts.store import Store
from tests.support.apps import HEADERS, client_of
from tests.support.models import A_FLOWER, logistic, publish_iris


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    store = Store(tmp_path)
    publish_iris(store, logistic(), onnx=True)
    return client_of(store)


def test_every_answer_carries_the_security_headers_and_a_request_id(client: TestClient) -> None:
    answers = [
        client.get("/"),
        client.get("/nowhere"),
        client.get("/predict"),
        client.post("/predict", json=A_FLOWER),
        client.post("/predict", json=A_FLOWER, headers=HEADERS),
        client.get("/docs"),
        client.get("/metrics"),
    ]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["strict-transport-security"].startswith("max-age=31536000")
        assert answer.headers["x-xss-protection"]
        assert answer.headers["referrer-policy"]
        assert len(answer.headers["x-request-id"]) == 32
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


def test_a_client_keeps_its_request_id_unless_it_is_odd(client: TestClient) -> None:
    for path in ("/livez", "/predict"):
        assert (
            client.request("POST" if path == "/predict" else "GET", path, headers={"X-Request-ID": "order-7.a"}).headers[
                "x-request-id"
            ]
            == "order-7.a"
        )
        odd = client.request("POST" if path == "/predict" else "GET", path, headers={"X-Request-ID": "<script>" + "x" * 500})
        assert re.fullmatch("[0-9a-f]{32}", odd.headers["x-request-id"])


def test_the_root_tells_where_to_go_and_health_is_always_200(client: TestClient) -> None:
    root = client.get("/").json()
    assert set(root) == {"message", "status", "docs", "health", "security"}
    assert all(isinstance(value, str) for value in root.values())
    assert client.get(root["docs"]).status_code == client.get(root["health"]).status_code == 200
    assert client.get("/health").json() == {"status": "healthy", "model_loaded": True, "version": "1.0.0"}


def test_wrong_addresses_and_methods_are_problems(client: TestClient) -> None:
    for answer, status in ((client.get("/nowhere"), 404), (client.get("/predict"), 405), (client.put("/health"), 405)):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert isinstance(answer.json()["detail"], str)


def test_the_docs_load_nothing_from_elsewhere(client: TestClient) -> None:
    for page in ("/docs", "/redoc"):
        text = client.get(page).text
        assets = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert assets
        for asset in assets:
            assert not asset.startswith(("/", "http")), asset
            assert client.get(f"/{asset}").status_code == 200
    assert "https://cdn." not in client.get("/static-offline-docs/redoc.standalone.js").text


def test_metrics_speak_the_old_names_and_count_what_happened(client: TestClient) -> None:
    for _ in range(3):
        client.post("/predict", json=A_FLOWER, headers=HEADERS)
    client.post("/predict", json={}, headers=HEADERS)
    client.post("/predict/batch", json={"instances": [A_FLOWER] * 5}, headers=HEADERS)
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    predicted = {labels: value for (name, labels), value in samples.items() if name == "model_predictions_total"}
    assert sum(predicted.values()) == 8
    assert predicted[(("predicted_class", "setosa"),)] >= 3
    assert samples["model_loaded", ()] == 1
    assert samples["api_errors_total", (("endpoint", "/predict"), ("error_type", "invalid_input"))] == 1
    labels = {"format": "json", "model_version": "1", "protocol": "native", "route": "/predict", "status_class": "2xx"}
    assert samples["http_requests_total", tuple(labels.items())] == 3
    assert samples["model_confidence_count", (("predicted_class", "setosa"),)] >= 3
    assert samples["model_rows_per_request_bucket", (("le", "1.0"),)] == 3
    assert samples["model_refused", (("reason", "digest"),)] == 0
    assert samples["http_requests_in_flight", ()] == 1  # the scrape itself


def test_an_unforeseen_error_is_a_bare_500_and_the_next_request_is_answered(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    slot = client.app_state["slot"]
    right = slot.predictor

    class Broken:
        kind = right.kind

        def scores(self, matrix: object) -> object:
            raise RuntimeError("secret of the model")

    slot.predictor = replace(right, backend=Broken())
    answer = client.post("/predict", json=A_FLOWER, headers=HEADERS)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    slot.predictor = right
    assert client.post("/predict", json=A_FLOWER, headers=HEADERS).status_code == 200
