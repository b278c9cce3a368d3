"""What anybody may read tells nothing that was learnt from training rows; and one setting puts it behind the key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import given
from starlette.testclient import TestClient

from serve_app.artifacts.signature import Signature
from serve_app.artifacts.store import Store
from serve_app.http.pages import DOCS, METRICS
from serve_app.protocols import native_schema
from serve_app.protocols.decode import row_decoder
from serve_app.telemetry.collector import MetricsCollector
from tests.support.apps import HEADERS, client_of
from tests.support.models import A_FLOWER, iris, iris_signature, publish_iris
from tests.support.signatures import signatures
from training.reference import reference

READ = sorted({*DOCS, METRICS})
NO_DOCUMENT = (
    "/docs/",
    "/docs/x",
    "http://testserver//docs",
    "/DOCS",
    "/redoc/",
    "/openapi.json/",
    "/%6fpenapi.json/",
    "/metrics/",
    "/./metrics/",
)
TRAINING_FAMILIES = {
    "model_input_out_of_range",
    "model_input_bin",
    "model_input_bin_expected",
    "model_prediction_bin",
    "model_prediction_bin_expected",
    "model_reference_rows",
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a model that has the reference of its training table."""
    X, y = iris()
    signature = iris_signature()
    store = Store(tmp_path)
    publish_iris(store, reference=reference(pd.DataFrame(X, columns=list(signature.names)), y, signature))
    return store


def without_training(signature: Signature) -> Signature:
    """The signature with its contract alone: names, kinds, bounds, categories, classes."""
    return replace(signature, features=tuple(replace(feature, low=None, high=None, example=None) for feature in signature.features))


def numbers_in(document: Any) -> set[float]:
    """Every number in a JSON document, in texts too."""
    if isinstance(document, dict):
        return set[float]().union(*map(numbers_in, document.values()))
    if isinstance(document, list):
        return set[float]().union(*map(numbers_in, document))
    if isinstance(document, str):
        return {float(word) for word in document.split() if word.replace(".", "", 1).isdigit()}
    return {float(document)} if isinstance(document, int | float) and not isinstance(document, bool) else set()


@given(signatures())
def test_the_schema_follows_from_the_contract_alone(signature: Signature) -> None:
    contract = without_training(signature)
    assert native_schema.row(signature) == native_schema.row(contract)
    assert native_schema.rows(signature, max_rows=3) == native_schema.rows(contract, max_rows=3)
    assert native_schema.prediction(signature) == native_schema.prediction(contract)


@given(signatures())
def test_the_example_of_the_schema_is_answered(signature: Signature) -> None:
    body = orjson.dumps(native_schema.example(signature))
    assert row_decoder(signature, unknown="refuse")(body).shape == (1, len(signature.features))


def test_the_openapi_document_has_no_value_of_the_training_table(store: Store) -> None:
    X, _ = iris()
    schemas = client_of(store).get("/openapi.json").json()["components"]["schemas"]
    assert numbers_in([schemas["Row"], schemas["Rows"]["example"]]) == {0.0, 20.0, 10.0}
    assert not np.isin([0.0, 20.0, 10.0], X).any()


def test_the_open_metrics_have_no_series_of_the_training_table_and_rays_port_has_them(store: Store) -> None:
    client = client_of(store)
    client.post("/predict", json={**A_FLOWER, "sepal_length": 19.0}, headers=HEADERS)
    collector: MetricsCollector = client.app.state.collector  # type: ignore[attr-defined]
    text = client.get("/metrics").text
    assert "model_predictions_total{" in text
    assert [name for name in TRAINING_FAMILIES if name in text] == []
    every = {family.name for family in collector.collect()}
    assert every - {family.name for family in collector.collect_public()} == TRAINING_FAMILIES


def statuses(client: TestClient, **headers: str) -> dict[str, int]:
    return {page: client.get(page, headers=headers).status_code for page in READ}


def test_the_pages_are_open_by_default(store: Store) -> None:
    assert statuses(client_of(store)) == dict.fromkeys(READ, 200)


def test_one_setting_puts_the_pages_behind_the_key(store: Store) -> None:
    client = client_of(store, public_pages=False)
    assert statuses(client) == dict.fromkeys(READ, 401)
    assert statuses(client, **{"X-API-Key": "wrong"}) == dict.fromkeys(READ, 403)
    assert statuses(client, **HEADERS) == dict.fromkeys(READ, 200)
    assert statuses(client, Authorization=f"Bearer {HEADERS['X-API-Key']}") == dict.fromkeys(READ, 200)
    for page in READ:
        refusal = client.get(page)
        assert refusal.headers["content-type"] == "application/problem+json"
        assert refusal.headers["www-authenticate"] == "ApiKey"
        assert client.head(page).status_code in (401, 405)
    for path in NO_DOCUMENT:
        assert client.get(path).status_code in (401, 404), path
    for probe in ("/", "/health", "/livez", "/readyz"):
        assert client.get(probe).status_code == 200
    paths = client.get("/openapi.json", headers=HEADERS).json()["paths"]
    assert {"401", "403"} <= set(paths["/metrics"]["get"]["responses"])
    assert paths["/metrics"]["get"]["security"]
