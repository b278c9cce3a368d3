"""The threshold of a classifier of two classes: how it is decided, and that everything which answers applies it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.store import Store
from serve_app.batch.pool import in_process
from serve_app.batch.run import score
from serve_app.batch.score_options import ScoreOptions
from serve_app.errors import UsageError
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import open_predictor
from tests.support import tables
from tests.support.apps import HEADERS, client_of
from tests.support.scoring import as_answers, results, served
from training.pipeline import Outcome, train
from training.threshold import cheapest
from training.train_options import TrainOptions


def rare(rows: int = 400) -> pd.DataFrame:
    """A table in which one row of eight is `late`, and hard to tell from the others."""
    random = np.random.default_rng(3)
    late = random.random(rows) < 0.125
    return pd.DataFrame(
        {"distance": (random.normal(0, 1, rows) + 1.2 * late).round(3), "state": np.where(late, "late", "on time"), "again": late}
    )


def run(folder: Path, target: str = "state", **options: Any) -> Outcome:
    table = rare().drop(columns=({"state", "again"} - {target}).pop())
    values = {"estimator": "logistic-regression", "no_tracking": True, "tolerance": 1.0, **options}
    path = tables.written(table, folder)
    return train(TrainOptions(data=str(path), target=target, model_dir=folder / "models", **values), lambda _: nullcontext())


def current(folder: Path) -> Bundle:
    bundle = Store(folder / "models").current()
    assert bundle is not None
    return bundle


@pytest.mark.parametrize("backend", ["onnx", "scikit-learn"])
@pytest.mark.parametrize("positive", ["late", "on time"])
def test_every_way_to_an_answer_applies_the_threshold(tmp_path: Path, positive: str, backend: Any) -> None:
    threshold = 0.2 if positive == "late" else 0.9
    outcome = run(tmp_path, threshold=threshold, positive_class=positive)
    assert outcome.entry is not None
    store, table = Store(tmp_path / "models"), rare().drop(columns=["again", "state"])
    policy = LoadPolicy(allow_joblib=True, backend=backend, verify=None)
    assert open_predictor(current(tmp_path), policy).kind == backend
    answers = served(store, table, policy=policy)
    other = {"late": "on time", "on time": "late"}[positive]
    for answer in answers:
        share = answer["probabilities"]
        assert answer["prediction"] == (positive if share[positive] >= threshold else other)
        assert answer["confidence"] == share[answer["prediction"]]
    assert any(answer["confidence"] < 0.5 for answer in answers)
    with client_of(store, policy=policy) as client:
        rows = table.to_dict("records")
        assert [client.post("/predict", json=row, headers=HEADERS).json() for row in rows[:60]] == answers[:60]
        document = client.get("/model", headers=HEADERS).json()
    assert (document["signature"]["threshold"], document["signature"]["positive"]) == (threshold, positive)
    path = tables.written(table, tmp_path, "again.csv")
    options = ScoreOptions(data=str(path), out=str(tmp_path / "out"), model_dir=tmp_path / "models", prefer=backend)
    score(options, lambda _: nullcontext(), in_process)
    assert as_answers(results(tmp_path / "out")) == answers


def test_metrics_card_and_manifest_are_those_of_the_threshold(tmp_path: Path) -> None:
    plain, lowered = run(tmp_path, force=True), run(tmp_path, threshold=0.15, positive_class="late")
    recall = [outcome.metrics.to_dict()["per_class"]["late"]["recall"] for outcome in (plain, lowered)]
    assert recall[1] > recall[0]
    assert plain.metrics.to_dict()["roc_auc"] == lowered.metrics.to_dict()["roc_auc"]
    bundle = current(tmp_path)
    assert bundle.manifest.decision == {"positive": "late", "threshold": 0.15}
    assert bundle.metrics["per_class"]["late"]["recall"] == recall[1]
    assert b"0.15" in (tmp_path / "models" / "bundles" / f"{bundle.version}-{bundle.digest}" / "card.html").read_bytes()


def test_costs_decide_the_threshold_without_the_held_out_rows(tmp_path: Path) -> None:
    outcome = run(tmp_path, cost_false_positive=1.0, cost_false_negative=7.0, positive_class="late")
    decision = current(tmp_path).manifest.decision
    assert decision is not None
    assert decision["rows"] == outcome.manifest.data.rows - outcome.manifest.data.held_out  # type: ignore[union-attr, operator]
    assert 0.05 < decision["threshold"] < 0.3  # calibrated probabilities would give 1 / 8
    signature = outcome.manifest.signature
    assert signature is not None
    assert signature.threshold == decision["threshold"]
    dear = run(tmp_path, cost_false_positive=7.0, cost_false_negative=1.0, positive_class="on time")
    assert dear.manifest.decision is not None
    assert dear.manifest.decision["threshold"] > 0.5


def test_classes_of_other_kinds_have_a_positive_one(tmp_path: Path) -> None:
    outcome = run(tmp_path, target="again", threshold=0.2)
    assert outcome.manifest.decision == {"positive": True, "threshold": 0.2}
    assert run(tmp_path, target="again", threshold=0.9, positive_class="false").manifest.decision == {
        "positive": False,
        "threshold": 0.9,
    }


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=2),
    st.sampled_from([0.2, 1.0, 3.0, 10.0]),
)
def test_no_other_threshold_costs_less(rows: list[tuple[float, bool]], missed: float) -> None:
    probabilities, truth = np.array([share for share, _ in rows]), np.array([label for _, label in rows])

    def cost(threshold: float) -> float:
        predicted = probabilities >= threshold
        return float(np.sum(predicted & ~truth) + missed * np.sum(~predicted & truth))

    threshold, least = cheapest(probabilities, truth, 1.0, missed)
    assert 0.0 < threshold <= 1.0
    assert cost(threshold) == pytest.approx(least)
    assert least <= min(cost(other) for other in np.linspace(0.01, 0.99, 99)) + 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"threshold": 0.3, "cost_false_positive": 1.0, "cost_false_negative": 1.0},
        {"cost_false_positive": 1.0},
        {"cost_false_positive": 1.0, "cost_false_negative": -1.0},
        {"cost_false_positive": 1.0, "cost_false_negative": float("inf")},
        {"positive_class": "late"},
    ],
)
def test_flags_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainOptions(**options)


def test_a_threshold_needs_two_classes_one_of_them_named_and_probabilities(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="never"):
        run(tmp_path, threshold=0.3, positive_class="never")
    options: dict[str, Any] = {"model_dir": tmp_path / "models", "no_tracking": True, "threshold": 0.3}
    with pytest.raises(UsageError, match="3 classes"):
        train(TrainOptions(**options), lambda _: nullcontext())
    houses = tables.written(tables.houses(), tmp_path, "houses.csv")
    with pytest.raises(UsageError, match="a regression"):
        train(TrainOptions(data=str(houses), target="price", **options), lambda _: nullcontext())
    with pytest.raises(UsageError, match="probabilities"):
        run(tmp_path, threshold=0.3, estimator="sklearn.linear_model:RidgeClassifier")


def test_a_manifest_without_a_threshold_has_no_such_key(tmp_path: Path) -> None:
    outcome = run(tmp_path, force=True)
    assert outcome.entry is not None
    document = orjson.loads((outcome.entry.folder / "metadata.json").read_bytes())
    assert not document["signature"].keys() & {"threshold", "positive"}
