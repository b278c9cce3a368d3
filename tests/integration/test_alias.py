"""The alias in a real registry (SQLite) follows the store only where the registry and the load policy agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest

from serve_app.artifacts.bundle import check_bundle
from serve_app.artifacts.mlflow_version import look_up
from serve_app.artifacts.names import BUNDLE_FOLDER, DIGEST_TAG, JOBLIB, METRICS, SEAL
from serve_app.artifacts.signing import signer, verifier
from serve_app.artifacts.store import Entry, Store
from serve_app.cli import main
from serve_app.errors import StoreError
from tests.support.hostile.signatures import key_pair
from tests.support.models import bundle_manifest
from tests.support.policies import ALLOW_ALL, load_policy
from training.tracking import follow, move_alias

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
        move_alias(client, name, "1")
    return client


def published(store: Store, name: str, version: str, **options: Any) -> Entry:
    files = {JOBLIB: b"a model", METRICS: b"{}"}
    return store.publish(files, bundle_manifest(mlflow_model_name=name, mlflow_model_version=version), **options)


def carried(registry: mlflow.MlflowClient, folder: Path, version: str, **options: Any) -> Entry:
    """A bundle in the run of a new version of ours, as a training elsewhere leaves it; it is in no store of this test."""
    experiment = registry.get_experiment_by_name("other") or registry.get_experiment(
        registry.create_experiment("other", artifact_location=f"file://{folder}/artifacts")
    )
    run = registry.create_run(experiment.experiment_id)
    number = registry.create_model_version(OURS, f"{run.info.artifact_uri}/model", run.info.run_id).version
    files = {JOBLIB: b"another model", METRICS: b"{}"}
    manifest = bundle_manifest(mlflow_model_name=OURS, mlflow_model_version=str(number))
    entry = Store(folder / "elsewhere").publish(files, manifest, version=int(number), **options)
    assert str(number) == version
    registry.log_artifacts(run.info.run_id, str(entry.folder), BUNDLE_FOLDER)
    registry.set_tag(run.info.run_id, DIGEST_TAG, entry.digest)
    registry.set_model_version_tag(OURS, version, DIGEST_TAG, entry.digest)
    return entry


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


def test_the_champion_is_no_challenger_any_more_and_the_one_before_is_named(registry: mlflow.MlflowClient) -> None:
    registry.set_registered_model_alias(OURS, "challenger", "2")
    move_alias(registry, OURS, "2")
    assert aliases(registry) == {"champion": "2", "previous": "1"}
    registry.set_registered_model_alias(OURS, "challenger", "1")
    move_alias(registry, OURS, "2")
    assert aliases(registry)["challenger"] == "1"


def aliases(registry: mlflow.MlflowClient) -> dict[str, str]:
    return {alias: str(version) for alias, version in registry.get_registered_model(OURS).aliases.items()}


def stages(registry: mlflow.MlflowClient, name: str) -> list[str]:
    return [registry.get_model_version(name, version).current_stage for version in ("1", "2")]


def test_stages_follow_the_champion_where_they_are_in_use(registry: mlflow.MlflowClient) -> None:
    registry.transition_model_version_stage(OURS, "1", "Production")
    registry.transition_model_version_stage(OURS, "2", "Staging")
    for name in (OURS, THEIRS):
        move_alias(registry, name, "2")
    assert (stages(registry, OURS), stages(registry, THEIRS)) == (["Archived", "Production"], ["None", "None"])


def test_a_version_of_mlflow_is_promoted_into_a_store_that_does_not_hold_it(
    store: Store, registry: mlflow.MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_pair(tmp_path, "trainer")
    own = published(store, OURS, "2")
    entry = carried(registry, tmp_path, "3", sign=signer(private))
    registry.set_registered_model_alias(OURS, "challenger", "3")
    options = ["--model-dir", str(store.root), "--tracking-uri", registry.tracking_uri, "--verify-key", str(public)]
    assert main(["promote", f"models:/{OURS}@challenger", *options]) == 0
    assert "version 3" in capsys.readouterr().out
    assert store.pointer() == f"bundles/3-{entry.digest}"
    assert {held.version for held in store.entries()} == {own.version, 3}
    assert (store.root / "bundles" / f"3-{entry.digest}" / SEAL).is_file()
    for held in store.entries():
        check_bundle(held.folder)
    assert aliases(registry) == {"champion": "3", "previous": "1"}
    assert main(["promote", f"models:/{OURS}/3", *options]) == 0


@pytest.mark.parametrize("way", ["variable", "flag"])
@pytest.mark.parametrize("command", [["promote", "2"], ["rollback"]], ids=lambda words: words[0])
def test_promote_and_rollback_move_the_alias_that_replicas_follow_and_no_other(
    store: Store, registry: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, command: list[str], way: str
) -> None:
    for version in ("2", "1"):
        entry = published(store, OURS, version)
        registry.set_model_version_tag(OURS, version, DIGEST_TAG, entry.digest)
    registry.set_registered_model_alias(OURS, "live", "1")
    registry.set_registered_model_alias(OURS, "challenger", "2")
    versions = {str(held.manifest.mlflow_model_version): held.version for held in store.entries() if held.manifest}
    words = [*command[:1], *(str(versions[number]) for number in command[1:])]
    options = ["--model-dir", str(store.root), "--tracking-uri", registry.tracking_uri]
    if way == "variable":
        monkeypatch.setenv("IRIS_MODEL_ALIAS", "live")
    else:
        options += ["--model-alias", "live"]
    assert main([*words, *options]) == 0
    assert aliases(registry) == {"champion": "1", "live": "2", "challenger": "2"}
    assert look_up(registry, OURS, "live") == look_up(registry, OURS, "challenger")


@pytest.mark.parametrize("stage", ["Production", "staging"])
def test_a_stage_takes_the_place_of_an_alias_that_does_not_exist(registry: mlflow.MlflowClient, stage: str) -> None:
    registry.transition_model_version_stage(OURS, "1", stage.capitalize())
    move_alias(registry, OURS, "2", stage)
    assert stages(registry, OURS) == ["Archived", stage.capitalize()]
    assert aliases(registry) == {"champion": "1"}
    found = look_up(registry, OURS, stage)
    assert found is not None
    assert found.version == "2"


@pytest.mark.parametrize(
    ("address", "code", "fix"),
    [
        (f"models:/{OURS}/2", 2, "iris-api adopt"),
        (f"models:/{OURS}@chalenger", 2, "champion"),
        (f"models:/{OURS}", 2, f"models:/{OURS}@champion"),
        ("two", 2, "models:/NAME@ALIAS"),
    ],
)
def test_what_cannot_be_promoted_leaves_the_store_and_names_the_fix(
    store: Store, registry: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str], address: str, code: int, fix: str
) -> None:
    published(store, OURS, "1")
    before = store.pointer()
    assert main(["promote", address, "--model-dir", str(store.root), "--tracking-uri", registry.tracking_uri]) == code
    assert fix in capsys.readouterr().err
    assert (store.pointer(), len(store.entries())) == (before, 1)


def test_a_bundle_of_a_version_that_the_store_holds_otherwise_is_not_brought(
    store: Store, registry: mlflow.MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried(registry, tmp_path, "3")
    own = store.publish({JOBLIB: b"a model", METRICS: b"{}"}, bundle_manifest(), version=3)
    assert main(["promote", f"models:/{OURS}/3", "--model-dir", str(store.root), "--tracking-uri", registry.tracking_uri]) == 1
    assert "version 3" in capsys.readouterr().err
    assert store.pointer() == f"bundles/3-{own.digest}"
