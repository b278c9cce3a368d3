"""`python -m training score` on a real Ray: equal to what is served, restartable, and clear about what is wrong."""

from __future__ import annotations

import os
import re
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier

from serve_app.artifacts.store import Store
from serve_app.batch.pool import Pool, in_process, on_ray
from serve_app.batch.run import Outcome, score
from serve_app.batch.score_options import ScoreOptions
from serve_app.errors import StoreError, UsageError
from tests.support import tables
from tests.support.models import (
    IRIS_CLASSES,
    bundle_files,
    bundle_manifest,
    iris,
    iris_signature,
    publish_iris,
    without_probabilities,
    write_legacy,
)
from tests.support.scoring import as_answers, everything, results, served, trained
from tests.support.stores import damage
from tests.support.training import complaint, start, train
from tests.support.waiting import until

# Ray Data warns of its own settings whenever it copies them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run(folder: Path, data: Path | str, *, pool: Pool = in_process, **options: Any) -> Outcome:
    """Score in this process by default: a worker does the same."""
    out = str(options.pop("out", folder / "out"))
    return score(ScoreOptions(data=str(data), out=out, model_dir=folder / "models", **options), lambda _: nullcontext(), pool)


def flowers(folder: Path, name: str = "flowers.csv", *, times: int = 1) -> Path:
    X, _ = iris()
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    return tables.written(pd.concat([pd.DataFrame(X, columns=list(names))] * times, ignore_index=True), folder, name)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("table", "target", "estimator"),
    [
        (tables.customers(), "stays", "random-forest"),
        (tables.customers(), "stays", "hist-gradient-boosting"),
        (tables.houses(), "price", "random-forest"),
        (tables.houses(), "price", "logistic-regression"),
        (tables.spam(), "spam", "random-forest"),
    ],
    ids=["classes, texts and gaps", "boosting with gaps", "regression", "linear regression", "classes that are numbers"],
)
def test_every_number_is_the_one_that_the_api_answers(
    tmp_path: Path, table: pd.DataFrame, target: str, estimator: str, ending: str
) -> None:
    trees = 10 if estimator == "random-forest" else None
    store = trained(tmp_path, tables.written(table, tmp_path), target, estimator=estimator, n_estimators=trees)
    path = tables.written(table, tmp_path, f"again.{ending}")
    outcome = run(tmp_path, path, part_bytes=2000, keep=[target])
    rows = results(tmp_path / "out")
    assert as_answers(rows) == served(store, table)
    assert [str(row[target]) for row in rows] == [str(value) for value in table[target]]
    assert {str(row["model_version"]) for row in rows} == {"1"}
    assert (outcome.rows, outcome.errors, outcome.version) == (len(table), 0, "1")


@pytest.mark.parametrize(
    "estimator", [KNeighborsClassifier(), RandomForestClassifier(20, random_state=0)], ids=["neighbours", "forest"]
)
def test_a_model_without_an_onnx_form_gives_the_same_numbers(tmp_path: Path, estimator: Any) -> None:
    store = Store(tmp_path / "models")
    publish_iris(store, estimator.fit(*iris()))
    path = flowers(tmp_path)
    run(tmp_path, path, form="csv")
    assert as_answers(results(tmp_path / "out")) == served(store, pd.read_csv(path))


def test_a_classifier_without_probabilities_gives_none(tmp_path: Path) -> None:
    signature = replace(iris_signature(), probabilistic=False)
    store = Store(tmp_path / "models")
    store.publish(bundle_files(without_probabilities(), signature), bundle_manifest(signature))
    path = flowers(tmp_path)
    run(tmp_path, path)
    assert as_answers(results(tmp_path / "out")) == served(store, pd.read_csv(path))


def test_a_legacy_layout_is_scored_with(tmp_path: Path) -> None:
    write_legacy(tmp_path / "models")
    path = flowers(tmp_path)
    outcome = run(tmp_path, path)
    assert outcome.version == "7"
    assert as_answers(results(tmp_path / "out")) == served(Store(tmp_path / "models"), pd.read_csv(path))


