"""Models from a real MLflow server, for a store that holds none."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.artifacts.mlflow_download import Download
from serve_app.artifacts.mlflow_source import MlflowSource
from serve_app.artifacts.skops_format import skops_to_joblib
from serve_app.artifacts.store import Store
from serve_app.errors import BundleRefused
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.slot import Slot
from tests.support.mlflow_server import mlflow_server
from tests.support.models import A_FLOWER, iris
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL, load_policy
from tests.support.server import ROOT, free_port
from tests.support.stores import manifest_of

NAME = "IrisClassifier"
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # MLflow warns of itself
]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(scope="module")
def trained(tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that our training published to, with its run in MLflow."""
    folder = tmp_path_factory.mktemp("trained")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODEL_DIR": str(folder / "models"), "MLFLOW_TRACKING_URI": tracking}
    subprocess.run([sys.executable, "-m", "training", "--n-estimators", "20"], cwd=folder, env=environment, check=True, timeout=240)
    return Store(folder / "models")


def registry(tracking: str, model_dir: Path, *, name: str = NAME, poll_seconds: float = 60.0) -> MlflowSource:
    return MlflowSource(tracking, model_name=name, alias="champion", legacy=model_dir, poll_seconds=poll_seconds)


def test_the_champion_is_fetched_verified_and_answers_like_the_store(tracking: str, trained: Store, tmp_path: Path) -> None:
    slot = Slot(Store(tmp_path), registry(tracking, tmp_path), policy=ALLOW_ALL)
    assert slot.refresh(), slot.problem
    assert slot.predictor is not None
    local = trained.current()
    assert local is not None
    assert (slot.predictor.version, slot.predictor.digest, slot.predictor.kind) == (local.version, local.digest, "onnx")
    assert slot.predictor.bundle.source == "mlflow"
    assert b"setosa" in answer_row(slot.predictor, str(A_FLOWER).replace("'", '"').encode())
    assert not slot.refresh()


def test_a_published_model_takes_over_from_the_registry(tracking: str, trained: Store, tmp_path: Path) -> None:
    from tests.support.models import publish_iris

    store = Store(tmp_path)
    slot = Slot(store, registry(tracking, tmp_path), policy=ALLOW_ALL)
    slot.refresh()
    publish_iris(store)
    assert slot.refresh()
    assert slot.predictor is not None
    assert slot.predictor.bundle.source == "store"


def test_the_run_in_the_metadata_of_old_is_served_when_its_model_file_is_gone(
    tracking: str, trained: Store, tmp_path: Path
) -> None:
    run_id = manifest_of(trained.entries()[0]).mlflow_run_id
    (tmp_path / "metadata.json").write_text(f'{{"mlflow_run_id": "{run_id}", "feature_names": []}}')
    slot = Slot(Store(tmp_path), registry(tracking, tmp_path, name="NoSuchModel"), policy=ALLOW_ALL)
    assert slot.refresh(), slot.problem


def log_model(tracking: str, name: str, serialization_format: str) -> None:
    """Somebody else's model in the registry, without our bundle."""
    import mlflow
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    X, y = iris()
    frame = pd.DataFrame(X, columns=list(A_FLOWER))
    model = LogisticRegression(max_iter=500).fit(frame, y)
    mlflow.set_tracking_uri(tracking)
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model,
            name="model",
            registered_model_name=name,
            signature=mlflow.models.infer_signature(frame, y),
            serialization_format=serialization_format,
        )
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", "1")


@pytest.mark.parametrize("serialization_format", ["cloudpickle", "skops"])
def test_a_model_that_somebody_else_logged_is_served_with_its_own_names(
    tracking: str, tmp_path: Path, serialization_format: str
) -> None:
    log_model(tracking, f"In{serialization_format}", serialization_format)
    slot = Slot(Store(tmp_path), registry(tracking, tmp_path, name=f"In{serialization_format}"), policy=ALLOW_ALL)
    assert slot.refresh(), slot.problem
    assert slot.predictor is not None
    assert slot.predictor.signature.names == tuple(A_FLOWER)
    assert b'"prediction":"setosa"' in answer_row(slot.predictor, str(A_FLOWER).replace("'", '"').encode())


