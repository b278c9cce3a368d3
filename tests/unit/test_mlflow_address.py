from __future__ import annotations

import pytest

from serve_app.mlflow_address import kind_of, refusal


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("http://mlflow-server-service:5000", "server"),
        ("HTTPS://mlflow.example", "server"),
        ("databricks", "server"),
        ("databricks://profile", "server"),
        ("gs://bucket/mlruns", "bucket"),
        ("s3://bucket", "bucket"),
        ("sqlite:///mlflow.db", "database"),
        ("postgresql+psycopg://u:p@host/db", "database"),
        ("file:///app/mlruns", "folder"),
        ("./mlruns", "folder"),
        ("/app/mlruns", "folder"),
        ("mlflow-server-service:5000", "unknown"),
        ("foo://bar", "unknown"),
    ],
)
def test_an_address_is_of_one_kind(uri: str, kind: str) -> None:
    assert kind_of(uri) == kind
    assert (refusal(uri) is None) == (kind == "server")


@pytest.mark.parametrize(
    ("uri", "fix"),
    [
        ("gs://bucket/mlruns", "make k8s-deploy OVERLAY=gcs"),
        ("s3://bucket/mlruns", "--artifacts-destination s3://bucket/mlruns"),
        ("file:///app/mlruns", "mlflow migrate-filestore --source /app/mlruns --target sqlite:///"),
        ("./mlruns", "mlflow migrate-filestore --source ./mlruns --target sqlite:///"),
        ("sqlite:///mlflow.db", "mlflow server --backend-store-uri sqlite:///mlflow.db"),
        ("mlflow-server-service:5000", "http://HOST:PORT"),
    ],
)
def test_a_refusal_is_one_sentence_with_the_address_and_the_fix(uri: str, fix: str) -> None:
    sentence = refusal(uri)
    assert sentence is not None
    assert uri in sentence
    assert fix in sentence
    assert "\n" not in sentence


def test_a_refusal_repeats_no_password() -> None:
    sentence = refusal("postgresql://somebody:secret-4711@database/mlflow")
    assert sentence is not None
    assert "database/mlflow" in sentence
    assert "secret-4711" not in sentence
    assert "somebody" not in sentence