def test_an_unseen_category_is_an_error_or_predicted_as_the_option_says(tmp_path: Path) -> None:
    table = tables.customers()
    store = trained(tmp_path, tables.written(table, tmp_path), "stays", n_estimators=10)
    table.loc[7, "plan"] = "platinum"
    path = tables.written(table, tmp_path)
    with pytest.raises(UsageError, match=r"table\.csv, row 8: plan: .*--on-error keep"):
        run(tmp_path, path)
    run(tmp_path, path, unknown="unseen", restart=True)
    assert as_answers(results(tmp_path / "out")) == served(store, table, unknown="unseen")


def test_a_bad_row_is_written_with_its_error_when_rows_with_errors_are_kept(tmp_path: Path) -> None:
    table = tables.customers().astype(object)
    store = trained(tmp_path, tables.written(table, tmp_path), "stays", n_estimators=10)
    good = served(store, table)
    table.loc[3, "spent"] = "a lot"
    table.loc[100, ["plan", "active"]] = ["platinum", "perhaps"]
    path = tables.written(table, tmp_path)
    for form in ("parquet", "csv"):
        out = tmp_path / form
        outcome = run(tmp_path, path, out=out, on_error="keep", form=form, part_bytes=1000)
        rows = results(out)
        assert (outcome.rows, outcome.errors) == (240, 2)
        assert [problem.partition(":")[0] for problem in rows[3]["error"].split("; ")] == ["spent"]
        assert [problem.partition(":")[0] for problem in rows[100]["error"].split("; ")] == ["plan", "active"]
        for at in (3, 100):
            assert not rows[at]["prediction"]
            assert rows[at]["confidence"] is None
        valid = [at for at in range(240) if at not in (3, 100)]
        assert all(not rows[at]["error"] for at in valid)
        assert [as_answers(rows)[at] for at in valid] == [good[at] for at in valid]


def test_a_folder_and_a_pattern_are_scored_in_the_order_of_their_names(tmp_path: Path) -> None:
    publish_iris(Store(tmp_path / "models"))
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    for name, species in (("b.csv", 0), ("a.csv", 100), ("deeper/c.csv", 50)):
        row = iris()[0][species]
        tables.lines(folder, "petal_width,petal_length,sepal_width,sepal_length", ",".join(map(str, row[::-1])), name=name)
    (folder / "_SUCCESS.csv").write_text("")
    (folder / "readme.txt").write_text("no table")
    run(tmp_path, folder)
    assert [row["prediction"] for row in results(tmp_path / "out")] == [IRIS_CLASSES[2], IRIS_CLASSES[0], IRIS_CLASSES[1]]
    run(tmp_path, f"{folder}/*.csv", out=tmp_path / "other")
    assert [row["prediction"] for row in results(tmp_path / "other")] == [IRIS_CLASSES[2], IRIS_CLASSES[0]]


def test_a_file_address_names_input_and_output(tmp_path: Path) -> None:
    publish_iris(Store(tmp_path / "models"))
    flowers(tmp_path)
    run(tmp_path, f"file://{tmp_path}/flowers.csv", out=f"file://{tmp_path}/out")
    assert len(results(tmp_path / "out")) == 150