def test_a_forest_in_the_format_of_skops_is_served_with_our_list_of_types_not_with_its_own(tracking: str, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd
    from sklearn.ensemble import RandomForestClassifier

    X, y = iris()
    frame = pd.DataFrame(X, columns=list(A_FLOWER))
    mlflow.set_tracking_uri(tracking)
    for name, extra in (("Forest", None), ("Spy", subprocess.Popen)):
        model = RandomForestClassifier(5, random_state=1).fit(frame, y)
        if extra is not None:
            model.extra = extra
        types = ["sklearn.tree._tree.Tree", "subprocess.Popen"]
        signature = mlflow.models.infer_signature(frame, y)
        mlflow.sklearn.log_model(
            model,
            name="m",
            signature=signature,
            skops_trusted_types=types,
            serialization_format="skops",
            registered_model_name=name,
        )
        mlflow.MlflowClient().set_registered_model_alias(name, "champion", "1")
    slot = Slot(Store(tmp_path), registry(tracking, tmp_path, name="Forest"), policy=ALLOW_ALL)
    assert slot.refresh(), slot.problem
    spy = Slot(Store(tmp_path), registry(tracking, tmp_path, name="Spy"), policy=ALLOW_ALL)
    assert reason_of(spy) == "forbidden"
    assert "subprocess.Popen" in str(spy.problem)


def reason_of(slot: Slot) -> str:
    assert not slot.refresh()
    assert slot.refusal is not None
    assert slot.predictor is None
    return slot.refusal.reason


def test_a_model_that_would_fill_the_memory_when_unpacked_is_refused(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_bomb(file: Path, limit: int) -> bytes:
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("bomb", bytes(16 << 20))
        return skops_to_joblib(file, limit)

    log_model(tracking, "Bomb", "skops")
    monkeypatch.setattr("serve_app.artifacts.mlflow_source.skops_to_joblib", with_a_bomb)
    assert reason_of(Slot(Store(tmp_path), registry(tracking, tmp_path, name="Bomb"), policy=ALLOW_ALL)) == "forbidden"


@pytest.mark.parametrize("name", [NAME, "Large"])
def test_a_model_larger_than_the_memory_allows_is_refused(
    tracking: str, trained: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name != NAME:
        log_model(tracking, name, "cloudpickle")
    for module in ("bundle", "mlflow_source"):
        monkeypatch.setattr(f"serve_app.artifacts.{module}.max_model_bytes", lambda: 400)
    slot = Slot(Store(tmp_path), registry(tracking, tmp_path, name=name), policy=ALLOW_ALL)
    assert reason_of(slot) == "manifest"


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (load_policy(verify=lambda digest, seal: False), "unsigned"),
        (load_policy(allow_joblib=False), "forbidden"),
        (load_policy(backend="onnx"), "forbidden"),
    ],
    ids=["unsigned", "no pickle", "ONNX only"],
)
def test_nothing_is_fetched_that_the_settings_do_not_allow(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: LoadPolicy, reason: str
) -> None:
    log_model(tracking, f"Not{reason}{policy.backend}", "skops")
    fetched: list[str] = []
    monkeypatch.setattr(Download, "fetch", lambda self, artifact, limit: fetched.append(artifact))
    slot = Slot(Store(tmp_path), registry(tracking, tmp_path, name=f"Not{reason}{policy.backend}"), policy=policy)
    assert (reason_of(slot), fetched) == (reason, [])


WITHOUT_PANDAS = """
import sys
from pathlib import Path
sys.modules["pandas"] = None
from serve_app.artifacts.mlflow_source import MlflowSource
from serve_app.artifacts.store import Store
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.slot import Slot
source = MlflowSource(sys.argv[1], model_name=sys.argv[2], alias="champion", legacy=None, poll_seconds=60)
slot = Slot(Store(Path(sys.argv[3])), source, policy=LoadPolicy(allow_joblib=True, backend="auto", verify=None))
assert slot.refresh(), slot.problem
print(slot.predictor.signature.names)
"""


@pytest.mark.parametrize("serialization_format", ["cloudpickle", "skops"])
def test_a_model_of_somebody_else_is_served_where_there_is_no_pandas(
    tracking: str, tmp_path: Path, serialization_format: str
) -> None:
    log_model(tracking, f"Bare{serialization_format}", serialization_format)
    command = [sys.executable, "-c", WITHOUT_PANDAS, tracking, f"Bare{serialization_format}", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "sepal_length" in done.stdout


def log_what_cannot_be_served(tracking: str, name: str, what: str) -> None:
    """A version with the alias `champion` that no replica can serve as it is."""
    import mlflow
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    X, y = iris()
    frame = pd.DataFrame(X, columns=list(A_FLOWER))
    mixed = frame.assign(colour=["red", "blue"] * (len(frame) // 2))
    model: object = LogisticRegression(max_iter=500).fit(frame, y)
    if what == "text":
        encoder = make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough")
        model = make_pipeline(encoder, LogisticRegression(max_iter=500)).fit(mixed, y)
    mlflow.set_tracking_uri(tracking)
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        options = {"signature": mlflow.models.infer_signature(mixed if what == "text" else frame, y)}
        info = mlflow.sklearn.log_model(
            model, name="other", serialization_format="cloudpickle", **({} if what == "unsigned" else options)
        )
        if what == "flavor":
            info = mlflow.pyfunc.log_model(name="function", python_model=lambda model_input: model_input, pip_requirements=[])
        mlflow.log_text("a note", "notes/readme.txt")
    client.create_registered_model(name)
    source = f"{run.info.artifact_uri}/notes" if what == "empty" else info.model_uri
    client.create_model_version(name, source, run.info.run_id, model_id=None if what == "empty" else info.model_id)
    if what == "file":
        (logged,) = client.search_logged_models([run.info.experiment_id], filter_string=f"model_id = '{info.model_id}'")
        files = [path for path in Path(os.environ["ARTIFACTS"]).rglob("model.pkl") if info.model_id in str(path)]
        files[0].unlink()
        assert logged.model_id == info.model_id
    client.set_registered_model_alias(name, "champion", "1")


@pytest.mark.parametrize(
    ("what", "reason", "is_adoptable"),
    [
        ("text", "signature", True),
        ("unsigned", "signature", True),
        ("flavor", "format", True),
        ("empty", "manifest", False),
        ("file", "manifest", False),
    ],
)
def test_a_model_that_can_never_be_served_is_refused_once_until_the_alias_moves(
    tracking: str,
    trained: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path_factory: pytest.TempPathFactory,
    what: str,
    reason: str,
    is_adoptable: bool,
) -> None:
    monkeypatch.setenv("ARTIFACTS", str(tmp_path_factory.getbasetemp()))
    name = f"Never{what}"
    log_what_cannot_be_served(tracking, name, what)
    slot = Slot(Store(tmp_path), registry(tracking, tmp_path, name=name, poll_seconds=0), policy=ALLOW_ALL)
    assert reason_of(slot) == reason
    assert (f"iris-api adopt models:/{name}@champion" in str(slot.problem)) is is_adoptable
    reads: list[str] = []
    monkeypatch.setattr(MlflowSource, "_read", lambda self, version, policy: reads.append(version))
    for _ in range(3):
        assert not slot.refresh()
    assert reads == []
    assert sum(record.getMessage() == "model refused" for record in caplog.records) == 1


def test_bytes_that_differ_from_the_digest_are_refused(tracking: str, trained: Store, tmp_path: Path) -> None:
    import mlflow

    run_id = manifest_of(trained.entries()[0]).mlflow_run_id
    client = mlflow.MlflowClient(tracking_uri=tracking)
    right = client.get_run(run_id).data.tags["digest"]
    client.set_tag(run_id, "digest", "0" * 64)
    try:
        slot = Slot(Store(tmp_path), registry(tracking, tmp_path), policy=ALLOW_ALL)
        assert not slot.refresh()
        assert slot.refusal is not None
        assert slot.refusal.reason == "digest"
        assert slot.predictor is None
    finally:
        client.set_tag(run_id, "digest", right)


def test_an_unknown_version_is_refused_with_a_reason_and_the_served_one_stays(
    tracking: str, trained: Store, tmp_path: Path
) -> None:
    """Moving the alias back to an older version is no fault but the way back, so that is followed."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=tracking)
    right = client.get_model_version_by_alias(NAME, "champion").version
    slot = Slot(Store(tmp_path), registry(tracking, tmp_path, poll_seconds=0), policy=ALLOW_ALL)
    assert slot.refresh(), slot.problem
    served = slot.predictor
    empty = client.create_run(client.create_experiment("empty")).info
    unknown = client.create_model_version(NAME, f"{empty.artifact_uri}/model", empty.run_id)
    try:
        client.set_registered_model_alias(NAME, "champion", unknown.version)
        assert not slot.refresh()
        assert slot.refusal is not None
        assert slot.predictor is served
        client.delete_registered_model_alias(NAME, "champion")
        assert not slot.refresh()
        assert slot.predictor is served
    finally:
        client.set_registered_model_alias(NAME, "champion", right)
    slot.refresh()
    assert slot.predictor is not None
    assert served is not None
    assert slot.predictor.digest == served.digest
    assert slot.refusal is None


def test_an_empty_registry_is_no_error_and_a_dead_server_is_asked_again_later(tracking: str, tmp_path: Path) -> None:
    assert registry(tracking, tmp_path, name="NothingYet").pointer() is None
    dead = registry(f"http://127.0.0.1:{free_port()}", tmp_path)
    with pytest.raises(BundleRefused) as caught:
        dead.pointer()
    assert not caught.value.final
    slot = Slot(Store(tmp_path), dead, policy=ALLOW_ALL)
    assert not slot.refresh()
    assert slot.problem is not None
    assert "MLflow" in slot.problem


def test_a_dead_server_is_logged_in_one_line_however_often_it_is_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slot = Slot(Store(tmp_path), registry(f"http://127.0.0.1:{free_port()}", tmp_path, poll_seconds=0), policy=ALLOW_ALL)
    for _ in range(3):
        slot.refresh()
    assert [(record.levelname, record.exc_info) for record in caplog.records if record.levelno >= logging.WARNING] == [
        ("ERROR", None)
    ]
