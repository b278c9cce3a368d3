"""Several targets of one model: trained, compared, served, scored."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

from serve_app.artifacts.names import CARD, JOBLIB
from serve_app.artifacts.store import Store
from serve_app.errors import UsageError
from tests.support import tables
from tests.support.scoring import served
from training.evaluate import SeveralMetrics
from training.iris_api_pyfunc import TableModel
from training.pipeline import Outcome, train
from training.train_options import Floor, TrainOptions


def plants(rows: int = 300) -> pd.DataFrame:
    """Two numbers and two classes that follow from light, water and soil; classes of several types."""
    random = np.random.default_rng(2)
    light, water = random.uniform(0, 10, rows).round(2), random.uniform(0, 5, rows).round(2)
    soil = random.choice(["clay", "sand"], rows)
    height = (3 * light + 2 * water + random.normal(0, 0.5, rows)).round(2)
    leaves = (light * water + 10 * (soil == "clay") + random.normal(0, 0.5, rows)).round(2)
    return pd.DataFrame(
        {
            "light": light,
            "water": water,
            "soil": soil,
            "height": height,
            "leaves": leaves,
            "blooms": light > 5,
            "size": np.digitize(height, [15, 28]) + 1,
        }
    )


def run(folder: Path, target: str, table: pd.DataFrame | None = None, **options: Any) -> Outcome:
    table = plants() if table is None else table
    named = [name.strip() for name in target.split(",")]
    drop = [name for name in ("height", "leaves", "blooms", "size") if name not in named]
    trees = 10 if options.get("estimator", "random-forest") == "random-forest" else None
    values = {"no_tracking": True, "importance_seconds": 0.3, "n_estimators": trees, "drop": drop, **options}
    path = tables.written(table, folder)
    return train(TrainOptions(data=str(path), target=target, model_dir=folder / "models", **values), lambda _: nullcontext())


def stored(outcome: Outcome) -> Any:
    assert outcome.entry is not None
    return joblib.load(outcome.entry.folder / JOBLIB)


@pytest.mark.parametrize("estimator", ["random-forest", "logistic-regression", "hist-gradient-boosting"])
def test_numbers_are_served_as_the_model_predicts_them(tmp_path: Path, estimator: str) -> None:
    outcome = run(tmp_path, "height,leaves", estimator=estimator)
    assert isinstance(outcome.metrics, SeveralMetrics)
    assert outcome.metrics.means.keys() == {"r2"}
    assert min(metrics.r2 for metrics in outcome.metrics.per_target.values()) > 0.7  # type: ignore[union-attr]
    expected = stored(outcome).predict(plants()[["light", "water", "soil"]])
    answers = served(Store(tmp_path / "models"), plants())
    assert [list(answer["outputs"]) for answer in answers] == [["height", "leaves"]] * len(answers)
    given = [[part["prediction"] for part in answer["outputs"].values()] for answer in answers]
    assert np.allclose(given, expected, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["random-forest", "logistic-regression"])
def test_classes_of_several_types_keep_their_types(tmp_path: Path, estimator: str) -> None:
    outcome = run(tmp_path, "blooms, size", estimator=estimator)
    assert outcome.manifest.onnx is not None
    assert outcome.manifest.onnx.available, outcome.manifest.onnx.reason
    answers = [answer["outputs"] for answer in served(Store(tmp_path / "models"), plants())]
    assert {type(answer["blooms"]["prediction"]) for answer in answers} == {bool}
    assert {answer["size"]["prediction"] for answer in answers} == {1, 2, 3}
    assert set(answers[0]["size"]["probabilities"]) == {"1", "2", "3"}
    model = stored(outcome)
    labels = model.predict(plants()[["light", "water", "soil"]])
    assert [[str(answer["blooms"]["prediction"]), str(answer["size"]["prediction"])] for answer in answers] == labels.astype(
        str
    ).tolist()
    right = np.mean([answer["size"]["prediction"] == size for answer, size in zip(answers, plants()["size"], strict=True)])
    assert right > 0.9


def test_the_next_model_is_compared_on_the_mean_of_the_targets(tmp_path: Path) -> None:
    first = run(tmp_path, "height,leaves")
    assert first.entry is not None
    worse = run(tmp_path, "height,leaves", estimator="logistic-regression")
    assert worse.comparison.compared
    assert worse.entry is None
    assert "the mean r2" in worse.verdict.reasons[0]
    other = run(tmp_path, "leaves,height", force=True)
    assert not other.comparison.compared
    assert other.comparison.why == "the served model has other targets"


def test_each_target_must_be_better_than_a_constant_answer(tmp_path: Path) -> None:
    table = plants()
    table["leaves"] = np.random.default_rng(0).normal(0, 1, len(table))
    outcome = run(tmp_path, "height,leaves", table)
    assert outcome.entry is None
    assert [reason.split()[0] for reason in outcome.verdict.reasons] == ["r2_leaves"]


def test_a_floor_of_one_target_is_kept(tmp_path: Path) -> None:
    outcome = run(tmp_path, "height,leaves", floor=[Floor("rmse_height", 0.001)])
    assert outcome.entry is None
    assert "rmse_height" in outcome.verdict.reasons[0]
    with pytest.raises(UsageError, match="r2_leaves"):
        run(tmp_path, "height,leaves", floor=[Floor("accuracy", 0.5)])


def test_the_bundle_says_what_the_targets_are(tmp_path: Path) -> None:
    outcome = run(tmp_path, "blooms,size")
    assert outcome.entry is not None
    manifest = outcome.manifest
    assert manifest.signature is not None
    assert [(output.name, output.classes) for output in manifest.signature.outputs] == [
        ("blooms", (False, True)),
        ("size", (1, 2, 3)),
    ]
    assert manifest.reference is not None
    assert set(manifest.reference["outputs"]) == {"blooms", "size"}
    assert manifest.data is not None
    assert manifest.data.columns == 5
    assert b"blooms" in (outcome.entry.folder / CARD).read_bytes()
    table_model = TableModel(stored(outcome), manifest.signature.to_dict())
    predicted = table_model.predict(plants())
    assert isinstance(predicted, pd.DataFrame)
    assert list(predicted.columns) == ["blooms", "size"]


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("height,height", {}, "twice"),
        ("height,nothing", {}, "nothing"),
        (",", {}, "','"),
        ("height,size", {}, "--task"),
        ("height,leaves", {"search": 3}, "--search"),
        ("blooms,size", {"threshold": 0.5}, "several targets"),
        ("blooms,size", {"calibrate": "sigmoid"}, "--calibrate"),
    ],
    ids=["twice", "unknown", "a comma", "two kinds", "search", "threshold", "calibrate"],
)
def test_what_one_model_cannot_do_is_refused(tmp_path: Path, target: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run(tmp_path, target, drop=[], **options)
    assert not (tmp_path / "models" / "current").exists()


def test_a_column_with_a_comma_in_its_name_is_one_target(tmp_path: Path) -> None:
    table = plants().rename(columns={"height": "height, cm"})
    outcome = run(tmp_path, "height, cm", table, drop=["leaves", "blooms", "size"])
    assert outcome.manifest.signature is not None
    assert (outcome.manifest.signature.target, outcome.manifest.signature.outputs) == ("height, cm", ())
