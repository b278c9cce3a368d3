"""The training program as a user runs it, without MLflow."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import orjson
import pytest

from serve_app.artifacts.bundle import Bundle, read_bundle
from serve_app.artifacts.store import Store
from serve_app.inference.predictor import Predictor, open_predictor
from tests.support import tables
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL
from tests.support.server import ROOT
from tests.support.training import SECONDS, SMALL, complaint, environment, train
from training.pipeline import train as train_here
from training.train_options import Floor, OptionalInt, TrainOptions

QUIET = ("--no-tracking", *SMALL)

STUMP = ("--n-estimators", "1", "--max-depth", "1")
"""A model that predicts two of the three classes."""


def served(folder: Path) -> Bundle:
    bundle = Store(folder / "models").current()
    assert bundle is not None
    return bundle


def listed(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(train(folder, "list", "--json").stdout)
    return found


def ask(predictor: Predictor, row: Any) -> dict[str, Any]:
    answer: dict[str, Any] = orjson.loads(answer_row(predictor, orjson.dumps(row), unknown="unseen"))
    return answer


def test_a_model_is_trained_kept_refused_forced_and_taken_back(tmp_path: Path) -> None:
    done = train(tmp_path, *QUIET)
    assert "version 1" in done.stdout
    assert re.search(r"^ *\d+\.\d s  .*random-forest.* 120 ", done.stderr, re.MULTILINE), "steps with the seconds they took"

    worse = train(tmp_path, "--no-tracking", *STUMP, "--floor", "accuracy=0", "--allow-unpredicted-classes", code=3)
    report = orjson.loads((tmp_path / "models" / "verdict.json").read_bytes())
    assert not report["accepted"]
    assert report["published"] is None
    (reason,) = report["reasons"]
    assert reason.startswith("accuracy ")
    assert reason in worse.stderr
    assert report["comparison"]["rows"] == 30
    assert [row["version"] for row in listed(tmp_path)] == [1]

    stump = train(tmp_path, "--no-tracking", *STUMP, "--floor", "accuracy=0", "--tolerance", "1", code=3)
    assert "is never predicted" in stump.stderr
    train(tmp_path, "--no-tracking", *STUMP, "--force")
    forced = served(tmp_path)
    assert forced.manifest.verdict is not None
    assert (forced.version, forced.manifest.forced, forced.manifest.verdict.accepted) == ("2", True, False)
    assert (forced.manifest.n_estimators, forced.manifest.max_depth) == (1, 1)

    assert "version 1" in train(tmp_path, "rollback").stdout
    assert [row["served"] for row in listed(tmp_path)] == [True, False]
    train(tmp_path, "promote", "2")
    assert served(tmp_path).version == "2"
    table = train(tmp_path, "list").stdout.splitlines()
    assert table[2].startswith("*")
    assert "forced" in table[2]


def test_the_iris_bundle_answers_and_tells_where_it_comes_from(tmp_path: Path) -> None:
    train(tmp_path, *QUIET, "--tag", "team", "flowers", "--tag", "stage", "test", "--max-depth", "None", "--random-state", "0")
    bundle = served(tmp_path)
    manifest = bundle.manifest
    assert manifest.tags == {"team": "flowers", "stage": "test"}
    assert (manifest.max_depth, manifest.random_state) == (None, 0)
    assert (manifest.tracking, manifest.mlflow_run_id) == ("none", None)
    assert manifest.target_names == ("setosa", "versicolor", "virginica")
    assert set(manifest.files) >= {"card.html", "confusion_matrix.png", "feature_importance.png", "golden.json", "model.onnx"}
    assert set(bundle.metrics) >= {"accuracy", "precision", "recall", "f1_score", "per_class", "confusion_matrix"}
    predictor = open_predictor(bundle, ALLOW_ALL)
    assert predictor.kind == "onnx"
    answer = ask(predictor, {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2})
    assert answer["prediction"] == "setosa"
    for name in ("model.joblib", "metadata.json", "metrics.json"):
        assert (tmp_path / "models" / name).is_file()


@pytest.mark.parametrize("estimator", ["random-forest", "logistic-regression", "hist-gradient-boosting"])
def test_a_table_of_every_kind_becomes_a_model_that_takes_every_kind(tmp_path: Path, estimator: str) -> None:
    path = tables.written(tables.customers(), tmp_path, "customers.parquet")
    arguments = ("--data", str(path), "--target", "stays", "--estimator", estimator, "--bounds", "age=0:120", "--no-tracking")
    train(tmp_path, *arguments, "--floor", "f1_score=0.6")
    bundle = served(tmp_path)
    predictor = open_predictor(bundle, ALLOW_ALL)
    assert predictor.kind == "onnx"
    row = {"age": 60, "plan": "gold", "active": True, "newsletter": None, "spent": 10.5}
    assert ask(predictor, row)["prediction"] == "yes"
    assert ask(predictor, {**row, "age": 20, "active": False, "plan": "basic"})["prediction"] == "no"
    for changed in ({**row, "plan": None}, {**row, "plan": "platinum"}, {key: row[key] for key in ("active", "spent")}):
        assert ask(predictor, changed)["prediction"] in ("yes", "no")
    reference = bundle.manifest.reference
    assert reference is not None
    assert reference["features"]["plan"]["counts"].keys() == {"basic", "gold", "silver"}
    assert bundle.signature is not None
    assert bundle.signature.features[0].maximum == 120.0


def test_a_regression_is_trained_and_compared_by_its_error(tmp_path: Path) -> None:
    path = str(tables.written(tables.houses(), tmp_path))
    train(tmp_path, "--data", path, "--target", "price", "--estimator", "logistic-regression", "--no-tracking")
    assert served(tmp_path).metrics["r2"] > 0.9
    predictor = open_predictor(served(tmp_path), ALLOW_ALL)
    cheap, dear = (ask(predictor, {"area": area, "rooms": 3, "town": "Bonn"})["prediction"] for area in (50.0, 200.0))
    assert 20_000 < cheap < dear
    train(tmp_path, "--data", path, "--target", "price", "--n-estimators", "1", "--max-depth", "1", "--no-tracking", code=3)
    (reason,) = orjson.loads((tmp_path / "models" / "verdict.json").read_bytes())["reasons"]
    assert reason.startswith("rmse ")
    train(
        tmp_path,
        "--data",
        path,
        "--target",
        "price",
        "--n-estimators",
        "1",
        "--max-depth",
        "1",
        "--no-tracking",
        "--tolerance",
        "99",
    )


def test_another_table_is_published_without_comparison_and_says_so(tmp_path: Path) -> None:
    train(tmp_path, *QUIET)
    path = str(tables.written(tables.spam(), tmp_path))
    done = train(tmp_path, "--data", path, "--target", "spam", *QUIET)
    assert "not compared: " in done.stderr
    verdict = served(tmp_path).manifest.verdict
    assert verdict is not None
    assert verdict.comparison["compared"] is False


def test_an_estimator_from_the_working_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from sklearn.neighbors import KNeighborsClassifier\ndef neighbours():\n    return KNeighborsClassifier(3)\n"
    )
    train(tmp_path, "--estimator", "mine:neighbours", "--no-tracking")
    assert served(tmp_path).manifest.model_type == "KNeighborsClassifier"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--n-estimators", "0"], "--n-estimators"),
        (["--n-estimators", "None"], "--n-estimators"),
        (["--max-depth", "0"], "--max-depth"),
        (["--max-depth", "deep"], "'deep'"),
        (["--random-state", "-1"], "--random-state"),
        (["--test-size", "0"], "--test-size"),
        (["--floor", "accuracy"], "accuracy=0.9"),
        (["--floor", "r2=0.5"], "'r2'"),
        (["--bounds", "age"], "age=0:120"),
        (["--bounds", "sepal_length=3:1"], "age=0:120"),
        (["--tag", "team"], "--tag team VALUE"),
        (["--data", "none.csv", "--target", "y"], "none.csv"),
        (["--target", "colour"], "'colour'"),
        (["--estimator", "oak"], "'oak'"),
        (["--estimator", "logistic-regression", "--max-depth", "3"], "max_depth"),
        (["--nonsense"], "`python -m training train --help`"),
        (["retrain"], "`python -m training --help`"),
        (["--model-dir", __file__], "--model-dir"),
        (["--tracking-uri", "mlruns"], "'mlruns'"),
        (["promote"], "`python -m training promote --help`"),
        (["promote", "two"], "version"),
        (["score", "--data", "none.csv"], "--out"),
    ],
)
def test_wrong_usage_ends_with_one_message_and_code_two(tmp_path: Path, arguments: list[str], named: str) -> None:
    no_tracking = ["--no-tracking"] if arguments[0].startswith("--") and arguments[0] != "--tracking-uri" else []
    assert named in complaint(train(tmp_path, *arguments, *no_tracking, code=2))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("command", [[], ["train"], ["list"], ["models"], ["promote"], ["rollback"], ["score"]])
def test_every_command_explains_itself(tmp_path: Path, command: list[str]) -> None:
    assert "Usage" in train(tmp_path, *command, "--help").stdout


def test_an_empty_store_is_listed_and_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    assert listed(tmp_path) == []
    assert len(train(tmp_path, "list").stdout.splitlines()) == 1
    assert f"{tmp_path}/models" in complaint(train(tmp_path, "rollback", code=1))
    assert " 7" in complaint(train(tmp_path, "promote", "7", code=1))
    assert not (tmp_path / "models").exists()


def test_neither_listing_nor_rolling_back_loads_mlflow_or_scikit_learn(tmp_path: Path) -> None:
    train(tmp_path, *QUIET)
    train(tmp_path, "--no-tracking", "--n-estimators", "20", "--force")
    for command in ("list", "rollback"):
        script = (
            "import sys\nfrom training.__main__ import main\nsys.argv[1:] = [sys.argv[1]]\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
            "assert not {'mlflow', 'sklearn', 'pandas', 'ray'} & set(sys.modules)\n"
        )
        subprocess.run(
            [sys.executable, "-c", script, command], cwd=tmp_path, env=environment(tmp_path), check=True, timeout=SECONDS
        )
    assert served(tmp_path).version == "1"


def test_a_full_disk_ends_the_training_with_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    train(tmp_path, *QUIET)
    before = sorted(path.name for path in (tmp_path / "models").rglob("*"))

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file may grow longer, as on a disk with no room

    command = [sys.executable, "-m", "training", "--no-tracking", "--n-estimators", "150", "--force"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, preexec_fn=small_files, timeout=SECONDS
    )
    assert done.returncode == 1, done.stderr
    assert os.strerror(errno.EFBIG) in complaint(done)
    assert sorted(path.name for path in (tmp_path / "models").rglob("*")) == before
    assert served(tmp_path).version == "1"


def test_a_training_that_is_killed_at_any_moment_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    train(tmp_path, *QUIET)
    store = Store(tmp_path / "models")
    old = served(tmp_path).digest
    command = [sys.executable, "-m", "tests.support.training", "die", str(store.root)]
    killed, at, seen = 0, 4, set()
    while True:
        done = subprocess.run(
            [*command, str(at)], cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=SECONDS
        )
        bundle = store.current()
        assert bundle is not None
        assert open_predictor(bundle, ALLOW_ALL).digest == bundle.digest
        seen.add("old" if bundle.digest == old else "new")
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        killed, at = killed + 1, at + 3
    assert killed >= 8
    assert seen == {"old", "new"}
    newest = max(store.entries(), key=lambda entry: entry.version)
    assert read_bundle(newest.folder)
    assert not [name for name in os.listdir(store.root / "bundles") if name.startswith(".")]


def test_a_model_published_meanwhile_is_compared_with_before_anything_is_published(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    poor = TrainOptions(
        n_estimators=1,
        max_depth=OptionalInt(1),
        floor=[Floor("accuracy", 0.0)],
        allow_unpredicted_classes=True,
        model_dir=store.root,
        no_tracking=True,
    )
    steps: list[str] = []

    @contextmanager
    def progress(text: str) -> Iterator[None]:
        if text.startswith("publish") and store.pointer() is None:
            good = TrainOptions(n_estimators=20, model_dir=store.root, no_tracking=True)
            assert train_here(good, lambda _: nullcontext()).entry is not None
        steps.append(text)
        yield

    outcome = train_here(poor, progress)
    assert outcome.entry is None
    assert outcome.comparison.version == "1"
    assert [reason.partition(" ")[0] for reason in outcome.verdict.reasons] == ["accuracy"]
    assert [step.partition(" ")[0] for step in steps[-2:]] == ["publish", "compare"]
    assert [entry.version for entry in store.entries()] == [1]


def test_the_search_chooses_the_same_with_one_worker_and_with_two(tmp_path: Path) -> None:
    script = (
        "import json, sys, ray\nfrom training import dataset, search\njoin = ray.init\n"
        "ray.init = lambda **options: join(**options, num_cpus=int(sys.argv[1]))\n"
        "found = search.search(dataset.load(None), 'random-forest', {'n_estimators': 5}, candidates=4, random_state=7)\n"
        "print(json.dumps(found))\n"
    )
    outputs = []
    for workers in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, workers],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout.splitlines()[-1]))
    assert outputs[0] == outputs[1]
    assert len(outputs[0][1]["candidates"]) == 4


def test_a_search_ends_in_a_published_model_that_names_its_candidates(tmp_path: Path) -> None:
    train(tmp_path, "--search", "3", "--no-tracking", "--n-estimators", "5", "--floor", "accuracy=0.5")
    manifest = served(tmp_path).manifest
    assert manifest.n_estimators == 5
    search, parameters = manifest.search, manifest.parameters
    assert search is not None
    assert parameters is not None
    assert len(search["candidates"]) == 3
    chosen = search["candidates"][search["chosen"]]
    assert parameters.items() >= chosen["parameters"].items()


def test_a_ray_cluster_that_does_not_answer_is_named(tmp_path: Path) -> None:
    done = train(tmp_path, "--search", "2", "--no-tracking", code=1, RAY_ADDRESS="127.0.0.1:1")
    assert "127.0.0.1:1 (RAY_ADDRESS)" in complaint(done)


def test_an_unattended_training_takes_its_table_from_the_environment_and_never_changes_the_columns(tmp_path: Path) -> None:
    table = tmp_path / "flats.csv"
    rows = [(area, area % 7, area * 2) for area in range(20, 140)]

    def write(*names: str) -> None:
        lines = [",".join(names), *(",".join(map(str, row[: len(names)])) for row in rows)]
        table.write_text("\n".join(lines) + "\n")

    settings: dict[str, Any] = {
        "IRIS_TRAINING_DATA": str(table),
        "IRIS_TRAINING_TARGET": "price",
        "IRIS_TRAINING_FLAGS": "--n-estimators 10 --no-tracking",
    }
    unattended = ("--same-columns", "--exit-refused", "0", "--tolerance", "1")
    write("area", "rooms", "price")
    train(tmp_path, *unattended, **settings)
    refused = train(tmp_path, *unattended, "--floor", "r2=1.5", **settings)
    assert "nothing was published" in refused.stderr
    write("area", "balconies", "price")
    assert "'rooms' is missing, 'balconies' is new" in complaint(train(tmp_path, *unattended, code=2, **settings))
    assert [entry.version for entry in Store(tmp_path / "models").entries()] == [1]
    train(tmp_path, "--tolerance", "1", **settings)
    assert [entry.version for entry in Store(tmp_path / "models").entries() if entry.served] == [2]
