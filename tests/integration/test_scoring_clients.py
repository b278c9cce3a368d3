"""Clients of other scoring servers against the application on real Ray Serve, which runs in production without a key."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pandas as pd
import pytest

from tests.support.models import A_FLOWER, iris, logistic, logistic_store
from tests.support.server import Server, serving

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns at import, and uses what pandas will change

VERTEX = {
    "AIP_HEALTH_ROUTE": "/v1/endpoints/1/deployedModels/2",
    "AIP_PREDICT_ROUTE": "/v1/endpoints/1/deployedModels/2:predict",
}
FLOWER = json.dumps(A_FLOWER).encode() + b"\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = logistic_store(tmp_path_factory.mktemp("models"))
    settings: Any = {"ENVIRONMENT": "production", "API_KEY": "", "IRIS_ALLOW_ANONYMOUS": "true", **VERTEX}
    with serving(store.root, tmp_path_factory.mktemp("server"), ready="/ping", **settings) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Any:
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    address = urlsplit(server.url)
    return ScoringServerClient(address.hostname, address.port)


def flowers() -> pd.DataFrame:
    return pd.DataFrame(iris()[0], columns=list(A_FLOWER))


def test_the_client_of_mlflow_finds_a_server_that_is_ready(client: Any) -> None:
    client.wait_server_ready(timeout=10)
    client.ping()
    assert client.get_version()


def test_the_client_of_mlflow_gets_the_predictions_of_the_estimator(client: Any) -> None:
    expected = logistic().predict(iris()[0]).tolist()
    table = flowers()
    for data in (table, table[list(A_FLOWER)[::-1]], iris()[0], iris()[0].tolist()):  # a dict fails in the client itself
        assert client.invoke(data).get_predictions()[0].tolist() == expected
    assert client.invoke(table, params={"temperature": 0.5}).get_predictions()[0].tolist() == expected


def test_the_client_of_mlflow_reports_a_refusal(client: Any) -> None:
    with pytest.raises(Exception, match=r"error code 400.*INVALID_PARAMETER_VALUE"):
        client.invoke(flowers().assign(sepal_length="long"))


def test_an_input_example_of_mlflow_is_a_request(server: Server) -> None:
    from mlflow.models import convert_input_example_to_serving_input

    body = convert_input_example_to_serving_input(flowers().head(3))
    answer = httpx2.post(f"{server.url}/invocations", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["predictions"] == ["setosa"] * 3


def test_the_requests_of_sagemaker_vertex_and_kserve_are_answered(server: Server) -> None:
    rows = iris()[0][::50].tolist()
    expected = ["setosa", "versicolor", "virginica"]
    csv = "\n".join(",".join(map(str, row)) for row in rows)
    sagemaker = httpx2.post(f"{server.url}/invocations", content=csv, headers={"Content-Type": "text/csv", "Accept": "text/csv"})
    assert [line.split(",")[0] for line in sagemaker.text.splitlines()[1:]] == expected
    vertex = httpx2.post(server.url + VERTEX["AIP_PREDICT_ROUTE"], json={"instances": rows})
    assert vertex.json()["predictions"] == expected
    assert httpx2.get(server.url + VERTEX["AIP_HEALTH_ROUTE"]).status_code == 200
    kserve = httpx2.post(f"{server.url}/v1/models/IrisClassifier:predict", json={"instances": rows})
    assert kserve.json()["predictions"] == expected
    assert httpx2.get(f"{server.url}/v1/models/IrisClassifier").json() == {"name": "IrisClassifier", "ready": True}


def test_a_row_is_answered_through_the_proxy_before_the_next_one_is_sent(server: Server) -> None:
    address = urlsplit(server.url)
    head = (
        b"POST /predict/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
        b"Accept: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(head)
        response = http.client.HTTPResponse(connection, method="POST")
        for number in range(3):
            connection.sendall(b"%x\r\n%b\r\n" % (len(FLOWER), FLOWER))
            if not number:
                response.begin()
                assert (response.status, response.headers["content-type"]) == (200, "application/x-ndjson")
            assert json.loads(response.readline())["prediction"] == "setosa"
        connection.sendall(b"0\r\n\r\n")
        assert response.read() == b""


def test_a_client_that_sends_all_before_it_reads_gets_every_answer(server: Server) -> None:
    headers = {"Content-Type": "application/x-ndjson", "Accept": "application/x-ndjson"}
    answer = httpx2.post(f"{server.url}/predict/batch", content=FLOWER * 100_000, headers=headers, timeout=60)
    assert answer.status_code == 200
    assert answer.text.count("\n") == 100_000
