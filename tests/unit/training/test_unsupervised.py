"""Models without a target: trained, judged by shares of their answers, compared, served."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest

from serve_app.artifacts.names import CARD, JOBLIB
from serve_app.artifacts.signature import Feature, Signature
from serve_app.artifacts.store import Store
from serve_app.errors import UsageError
from tests.support import tables
from tests.support.scoring import served
from training.comparison import Comparison
from training.pipeline import Outcome, train
from training.rules import Evidence, answers_differ, outliers_stay_as_rare
from training.train_options import TrainOptions
from training.unlabelled import AnswerShares, agreement, answer_shares

OUTLIERS = Signature((Feature("x"),), "outlier detection")
CLUSTERS = Signature((Feature("x"),), "clustering", (0, 1, 2), probabilistic=False)


def pumps(rows: int = 400) -> pd.DataFrame:
    """Two kinds of pumps, and twenty readings that are like neither."""
    random = np.random.default_rng(4)
    big = np.arange(rows) % 2
    table = pd.DataFrame(
        {
            "pressure": (random.normal(5, 0.5, rows) + 10 * big).round(2),
            "rpm": (random.normal(900, 30, rows) + 600 * big).round(0),
            "site": np.where(random.random(rows) < 0.5, "north", "south"),
        }
    )
    table.loc[::20, "pressure"] += 40.0
    return table


def run(folder: Path, **options: Any) -> Outcome:
    path = tables.written(pumps(), folder)
    values = {"no_tracking": True, **options}
    return train(TrainOptions(data=str(path), model_dir=folder / "models", **values), lambda _: nullcontext())


def stored(outcome: Outcome) -> Any:
    assert outcome.entry is not None
    return joblib.load(outcome.entry.folder / JOBLIB)


@pytest.mark.parametrize("estimator", ["isolation-forest", "one-class-svm"])
def test_outliers_are_served_as_the_estimator_flags_them(tmp_path: Path, estimator: str) -> None:
    outcome = run(tmp_path, task="outlier-detection", estimator=estimator, outlier_share=0.06)
    manifest = outcome.manifest
    assert manifest.onnx is not None
    assert manifest.onnx.available, manifest.onnx.reason
    assert 0.0 < outcome.metrics.scalars()["outlier_share"] < 0.2
    assert manifest.reference is not None
    assert sum(manifest.reference["target"]["counts"]) == manifest.reference["rows"] == 320
    model = stored(outcome)
    answers = served(Store(tmp_path / "models"), pumps())
    assert [answer["outlier"] for answer in answers] == (model.predict(pumps()) == -1).tolist()
    assert np.allclose([answer["score"] for answer in answers], model.decision_function(pumps()), atol=1e-5)
    odd = pumps()["pressure"] > 30
    assert np.mean([answer["outlier"] for answer, is_odd in zip(answers, odd, strict=True) if is_odd]) > (
        0.8 if estimator == "isolation-forest" else 0.4
    )


@pytest.mark.parametrize("estimator", ["k-means", "gaussian-mixture"])
def test_clusters_are_served_as_the_estimator_numbers_them(tmp_path: Path, estimator: str) -> None:
    outcome = run(tmp_path, task="clustering", estimator=estimator, clusters=3)
    manifest = outcome.manifest
    assert manifest.signature is not None
    assert manifest.signature.classes == (0, 1, 2)
    assert manifest.onnx is not None
    assert manifest.onnx.available, manifest.onnx.reason
    assert manifest.reference is not None
    assert sum(manifest.reference["classes"].values()) == pytest.approx(1.0)
    answers = served(Store(tmp_path / "models"), pumps())
    assert [answer["cluster"] for answer in answers] == stored(outcome).predict(pumps()).tolist()
    further = "probabilities" if estimator == "gaussian-mixture" else "distance"
    assert {tuple(answer) for answer in answers} == {("cluster", further)}


def test_the_card_says_that_nothing_is_known_of_the_truth(tmp_path: Path) -> None:
    run(tmp_path, task="clustering", clusters=2)
    outcome = run(tmp_path, task="clustering", clusters=2, random_state=tmp_seed(7))
    assert outcome.entry is not None
    assert outcome.comparison.compared
    assert outcome.comparison.agreement == pytest.approx(1.0)
    page = (outcome.entry.folder / CARD).read_text()
    assert "no true answer" in page
    assert "adjusted Rand index" in page
    assert "accuracy" not in page


def test_a_model_that_flags_many_more_rows_than_the_served_one_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path, task="outlier-detection", outlier_share=0.05).entry is not None
    outcome = run(tmp_path, task="outlier-detection", outlier_share=0.4)
    assert outcome.entry is None
    assert outcome.comparison.agreement is not None
    assert outcome.comparison.agreement < 0.95
    assert len(outcome.verdict.reasons) == 1
    assert run(tmp_path, task="outlier-detection", outlier_share=0.4, force=True).entry is not None


def test_another_task_than_that_of_the_served_model_is_not_compared(tmp_path: Path) -> None:
    assert run(tmp_path, task="outlier-detection").entry is not None
    outcome = run(tmp_path, task="clustering")
    assert outcome.entry is not None
    assert outcome.comparison.why == "the served model has another task"


def tmp_seed(value: int) -> Any:
    from training.train_options import OptionalInt

    return OptionalInt(value)


def evidence(new: AnswerShares, served_shares: AnswerShares | None = None) -> Evidence:
    comparison = Comparison(served_shares is not None, version="3", new=new, served=served_shares)
    return Evidence(metrics=new, comparison=comparison, floors={}, tolerance=0.0)


def test_a_model_that_answers_the_same_to_every_row_is_refused_unless_no_row_is_an_outlier() -> None:
    scores = np.array([-0.1, -0.2])
    assert list(answers_differ(evidence(answer_shares(scores, OUTLIERS))))
    assert not list(answers_differ(evidence(answer_shares(-scores, OUTLIERS))))
    assert list(answers_differ(evidence(answer_shares(np.array([[1.0], [1.0]]), CLUSTERS))))
    assert not list(answers_differ(evidence(answer_shares(np.array([[1.0], [2.0]]), CLUSTERS))))


@pytest.mark.parametrize(("share", "refused"), [(0.05, False), (0.14, False), (0.16, True), (0.0, False)])
def test_the_share_of_outliers_stays_near_that_of_the_served_model(share: float, refused: bool) -> None:
    new, old = (AnswerShares(100, {"outlier": value, "inlier": 1 - value}) for value in (share, 0.05))
    assert bool(list(outliers_stay_as_rare(evidence(new, old)))) == refused


def test_clusterings_agree_whatever_the_numbers_of_their_clusters_are() -> None:
    first, second = np.array(["0", "0", "1", "2"]), np.array(["2", "2", "0", "1"])
    assert agreement(first, second, CLUSTERS) == 1.0
    assert agreement(first, second, OUTLIERS) == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {"task": "clustering", "target": "rpm"},
        {"task": "clustering", "coverage": 0.9},
        {"task": "clustering", "threshold": 0.5},
        {"task": "clustering", "search": 3},
        {"task": "clustering", "calibrate": "sigmoid"},
        {"task": "clustering", "estimator": "isolation-forest"},
        {"task": "clustering", "estimator": "logistic-regression"},
        {"task": "clustering", "outlier_share": 0.1},
        {"task": "outlier-detection", "clusters": 3},
        {"task": "outlier-detection", "outlier_share": 0.9},
        {"task": "outlier-detection", "estimator": "one-class-svm", "n_estimators": 5},
        {"target": "rpm", "clusters": 3},
        {"target": "rpm", "estimator": "k-means"},
        {"task": "clustering", "drop": ["pressure", "rpm", "site"]},
    ],
    ids=str,
)
def test_flags_that_do_not_fit_the_task_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run(tmp_path, **options)
    assert not (tmp_path / "models").exists()


def test_a_task_without_a_target_needs_a_table() -> None:
    with pytest.raises(UsageError):
        TrainOptions(task="clustering")
