"""The OpenAPI description of the Open Inference Protocol names what the server answers, and its example is answered."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from starlette.testclient import TestClient

from serve_app.artifacts.store import Store
from serve_app.http.routes.open_inference import open_inference_router
from serve_app.protocols.oip_openapi import example_request, open_inference_document
from tests.support.apps import HEADERS, client_of
from tests.support.models import logistic_store
from tests.support.oip import binary, codec_of, tensor
from tests.support.signatures import signatures

OPENAPI = "/v2/openapi.json"
NAMES = {"model_name": "IrisClassifier", "model_version": "1"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def client(store: Store) -> TestClient:
    return client_of(store)


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    reply = client.get(OPENAPI)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = reply.json()
    return found


def check(document: dict[str, Any], operation: dict[str, Any], reply: Any) -> None:
    """The status is one that is documented for the operation, and the body fits its schema."""
    response = operation["responses"][str(reply.status_code)]
    schema = response["content"][reply.headers["content-type"]]["schema"]
    if schema.get("format") != "binary":
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(reply.json())


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    ]


def test_every_route_of_the_protocol_is_described(document: dict[str, Any]) -> None:
    service: Any = SimpleNamespace(slot=None)
    routes = {
        (route.path.replace("{model}", "{model_name}").replace("{version}", "{model_version}"), method.lower())
        for route in open_inference_router(service, model_name="m", public_pages=True).routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    described = {(path, method) for path, method, _ in operations(document)}
    assert routes - {(OPENAPI, "get"), ("/v2/", "get")} == described


def test_every_answer_is_one_that_is_described(client: TestClient, store: Store, tmp_path: Path, document: dict[str, Any]) -> None:
    empty = client_of(Store(tmp_path))
    limited = client_of(store, max_in_flight=0, max_body_bytes=100)
    statuses = set()
    for path, method, operation in operations(document):
        example = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
        contents = [json.dumps(example).encode(), b"{", b" " * 1000] if "requestBody" in operation else [b""]
        for app in (client, empty, limited):
            for names in (NAMES, {**NAMES, "model_version": "9"}, {**NAMES, "model_name": "other"}):
                for content in contents:
                    for headers in (HEADERS, {}, {"X-API-Key": "wrong"}, {**HEADERS, "Content-Encoding": "br"}):
                        url = path.format(**names)
                        reply = app.request(method, url, content=content, headers=headers)
                        check(document, operation, reply)
                        statuses.add(reply.status_code)
    assert statuses == {200, 400, 401, 403, 404, 413, 415, 429, 503}


def test_the_example_of_a_request_is_answered(client: TestClient, document: dict[str, Any]) -> None:
    infer = document["paths"]["/v2/models/{model_name}/infer"]["post"]
    example = infer["requestBody"]["content"]["application/json"]["example"]
    reply = client.post("/v2/models/IrisClassifier/infer", json=example, headers=HEADERS)
    assert reply.status_code == 200
    check(document, infer, reply)
    body, length = binary(tensor([[5.1, 3.5, 1.4, 0.2]]), parameters={"binary_data_output": True})
    reply = client.post("/v2/models/IrisClassifier/infer", content=body, headers={**HEADERS, **length})
    check(document, infer, reply)
    assert set(infer["responses"]["200"]["headers"]) <= {name.title().replace("-Api-", "-API-") for name in reply.headers}


@given(signature=signatures())
def test_the_example_of_any_model_is_a_request_of_one_row(signature: Any) -> None:
    request = example_request(signature)
    assert codec_of(signature).read(json.dumps(request).encode(), []).rows == 1
    assert len(codec_of(signature).decode(json.dumps(request).encode(), []).matrix) == 1


def test_the_description_follows_the_model_and_needs_a_key_where_pages_are_not_public(store: Store, tmp_path: Path) -> None:
    private = client_of(store, public_pages=False, model_name="other")
    assert private.get(OPENAPI).status_code == 401
    document = private.get(OPENAPI, headers=HEADERS).json()
    parameters = document["paths"]["/v2/models/{model_name}/versions/{model_version}"]["parameters"]
    assert [each["schema"]["enum"] for each in parameters] == [["other"], ["1"]]
    assert "401" in document["paths"]["/v2"]["get"]["responses"]
    without = client_of(Store(tmp_path)).get(OPENAPI).json()
    assert "example" not in without["components"]["schemas"]["Request"]


def test_the_server_of_the_description_is_the_path_above_it(store: Store) -> None:
    client = client_of(store, root_path="/api/v1")
    document = client.get(f"/api/v1{OPENAPI}").json()
    assert document["servers"] == [{"url": ".."}]
    assert document == open_inference_document(
        client.app_state["slot"].predictor.signature,
        model_name="IrisClassifier",
        model_version="1",
        version=document["info"]["version"],
        public_pages=True,
    )
