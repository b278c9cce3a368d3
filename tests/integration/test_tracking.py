"""Training with MLflow: a real server process, and its SQLite file used directly."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from serve_app.artifacts.bundle import verify_files
from serve_app.artifacts.store import Store
from tests.support import tables
from tests.support.mlflow_server import mlflow_server
from tests.support.scoring import served
from tests.support.server import free_port
from tests.support.stores import manifest_of
from tests.support.training import SECONDS, SMALL, complaint, environment, start, train

WORSE = ("--n-estimators", "1", "--max-depth", "1", "--floor", "accuracy=0")

ASK = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import mlflow
uri, name, folder = sys.argv[1:4]
mlflow.set_tracking_uri(uri)
client = mlflow.MlflowClient()
runs = client.search_runs([client.get_experiment_by_name(sys.argv[4]).experiment_id], order_by=["attributes.start_time"])
aliases = dict(client.get_registered_model(name).aliases)
versions = [{"version": v.version, "tags": v.tags, "run": v.run_id} for v in client.search_model_versions(f"name='{name}'")]
last = runs[-1].info.run_id
os.makedirs(folder)
for item in client.list_artifacts(last):
    client.download_artifacts(last, item.path, folder)
answers = []
if sys.argv[5] == "load":
    import pandas
    row = pandas.DataFrame([{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}])
    for address in (f"models:/{name}@champion", f"runs:/{last}/model"):
        answers.append(mlflow.sklearn.load_model(address).predict(row).tolist())
        answers.append(mlflow.pyfunc.load_model(address).predict(row).tolist())
print(json.dumps({
    "runs": [{"id": r.info.run_id, "name": r.info.run_name, "status": r.info.status, "params": r.data.params,
              "metrics": r.data.metrics, "tags": r.data.tags} for r in runs],
    "aliases": {alias: str(version) for alias, version in aliases.items()},
    "versions": versions,
    "answers": answers,
}))
"""


