"""The alias in a real MLflow server decides what is served: followed, copied, and served from the copy while MLflow is down."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from starlette.testclient import TestClient

from serve_app.artifacts.bundle import check_bundle
from serve_app.artifacts.mlflow_mirror import RECORD, Mirror
from serve_app.artifacts.mlflow_source import MlflowSource
from serve_app.artifacts.names import BUNDLE_FOLDER, DIGEST_TAG, MANIFEST, SEAL
from serve_app.artifacts.signing import Sign, signer, verifier
from serve_app.artifacts.store import Entry, Store
from serve_app.http.app import create_app
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.slot import Slot
from serve_app.inference.sources import AliasSource, ModelSource
from tests.support.apps import HEADERS, KEY, http_options
from tests.support.hostile.signatures import key_pair
from tests.support.mlflow_server import mlflow_server
from tests.support.models import A_FLOWER, bundle_files, bundle_manifest, forest, iris, logistic
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL, load_policy
from tests.support.server import free_port
from training.tracking import move_alias

NAME = "IrisClassifier"
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns of itself


@dataclass
class Registry:
    """A registered model in MLflow, with versions that carry bundles as training leaves them."""

    uri: str
    name: str
    aside: Path

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(tracking_uri=self.uri)

    def register(self, estimator: Any, *, sign: Sign | None = None, **keys: Any) -> Entry:
        """A new version with a bundle; the entry is the one that the training's store would have."""
        client = self.client
        self._create()
        run = client.create_run(self._experiment())
        client.log_artifact(run.info.run_id, __file__, "model")
        number = client.create_model_version(self.name, f"{run.info.artifact_uri}/model", run.info.run_id).version
        store = Store(self.aside / str(number))
        manifest = bundle_manifest(mlflow_model_name=self.name, mlflow_model_version=str(number), **keys)
        entry = store.publish(bundle_files(estimator, onnx=True), manifest, version=int(number), sign=sign)
        client.log_artifacts(run.info.run_id, str(entry.folder), BUNDLE_FOLDER)
        client.set_tag(run.info.run_id, DIGEST_TAG, entry.digest)
        client.set_model_version_tag(self.name, number, DIGEST_TAG, entry.digest)
        return entry

    def point(self, version: int | str, alias: str = "champion") -> None:
        self.client.set_registered_model_alias(self.name, alias, str(version))

    def _create(self) -> None:
        if not self.client.search_registered_models(filter_string=f"name = '{self.name}'"):
            self.client.create_registered_model(self.name)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.name)
        return str(self.client.create_experiment(self.name) if found is None else found.experiment_id)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def registry(tracking: str, tmp_path: Path, request: pytest.FixtureRequest) -> Registry:
    return Registry(tracking, f"{NAME} {abs(hash(request.node.name))}", tmp_path / "aside")


@dataclass
class Replica:
    """A slot as a replica has it, with what it was made of."""

    slot: Slot
    source: AliasSource

    def refresh(self) -> bool:
        """Refresh and wait for the copy."""
        swapped = self.slot.refresh()
        assert self.source.wait(60)
        return swapped

    @property
    def digest(self) -> str | None:
        return self.slot.predictor.digest if self.slot.predictor else None


def replica(
    registry: Registry,
    folder: Path,
    *,
    uri: str | None = None,
    decides: ModelSource = "mlflow",
    policy: LoadPolicy = ALLOW_ALL,
    alias: str = "champion",
) -> Replica:
    store = Store(folder / "models")
    followed = MlflowSource(uri or registry.uri, model_name=registry.name, alias=alias, legacy=None, poll_seconds=0)
    source = AliasSource(store, followed, Mirror(store, folder / "cache", name=registry.name, alias=alias), decides=decides)
    return Replica(Slot(source, policy=policy), source)


def own_model(folder: Path, version: int) -> Entry:
    """A model that the store serves and MLflow does not know."""
    return Store(folder / "models").publish(bundle_files(forest(seed=5)), bundle_manifest(note="own"), version=version)


def down() -> str:
    return f"http://127.0.0.1:{free_port()}"


def folders(store: Path) -> set[str]:
    return {path.name for path in (store / "bundles").glob("*") if not path.name.startswith(".")}


def test_moving_the_alias_moves_what_is_served_and_the_pointer_of_a_store_that_can_be_written(
    registry: Registry, tmp_path: Path
) -> None:
    first, second = registry.register(forest()), registry.register(logistic())
    registry.point(1)
    one = replica(registry, tmp_path)
    own_model(tmp_path, 9)
    assert one.refresh(), one.slot.problem
    assert (one.digest, one.slot.model_source) == (first.digest, "mlflow")
    assert one.slot.predictor is not None
    assert one.slot.predictor.bundle.source == "mlflow"
    registry.point(2)
    assert one.refresh()
    assert one.digest == second.digest
    registry.point(1)
    assert one.refresh()
    store = Store(tmp_path / "models")
    assert store.pointer() == f"bundles/1-{first.digest}"
    assert {entry.version for entry in store.entries()} == {1, 2, 9}
    for entry in store.entries():
        check_bundle(entry.folder)
    assert not one.refresh()
    assert not (tmp_path / "cache").exists()


