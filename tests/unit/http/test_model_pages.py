"""`/model`, `/model/info` and the OpenAPI document follow the model in use."""

from __future__ import annotations

from pathlib import Path

from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.protocols import native_schema
from tests.support.apps import HEADERS, client_of
from tests.support.models import METRICS_OF, forest, logistic, publish_iris, write_legacy


def test_info_has_the_fields_of_old(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, forest(), model_type="RandomForestClassifier", n_samples=150)
    info = client_of(store).get("/model/info", headers=HEADERS).json()
    assert info == {
        "model_type": "RandomForestClassifier",
        "n_features": 4,
        "n_samples": 150,
        "feature_names": ["sepal_length", "sepal_width", "petal_length", "petal_width"],
        "target_names": ["setosa", "versicolor", "virginica"],
        **METRICS_OF,
    }


def test_the_three_files_of_the_system_of_old_are_served_as_they_are(tmp_path: Path) -> None:
    write_legacy(tmp_path)
    client = client_of(Store(tmp_path))
    answer = client.post(
        "/predict", json={"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}, headers=HEADERS
    )
    assert answer.json()["prediction"] == "setosa"
    assert answer.headers["x-model-version"] == "7"
    assert client.get("/model", headers=HEADERS).json()["source"] == "plain"


def test_the_etag_is_the_digest_and_spares_a_second_reading(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = publish_iris(store, logistic())
    client = client_of(store)
    first = client.get("/model", headers=HEADERS)
    assert first.headers["etag"] == f'"{entry.digest}"'
    assert first.json()["digest"] == entry.digest
    again = client.get("/model", headers={**HEADERS, "If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for other in (f'"another", W/{first.headers["etag"]}', "*"):
        assert client.get("/model", headers={**HEADERS, "If-None-Match": other}).status_code == 304
    publish_iris(store, forest())
    client.app_state["slot"].refresh()
    assert client.get("/model", headers={**HEADERS, "If-None-Match": first.headers["etag"]}).json()["version"] == "2"


def test_a_refused_candidate_is_visible_and_the_old_model_answers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, logistic())
    client = client_of(store)
    etag = client.get("/model", headers=HEADERS).headers["etag"]
    entry = publish_iris(store, forest())
    (entry.folder / "model.joblib").write_bytes(b"something else")
    client.app_state["slot"].refresh()
    seen = client.get("/model", headers={**HEADERS, "If-None-Match": etag})
    assert seen.status_code == 200
    assert seen.json()["version"] == "1"
    assert seen.json()["refused"]["reason"] == "digest"
    assert seen.json()["refused"]["candidate"] == entry.folder.name
    assert 'model_refused{reason="digest"} 1.0' in client.get("/metrics").text


def test_the_schema_follows_the_signature_and_its_example_is_answered(tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish_iris(store, logistic())
    client = client_of(store)
    document = client.get("/openapi.json").json()
    row = document["components"]["schemas"]["Row"]
    assert row["required"] == ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    assert (row["properties"]["sepal_length"]["minimum"], row["properties"]["sepal_length"]["maximum"]) == (0, 20)
    assert document["components"]["schemas"]["Prediction"]["properties"]["prediction"]["enum"] == [
        "setosa",
        "versicolor",
        "virginica",
    ]
    assert client.post("/predict", json=row["example"], headers=HEADERS).status_code == 200
    many = document["components"]["schemas"]["Rows"]["example"]
    assert client.post("/predict/batch", json=many, headers=HEADERS).status_code == 200
    assert set(document["paths"]) == {
        "/predict",
        "/predict/batch",
        "/model/info",
        "/model",
        "/",
        "/health",
        "/livez",
        "/readyz",
        "/metrics",
    }


def test_kinds_of_features_are_told_in_the_schema() -> None:
    signature = Signature(
        (
            Feature("size", low=0.5, high=9.0, nullable=True),
            Feature("colour", "category", categories=("blue", "red")),
            Feature("old", "boolean"),
        ),
        "regression",
    )
    row = native_schema.row(signature)
    assert row["properties"]["size"]["type"] == ["number", "null"]
    assert row["properties"]["colour"] == {"type": "string", "enum": ["blue", "red"]}
    assert row["properties"]["old"] == {"type": "boolean"}
    assert row["required"] == ["colour", "old"]