def test_a_version_can_be_selected(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    publish_iris(store)
    publish_iris(store, onnx=True)
    path = flowers(tmp_path)
    assert run(tmp_path, path).version == "2"
    assert run(tmp_path, path, out=tmp_path / "one", version=1).version == "1"
    assert {row["model_version"] for row in results(tmp_path / "one")} == {"1"}
    with pytest.raises(StoreError, match=r"\b9\b.*\b1, 2$"):
        run(tmp_path, path, version=9)


def test_a_damaged_bundle_scores_nothing(tmp_path: Path) -> None:
    damage(publish_iris(Store(tmp_path / "models")))
    done = train(tmp_path, "score", "--data", str(flowers(tmp_path)), "--out", "out", code=1)
    assert "model.joblib" in complaint(done)
    assert not (tmp_path / "out").exists()


def test_a_change_since_the_start_is_named_and_no_results_are_mixed(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    publish_iris(store)
    path = flowers(tmp_path)
    run(tmp_path, path)
    before = everything(tmp_path / "out")
    with pytest.raises(UsageError, match=r"--keep .*petal_width.* --restart"):
        run(tmp_path, path, keep=["petal_width"])
    publish_iris(store, onnx=True)
    with pytest.raises(UsageError, match=r"version 1 .* version 2 .*--version 1 .*--restart"):
        run(tmp_path, path)
    with open(path, "a") as file:
        file.write("1,1,1,1\n")
    with pytest.raises(UsageError, match=r"flowers\.csv was changed .*--restart"):
        run(tmp_path, path, version=1)
    assert everything(tmp_path / "out") == before
    assert run(tmp_path, path, restart=True).rows == 151
    assert {row["model_version"] for row in results(tmp_path / "out")} == {"2"}


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    publish_iris(Store(tmp_path / "models"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("ten years")
    for restart in (False, True):
        with pytest.raises(UsageError, match=re.escape(f"{tmp_path}/out ")):
            run(tmp_path, flowers(tmp_path), restart=restart)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "ten years"


@pytest.mark.timeout(900)
def test_a_killed_scoring_continues_and_the_result_is_the_same(tmp_path: Path) -> None:
    publish_iris(Store(tmp_path / "models"), RandomForestClassifier(300, random_state=0).fit(*iris()))
    path = flowers(tmp_path, times=2000)
    run(tmp_path, path, out=tmp_path / "whole", part_bytes=100_000)
    arguments = ("score", "--data", str(path), "--out", "out", "--part-bytes", "100000")
    out = tmp_path / "out"
    with start(tmp_path, *arguments) as process:
        until(lambda: len(list(out.glob("part-*"))) >= 3 or process.poll() is not None, seconds=400, what="three finished parts")
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    finished = {part: (part.stat().st_ino, part.stat().st_mtime_ns) for part in out.glob("part-*")}
    total = len(list((tmp_path / "whole").glob("part-*")))
    assert 3 <= len(finished) < total
    assert not (out / "_done.json").exists()

    done = train(tmp_path, *arguments)
    there = [int(number) for number in re.search(rf"(\d+) of {total} parts", done.stderr).groups()]  # type: ignore[union-attr]
    assert len(finished) <= there[0] < total
    assert "300,000 rows" in done.stdout
    assert all((part.stat().st_ino, part.stat().st_mtime_ns) == was for part, was in finished.items()), "done twice"
    assert {name: raw for name, raw in everything(out).items() if not name.startswith(".")} == everything(tmp_path / "whole")

    assert f"{total} of {total} parts" in train(tmp_path, *arguments).stderr


def test_wrong_usage_ends_with_one_message_and_code_two(tmp_path: Path) -> None:
    publish_iris(Store(tmp_path / "models"))
    path = flowers(tmp_path)
    bad = tables.lines(tmp_path, "sepal_length,sepal_width,petal_length,petal_width", "1,1,1,1", "1,1,99,1", name="bad.csv")
    for arguments, named in (
        (("--data", "nowhere.csv"), "nowhere.csv "),
        (("--data", "ftp://host/x.csv"), "ftp://host/x.csv "),
        (("--data", "*.parquet"), "*.parquet "),
        (("--data", str(path), "--keep", "nonsense"), "--keep 'nonsense' "),
        (("--data", str(bad)), f"{bad}, row 2: petal_length: "),
    ):
        assert named in complaint(train(tmp_path, "score", *arguments, "--out", "out", code=2))


def test_many_workers_change_nothing_but_the_duration(tmp_path: Path) -> None:
    publish_iris(Store(tmp_path / "models"), onnx=True)
    path = flowers(tmp_path, times=50)
    run(tmp_path, path, out=tmp_path / "one", part_bytes=20_000)
    assert run(tmp_path, path, out=tmp_path / "two", part_bytes=20_000, pool=lambda: on_ray(2)).workers == 2
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert np.unique([row["prediction"] for row in results(tmp_path / "one")]).tolist() == list(IRIS_CLASSES)