def test_a_replica_that_starts_while_mlflow_is_down_serves_the_copy(registry: Registry, tmp_path: Path) -> None:
    entry = registry.register(forest())
    registry.point(1)
    assert replica(registry, tmp_path).refresh()
    late = replica(registry, tmp_path, uri=down())
    assert late.refresh(), late.slot.problem
    assert (late.digest, late.slot.registry_problem is None) == (entry.digest, False)
    assert late.slot.predictor is not None
    assert b"setosa" in answer_row(late.slot.predictor, str(A_FLOWER).replace("'", '"').encode())
    assert not late.refresh()


def test_a_read_only_store_is_left_alone_and_the_copy_is_kept_on_this_machine(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_model(tmp_path, 7)
    monkeypatch.setattr(Mirror, "_writes_store", lambda self: False)
    before = sorted(path.name for path in (tmp_path / "models").rglob("*"))
    entry = registry.register(forest())
    registry.point(1)
    assert replica(registry, tmp_path).refresh()
    assert sorted(path.name for path in (tmp_path / "models").rglob("*")) == before
    assert folders(tmp_path / "cache") == {f"1-{entry.digest}"}
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    late = replica(registry, tmp_path, uri=down())
    assert late.refresh()
    assert late.digest == entry.digest != own.digest


def test_a_bundle_that_the_store_holds_is_not_fetched_again(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = registry.register(forest())
    registry.point(1)
    shutil.copytree(entry.folder.parents[1], tmp_path / "models", symlinks=True)
    monkeypatch.setattr("serve_app.artifacts.mlflow_source.downloading", lambda *_: pytest.fail("fetched"))
    one = replica(registry, tmp_path)
    assert one.refresh(), one.slot.problem
    assert one.digest == entry.digest
    assert (tmp_path / "models" / RECORD).is_file()


def test_a_copy_in_a_folder_that_others_can_write_is_not_served(registry: Registry, tmp_path: Path) -> None:
    registry.register(forest())
    registry.point(1)
    (tmp_path / "models").write_text("no folder, so no store")
    assert replica(registry, tmp_path).refresh()
    (tmp_path / "cache").chmod(0o777)
    late = replica(registry, tmp_path, uri=down())
    assert not late.refresh()
    assert late.slot.predictor is None
    (tmp_path / "cache").chmod(0o700)
    assert replica(registry, tmp_path, uri=down()).refresh()


def test_a_damaged_copy_is_fetched_again(registry: Registry, tmp_path: Path) -> None:
    entry = registry.register(forest())
    registry.point(1)
    assert replica(registry, tmp_path).refresh()
    (tmp_path / "models" / "bundles" / f"1-{entry.digest}" / MANIFEST).unlink()
    again = replica(registry, tmp_path)
    assert again.refresh(), again.slot.problem
    assert again.digest == entry.digest


def test_the_seal_travels_with_the_copy_and_an_unsigned_version_is_refused_until_the_alias_moves(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    private, public = key_pair(tmp_path, "trainer")
    signed = registry.register(forest(), sign=signer(private))
    registry.register(logistic())
    registry.point(1)
    policy = load_policy(verify=verifier(public))
    one = replica(registry, tmp_path, policy=policy)
    assert one.refresh(), one.slot.problem
    assert (tmp_path / "models" / "bundles" / f"1-{signed.digest}" / SEAL).is_file()
    registry.point(2)
    caplog.set_level(logging.ERROR)
    for _ in range(3):
        assert not one.refresh()
    assert one.slot.refusal is not None
    assert (one.slot.refusal.reason, one.digest) == ("unsigned", signed.digest)
    assert sum(record.getMessage() == "model refused" for record in caplog.records) == 1
    registry.point(1)
    assert not one.refresh()
    assert one.slot.refusal is None
    late = replica(registry, tmp_path, uri=down(), policy=policy)
    assert late.refresh()
    assert late.digest == signed.digest


def test_another_bundle_of_the_same_version_in_the_store_stays(registry: Registry, tmp_path: Path) -> None:
    own = own_model(tmp_path, 1)
    entry = registry.register(forest())
    registry.point(1)
    one = replica(registry, tmp_path)
    assert one.refresh(), one.slot.problem
    assert Store(tmp_path / "models").pointer() == f"bundles/1-{own.digest}"
    assert folders(tmp_path / "cache") == {f"1-{entry.digest}"}
    late = replica(registry, tmp_path, uri=down())
    assert late.refresh()
    assert late.digest == entry.digest


def test_an_alias_that_is_gone_or_never_was_leaves_what_is_served(registry: Registry, tmp_path: Path) -> None:
    own = own_model(tmp_path, 5)
    one = replica(registry, tmp_path)
    assert one.refresh()
    assert (one.digest, one.slot.registry_problem) == (own.digest, "MLflow does not know the alias")
    entry = registry.register(forest())
    registry.point(1)
    assert one.refresh()
    registry.client.delete_registered_model_alias(registry.name, "champion")
    assert not one.refresh()
    assert one.digest == entry.digest


def test_the_newest_of_pointer_and_alias_is_served(registry: Registry, tmp_path: Path) -> None:
    entry = registry.register(forest())
    registry.point(1)
    one = replica(registry, tmp_path, decides="newest")
    assert one.refresh(), one.slot.problem
    assert one.digest == entry.digest
    own = own_model(tmp_path, 5)
    assert one.refresh()
    assert one.digest == own.digest
    newer = registry.register(logistic(), note="newer than the store's")
    registry.point(2)
    assert one.refresh()
    assert one.digest == newer.digest
    Store(tmp_path / "models").promote(5)
    assert one.refresh()
    assert one.digest == own.digest
    late = replica(registry, tmp_path, uri=down(), decides="newest")
    assert late.refresh()
    assert late.digest == own.digest


def test_the_application_shows_what_decides_and_whether_mlflow_answers(registry: Registry, tmp_path: Path) -> None:
    registry.register(forest())
    registry.point(1)
    for uri, unreachable in ((registry.uri, 0.0), (down(), 1.0)):
        one = replica(registry, tmp_path, uri=uri)
        assert one.refresh(), one.slot.problem
        client = TestClient(create_app(one.slot, http_options(api_key=KEY, poll_seconds=3600.0)))
        assert client.get("/readyz").json()["model_source"] == "mlflow"
        described = client.get("/model", headers=HEADERS).json()
        assert (described["model_source"], described["source"]) == ("mlflow", "mlflow")
        assert (described["registry_problem"] is not None) is bool(unreachable)
        lines = client.get("/metrics").text.splitlines()
        assert f"model_registry_unreachable {unreachable}" in lines
        assert any(line.startswith("model_info{") and 'model_source="mlflow"' in line for line in lines)
        answer = client.post("/predict", json=A_FLOWER, headers=HEADERS)
        assert (answer.status_code, answer.json()["prediction"]) == (200, "setosa")


def test_a_challenger_gets_no_request_of_the_champion_and_is_served_by_replicas_that_follow_its_alias(
    registry: Registry, tmp_path: Path
) -> None:
    first, second = registry.register(forest()), registry.register(logistic())
    registry.point(1)
    main, trial = replica(registry, tmp_path / "main"), replica(registry, tmp_path / "trial", alias="challenger")
    assert main.refresh()
    registry.point(2, "challenger")
    assert not main.refresh()
    assert main.digest == first.digest
    assert trial.refresh(), trial.slot.problem
    assert trial.digest == second.digest
    move_alias(registry.client, registry.name, "2")
    assert main.refresh()
    assert not trial.refresh()
    assert (main.digest, trial.digest) == (second.digest, second.digest)
    assert (main.slot.registry_problem is None, trial.slot.registry_problem is None) == (True, False)


def test_a_stage_is_followed_where_no_alias_has_its_name(registry: Registry, tmp_path: Path) -> None:
    first, second = registry.register(forest()), registry.register(logistic())
    one = replica(registry, tmp_path, alias="Production")
    for entry in (second, first):
        registry.client.transition_model_version_stage(registry.name, str(entry.version), "Production", True)
        assert one.refresh(), one.slot.problem
        assert one.digest == entry.digest


def test_a_model_of_somebody_else_is_copied_as_a_bundle_and_answers_the_same_while_mlflow_is_down(
    registry: Registry, tmp_path: Path
) -> None:
    X, y = iris()
    frame = pd.DataFrame(X, columns=list(A_FLOWER))
    model = LogisticRegression(max_iter=500).fit(frame, y)
    mlflow.set_tracking_uri(registry.uri)
    logged = mlflow.sklearn.log_model(
        model, name="churn", signature=mlflow.models.infer_signature(frame, y), serialization_format="cloudpickle"
    )
    registry.client.create_registered_model(registry.name)
    version = registry.client.create_model_version(
        registry.name, logged.model_uri, model_id=logged.model_id
    )  # without a run, under a name of its own
    assert not version.run_id
    registry.point(version.version)
    one = replica(registry, tmp_path)
    assert one.refresh(), one.slot.problem
    late = replica(registry, tmp_path, uri=down())
    assert late.refresh(), late.slot.problem
    body = str(A_FLOWER).replace("'", '"').encode()
    assert one.slot.predictor is not None
    assert late.slot.predictor is not None
    assert answer_row(one.slot.predictor, body) == answer_row(late.slot.predictor, body)
    assert (late.digest, late.slot.predictor.version) == (one.digest, "1")
    (entry,) = Store(tmp_path / "models").entries()
    assert entry.served


def test_the_copies_need_no_place_when_none_can_be_written(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = registry.register(forest())
    registry.point(1)
    for name in ("models", "cache"):
        (tmp_path / name).write_text("no folder")
    one = replica(registry, tmp_path)
    caplog.set_level(logging.WARNING)
    assert one.refresh(), one.slot.problem
    assert one.digest == entry.digest
    assert any(record.getMessage() == "the replica could not copy the model in MLflow" for record in caplog.records)
    assert os.listdir(tmp_path / "aside")
