"""Names of columns and classes with characters that mean something to matplotlib, MLflow, HTML or a spreadsheet."""

from __future__ import annotations

import csv
import random
import warnings
from pathlib import Path

import orjson
import pytest

from serve_app.artifacts.names import CARD, CONFUSION_IMAGE, IMPORTANCE_IMAGE
from serve_app.artifacts.store import Store
from serve_app.progress import step
from training import figures
from training.pipeline import train
from training.run_record import flat_metrics
from training.tracking import allowed_key
from training.train_options import TrainOptions

COLUMNS = ["$a$ $", "b_{^", "c\\frac{", '<b>&"', "emoji 😀", "中文列", "עברית \u202e", "line\nbreak", "esc\x1b[2J"]
CLASSES = ["<30", ">30", "$x_^{$", "=1+1", "../日本 😀"]
PNG = b"\x89PNG"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    source = random.Random(1)
    path = tmp_path / "$t_^ 😀.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "$y$"])
        for row in range(100):
            writer.writerow([*(round(source.gauss(row % 5, 0.5), 3) for _ in COLUMNS), CLASSES[row % 5]])
    return path


def test_names_of_any_characters_end_no_training_and_stay_what_they_are(table: Path, tmp_path: Path) -> None:
    options = TrainOptions(data=str(table), target="$y$", n_estimators=5, no_tracking=True, model_dir=tmp_path / "models")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no word about characters that the font lacks
        outcome = train(options, step)
    bundle = Store(tmp_path / "models").current()
    assert outcome.entry is not None
    assert bundle is not None
    assert bundle.signature is not None
    assert list(bundle.signature.names) == COLUMNS
    assert set(bundle.signature.classes) == set(CLASSES)
    assert set(orjson.loads(bundle.files["metrics.json"])["per_class"]) == set(CLASSES)
    folder = outcome.entry.folder
    assert all((folder / name).read_bytes().startswith(PNG) for name in (CONFUSION_IMAGE, IMPORTANCE_IMAGE))
    card = (folder / CARD).read_text()
    assert "&lt;b&gt;&amp;&#34;" in card
    assert "<b>&" not in card
    assert "\u202e" not in card
    assert "\x1b" not in card


def test_a_dollar_sign_is_no_formula() -> None:
    counts = [[3, 0], [0, 3]]
    assert figures.confusion(counts, ["$a$", "b"]) != figures.confusion(counts, ["a", "b"])
    assert figures.confusion(counts, ["$\\frac{", "b"]).startswith(PNG)


def test_metrics_of_two_classes_have_two_keys_in_mlflow(table: Path, tmp_path: Path) -> None:
    options = TrainOptions(data=str(table), target="$y$", n_estimators=5, no_tracking=True, model_dir=tmp_path / "models")
    metrics = flat_metrics(train(options, step).metrics)
    assert len({allowed_key(name) for name in metrics}) == len(metrics)


@pytest.mark.parametrize("name", ["accuracy", "f1_score_Iris-setosa", "precision_a b:c.d/e", "recall_日本"])
def test_a_name_that_mlflow_allows_is_its_key(name: str) -> None:
    assert allowed_key(name) == name


@pytest.mark.parametrize(
    "name", ["precision_<30", "precision_a/../b", "/x", "../x", "a//b", "a/", "x" * 251, "a\x00", "😀", "\udcff"]
)
def test_every_name_becomes_a_key_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    key = allowed_key(name)
    _validate_metric_name(key)
    assert len(key) <= 250
    assert key != name
    assert allowed_key(key) == key


def test_long_names_with_one_beginning_stay_apart() -> None:
    assert allowed_key("x" * 300 + "a") != allowed_key("x" * 300 + "b")
