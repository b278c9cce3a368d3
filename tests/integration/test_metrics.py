"""Metrics of a running application: what each replica counts arrives on Ray's port, and `make monitoring` finds it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.operator_rules import runbook_base_url
from serve_app.artifacts.store import Store
from serve_app.rayserve.scrape_targets import targets_file
from tests.support.models import A_FLOWER, iris, iris_signature, publish_iris
from tests.support.monitoring import Prometheus
from tests.support.server import HEADERS, ROOT, Server, free_port, serving
from tests.support.waiting import until
from training.reference import reference

REQUESTS = 60
HAPROXY = free_port()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    X, y = iris()
    signature = iris_signature()
    store = Store(tmp_path_factory.mktemp("models"))
    drift_reference = reference(pd.DataFrame(X, columns=list(signature.names)), y, signature)
    publish_iris(store, onnx=True, reference=drift_reference)
    folder = tmp_path_factory.mktemp("server")
    with serving(store.root, folder, replicas=2, RAY_SERVE_HAPROXY_METRICS_PORT=str(HAPROXY)) as server:
        for _ in range(REQUESTS):  # each on a connection of its own, so that both replicas get some
            assert httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers=HEADERS).status_code == 200
        assert httpx2.post(f"{server.url}/predict", json={}, headers=HEADERS).status_code == 422
        yield server


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def exported(server: Server) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples of ours on Ray's port by name, without Ray's prefix."""
    (entry,) = json.loads(targets_file(port_of(server)).read_text())
    text = httpx2.get(f"http://{entry['targets'][0]}/metrics").text
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name.removeprefix("ray_"), []).append((sample.labels, sample.value))
    return samples


def test_rays_port_has_the_metrics_of_every_replica(server: Server) -> None:
    until(lambda: total(exported(server), "model_predictions_total") == REQUESTS, seconds=90, every=1, what="all predictions")
    # The second replica may start after the first one has answered everything.
    until(lambda: len(replicas(exported(server))) == 2, seconds=90, every=1, what="the metrics of both replicas")
    samples = exported(server)
    own = {
        sample.name
        for family in text_string_to_metric_families(httpx2.get(f"{server.url}/metrics").text)
        for sample in family.samples
    }
    assert own <= set(samples)
    buckets = samples["http_request_duration_seconds_bucket"]
    answered = [(labels, value) for labels, value in buckets if (labels["route"], labels["status_class"]) == ("/predict", "2xx")]
    assert sum(value for labels, value in answered if labels["le"] == "+Inf") == REQUESTS
    refused = [(labels, value) for labels, value in samples["http_requests_total"] if labels["status_class"] == "4xx"]
    assert sum(value for labels, value in refused if labels["route"] == "/predict") == 1
    never = [(labels, value) for labels, value in samples["http_requests_total"] if labels["status_class"] == "5xx"]
    assert {value for _, value in never} == {0.0}
    assert total(samples, "model_prediction_bin_total") == REQUESTS


def replicas(samples: dict[str, list[tuple[dict[str, str], float]]]) -> set[str]:
    return {labels["replica"] for labels, _ in samples.get("model_loaded", [])}


def total(samples: dict[str, list[tuple[dict[str, str], float]]], name: str) -> float:
    return sum(value for _, value in samples.get(name, []))


def test_a_prometheus_beside_it_computes_the_rules_of_the_cluster(server: Server, tmp_path: Path) -> None:
    if shutil.which(os.environ.get("PROMETHEUS", "prometheus")) is None:
        pytest.fail("prometheus is not in PATH: apt-get install prometheus", pytrace=False)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "monitoring.local_prometheus",
        "--port",
        str(port),
        "--api",
        str(port_of(server)),
        "--data",
        str(tmp_path),
    ]
    environment = {**os.environ, "RAY_SERVE_HAPROXY_METRICS_PORT": str(HAPROXY)}
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")

    def answered(expression: str) -> list[object]:
        assert process.poll() is None, (tmp_path / "output").read_text()
        try:
            return [sample["value"][1] for sample in prometheus.query(expression)]
        except OSError:
            return []

    try:
        until(lambda: answered("iris:replicas:count") == ["2"], seconds=90, every=1, what="both replicas in Prometheus")
        until(lambda: answered("sum(up)") == answered("count(up)") == ["3"], seconds=60, every=1, what="all targets up")
        assert answered("sum(model_predictions_total)") == [str(REQUESTS)]
        until(lambda: answered("iris:versions_in_use:count") == ["1"], seconds=60, every=1, what="the version in use")
        until(lambda: prometheus.alerts().get("IrisApiWatchdog") == "firing", seconds=60, every=1, what="the watchdog")
        annotations = {
            alert["labels"]["alertname"]: alert["annotations"] for alert in prometheus.get("/api/v1/alerts")["data"]["alerts"]
        }
        assert annotations["IrisApiWatchdog"]["runbook_url"] == f"{runbook_base_url()}#irisapiwatchdog"
    finally:
        process.terminate()
        process.wait(30)


def test_a_missing_prometheus_is_an_error_message_without_a_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS": "no-such-program"}
    command = [sys.executable, "-m", "monitoring.local_prometheus", "--data", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert "Traceback" not in process.stderr


def test_predictions_are_answered_before_serves_own_request_handling_whatever_their_headers(server: Server) -> None:
    """Serve counts what its own request wrapper handles: pages like /health, and no prediction."""
    body = json.dumps(A_FLOWER).encode()

    def post(content: bytes = body, **more: str) -> None:
        headers = {**HEADERS, "Content-Type": "application/json", **more}
        assert httpx2.post(f"{server.url}/predict", content=content, headers=headers).status_code == 200

    def counts() -> dict[str, float]:
        """Predictions as the collector counts them and as Serve does, and everything that Serve counts."""
        samples = exported(server)
        served = samples.get("serve_num_http_requests_total", [])
        own = [value for labels, value in samples["http_requests_total"] if labels["route"] == "/predict"]
        predictions = sum(value for labels, value in served if labels["route"] == "/predict")
        return {"own": sum(own), "serve": predictions, "serve_all": sum(value for _, value in served)}

    before = counts()

    def stable() -> bool:
        nonlocal before
        last, before = before, counts()
        return before == last

    until(stable, seconds=60, every=5, what="the counts of the requests before")
    for _ in range(REQUESTS):
        post()
    post(Origin="https://elsewhere.example")
    post(gzip.compress(body), **{"Content-Encoding": "gzip"})
    for _ in range(3):
        assert httpx2.get(f"{server.url}/model/info", headers=HEADERS).status_code == 200
    until(lambda: counts()["own"] == before["own"] + REQUESTS + 2, seconds=60, every=1, what="all predictions in the collector")
    until(lambda: counts()["serve_all"] >= before["serve_all"] + 3, seconds=60, every=1, what="the other requests in Serve's count")
    assert counts()["serve"] == before["serve"] == 0