def recorded(
    uri: str, folder: Path, *, name: str = "IrisClassifier", experiment: str = "iris-classification", load: bool = False
) -> dict[str, Any]:
    """What MLflow holds, asked in a process of its own; the files of the last run are put into `folder`/artifacts."""
    artifacts = folder / "artifacts"
    shutil.rmtree(artifacts, ignore_errors=True)
    command = [sys.executable, "-c", ASK, uri, name, str(artifacts), experiment, "load" if load else "look"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@dataclass(frozen=True)
class Story:
    """A first training, a refused one, and a second accepted one, recorded on a server after each."""

    folder: Path
    uri: str
    store: Store
    first: dict[str, Any]
    refused: dict[str, Any]
    second: dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(scope="module")
def story(server: str, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    train(folder, *SMALL, "--run-name", "first", "--tag", "team", "flowers", MLFLOW_TRACKING_URI=server)
    first = recorded(server, folder, load=True)
    shutil.copytree(folder / "artifacts", folder / "of-the-first")
    train(folder, *WORSE, "--tracking-uri", server, code=3)
    refused = recorded(server, folder)
    train(folder, "--n-estimators", "20", "--tolerance", "0.1", "--tracking-uri", server)
    return Story(folder, server, Store(folder / "models"), first, refused, recorded(server, folder))


def test_a_run_holds_parameters_metrics_tags_and_the_digest(story: Story) -> None:
    (run,) = story.first["runs"]
    assert (run["name"], run["status"]) == ("first", "FINISHED")
    assert run["params"].items() >= {"n_estimators": "10", "max_depth": "10", "random_state": "42", "test_size": "0.2"}.items()
    assert run["metrics"].keys() >= {"accuracy", "precision", "recall", "f1_score", "f1_score_setosa", "recall_virginica"}
    assert run["tags"]["team"] == "flowers"
    assert run["tags"]["verdict"] == "accepted"
    entry = story.store.entries()[0]
    assert (run["tags"]["digest"], run["tags"]["store_version"]) == (entry.digest, "1")


def test_the_metadata_name_the_run_and_the_registered_version(story: Story) -> None:
    manifest = manifest_of(story.store.entries()[0])
    run = story.first["runs"][0]
    assert manifest.mlflow_run_id == run["id"]
    assert manifest.mlflow_run_uri == f"runs:/{run['id']}/model"
    assert (manifest.mlflow_model_name, manifest.mlflow_model_version) == ("IrisClassifier", "1")
    assert (manifest.mlflow_experiment_name, manifest.mlflow_run_name) == ("iris-classification", "first")
    assert str(manifest.mlflow_model_uri).startswith("models:/m-")
    assert manifest.tracking == "mlflow"


def test_the_bundle_can_be_fetched_from_the_run_and_verified(story: Story) -> None:
    entry = story.store.entries()[0]
    folder = story.folder / "of-the-first" / "bundle"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    raw = files.pop("metadata.json")
    assert raw == (entry.folder / "metadata.json").read_bytes()
    assert verify_files("1", entry.digest, raw, files, source="mlflow").files.keys() == files.keys()


def test_pictures_and_card_are_beside_the_run(story: Story) -> None:
    names = {path.name for path in (story.folder / "of-the-first" / "report").iterdir()}
    assert names == {"card.html", "confusion_matrix.png", "feature_importance.png"}


def test_the_registered_model_is_the_champion_and_loads_by_alias_and_by_run(story: Story) -> None:
    assert story.first["aliases"] == {"champion": "1"}
    assert story.first["versions"][0]["tags"].items() >= {"digest": story.store.entries()[0].digest, "verdict": "accepted"}.items()
    assert story.first["answers"] == [["setosa"]] * 4


def test_a_refused_run_is_recorded_with_its_reasons_and_nothing_else_changes(story: Story) -> None:
    run = story.refused["runs"][-1]
    assert run["tags"]["verdict"] == "refused"
    assert "worse than" in run["tags"]["verdict_reasons"]
    assert run["status"] == "FINISHED"
    assert story.refused["aliases"] == {"champion": "1"}
    assert len(story.refused["versions"]) == 1
    assert "digest" not in run["tags"]


def test_the_next_champion_leaves_the_alias_previous_behind(story: Story) -> None:
    assert story.second["aliases"] == {"champion": "2", "previous": "1"}
    assert [entry.version for entry in story.store.entries()] == [1, 2]


def test_rolling_back_moves_the_alias_too_and_needs_no_server_to_move_the_pointer(story: Story, tmp_path: Path) -> None:
    shutil.copytree(story.folder, tmp_path / "copy", symlinks=True)
    folder = tmp_path / "copy"
    done = train(folder, "rollback", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert "version 1" in done.stdout
    (note,) = done.stderr.splitlines()
    assert note.startswith("note: ")
    assert "'champion'" in note

    assert train(folder, "rollback", MLFLOW_TRACKING_URI=story.uri, code=1)
    train(folder, "promote", "1", MLFLOW_TRACKING_URI=story.uri)
    assert recorded(story.uri, folder)["aliases"]["champion"] == "1"
    train(folder, "promote", "2", MLFLOW_TRACKING_URI=story.uri)
    assert recorded(story.uri, folder)["aliases"]["champion"] == "2"


def test_a_server_that_is_down_stops_the_training_before_it_begins(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    done = train(tmp_path, *SMALL, code=1, MLFLOW_TRACKING_URI=uri)
    assert uri in complaint(done)
    assert "--no-tracking" in complaint(done)
    assert "random-forest" not in done.stderr
    assert not (tmp_path / "models").exists()


def test_without_a_configured_server_several_runs_at_once_share_the_file_and_agree(tmp_path: Path) -> None:
    """All start before the file exists, publish to one store, and the alias ends where the store points."""
    arguments = ("--tolerance", "1", "--n-estimators")
    running = [start(tmp_path, *arguments, str(10 + number)) for number in range(3)]
    ended = [(process.communicate(timeout=SECONDS), process.returncode) for process in running]
    assert [code for _, code in ended] == [0, 0, 0], ended
    store = Store(tmp_path / "models")
    entries = store.entries()
    assert [entry.version for entry in entries] == [1, 2, 3]
    assert len({manifest_of(entry).mlflow_run_id for entry in entries}) == 3
    (served,) = (entry for entry in entries if entry.served)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        aliases = dict(database.execute("select alias, version from registered_model_aliases").fetchall())
        statuses = {row[0] for row in database.execute("select status from runs")}
    database.close()
    assert str(aliases["champion"]) == manifest_of(served).mlflow_model_version
    assert statuses == {"FINISHED"}
    for (_, err), _ in ended:
        assert "Warning" not in err


def test_a_bucket_as_address_is_taken_as_the_place_for_files(tmp_path: Path) -> None:
    """The library of this bucket is not installed: what is checked is where the runs would go, and which addresses are named."""
    done = train(tmp_path, *SMALL, code=1, MLFLOW_TRACKING_URI="s3://a-bucket/mlruns/")
    (note,) = (line for line in done.stderr.splitlines() if line.startswith("note: "))
    assert re.findall(r"\w+:///?[\w./-]+\w", note)[-2:] == ["sqlite:///mlflow.db", "s3://a-bucket/mlruns"]
    assert "s3://a-bucket/mlruns/iris-classification" in complaint(done)
    assert "random-forest" not in done.stderr
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        places = [row[0] for row in database.execute("select artifact_location from experiments where name='iris-classification'")]
    database.close()
    assert places == ["s3://a-bucket/mlruns/iris-classification"]
    assert not (tmp_path / "models").exists()


LOADED = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}@champion")
answers = {path: model.predict(pandas.read_csv(path)).tolist() for path in sys.argv[3:]}
example = model.predict(model.input_example).tolist()
types = {column.name: column.type.name for column in model.metadata.signature.inputs}
print(json.dumps({"answers": answers, "example": example, "types": types,
                  "own": [name for name in sys.modules if name.split(".")[0] in ("serve_app", "training")]}))
"""


def test_the_logged_model_takes_its_training_table_and_answers_what_is_served(server: str, tmp_path: Path) -> None:
    table = tables.customers().assign(visits=lambda frame: range(len(frame)))
    path = tables.written(table, tmp_path)
    flags = ("--data", str(path), "--target", "stays", "--model-name", "Visitors", "--threshold", "0.05")
    train(tmp_path, *flags, "--estimator", "logistic-regression", "--force", "--tracking-uri", server)
    command = [sys.executable, "-P", "-c", LOADED, server, "Visitors", str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    expected = served(Store(tmp_path / "models"), pd.read_csv(path))
    assert loaded["answers"][str(path)] == [answer["prediction"] for answer in expected]
    assert any(answer["confidence"] < 0.5 for answer in expected)
    assert len(loaded["example"]) == 1
    assert (loaded["types"]["visits"], loaded["types"]["age"], loaded["types"]["plan"]) == ("long", "double", "string")
    assert loaded["own"] == []
