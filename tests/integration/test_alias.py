"""The alias `champion` in a real registry (SQLite) follows the store only where the registry and the load policy agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest

from serve_app.artifacts.names import DIGEST_TAG, JOBLIB, METRICS
from serve_app.artifacts.signing import signer, verifier
from serve_app.artifacts.store import Entry, Store
from serve_app.errors import StoreError
from tests.support.hostile.signatures import key_pair
from tests.support.models import bundle_manifest
from tests.support.policies import ALLOW_ALL, load_policy
from training.tracking import follow, set_champion

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow uses what SQLAlchemy will remove

OURS, THEIRS = "IrisClassifier", "Fraud"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def registry(tmp_path: Path) -> mlflow.MlflowClient:
    """A registry with two models of two versions each; the first ones are served."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    for name in (OURS, THEIRS):
        client.create_registered_model(name)
        for _ in range(2):
            client.create_model_version(name, source="s3://bucket/model")
        set_champion(client, name, "1")
    return client


def published(store: Store, name: str, version: str, **options: Any) -> Entry:
    files = {JOBLIB: b"a model", METRICS: b"{}"}
    return store.publish(files, bundle_manifest(mlflow_model_name=name, mlflow_model_version=version), **options)


def champion(registry: mlflow.MlflowClient, name: str = OURS) -> str:
    return str(registry.get_model_version_by_alias(name, "champion").version)


def test_the_version_with_the_digest_of_the_served_bundle_becomes_champion(store: Store, registry: mlflow.MlflowClient) -> None:
    entry = published(store, OURS, "2")
    registry.set_model_version_tag(OURS, "2", DIGEST_TAG, entry.digest)
    assert follow(registry.tracking_uri, store, OURS, ALLOW_ALL) == "2"
    assert champion(registry) == "2"


def test_a_manifest_that_names_another_registered_model_moves_nothing(store: Store, registry: mlflow.MlflowClient) -> None:
    entry = published(store, THEIRS, "2")
    registry.set_model_version_tag(THEIRS, "2", DIGEST_TAG, entry.digest)
    with pytest.raises(StoreError, match=THEIRS):
        follow(registry.tracking_uri, store, OURS, ALLOW_ALL)
    assert (champion(registry), champion(registry, THEIRS)) == ("1", "1")


@pytest.mark.parametrize("digest", [None, "0" * 64])
def test_a_manifest_that_names_a_version_of_another_digest_moves_nothing(
    store: Store, registry: mlflow.MlflowClient, digest: str | None
) -> None:
    published(store, OURS, "2")
    if digest is not None:
        registry.set_model_version_tag(OURS, "2", DIGEST_TAG, digest)
    with pytest.raises(StoreError, match="digest"):
        follow(registry.tracking_uri, store, OURS, ALLOW_ALL)
    assert champion(registry) == "1"


def test_a_bundle_that_the_policy_refuses_moves_nothing(store: Store, registry: mlflow.MlflowClient, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "trainer")
    strict = load_policy(verify=verifier(public))
    entry = published(store, OURS, "2")
    registry.set_model_version_tag(OURS, "2", DIGEST_TAG, entry.digest)
    for policy in (strict, load_policy(allow_joblib=False)):
        with pytest.raises(StoreError):
            follow(registry.tracking_uri, store, OURS, policy)
    assert champion(registry) == "1"

    entry = published(store, OURS, "2", sign=signer(private))
    registry.set_model_version_tag(OURS, "2", DIGEST_TAG, entry.digest)
    assert follow(registry.tracking_uri, store, OURS, strict) == "2"


def test_a_bundle_without_a_version_in_mlflow_moves_nothing(store: Store, registry: mlflow.MlflowClient) -> None:
    assert follow(registry.tracking_uri, store, OURS, ALLOW_ALL) is None
    store.publish({JOBLIB: b"a model", METRICS: b"{}"}, bundle_manifest())
    assert follow(registry.tracking_uri, store, OURS, ALLOW_ALL) is None
    assert champion(registry) == "1"
