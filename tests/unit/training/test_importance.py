"""What a model needs of a table is measured within a time, the likeliest columns first."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serve_app.artifacts.manifest import OnnxConversion, Verdict
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from tests.support import tables
from tests.support.models import iris_signature
from training import card, figures
from training import publication as bundles
from training.candidate import Candidate, fit_candidate
from training.convert import Converted
from training.dataset import load
from training.importance import Importance, measure, ranking
from training.publication import Publication
from training.train_options import TrainOptions

COLUMNS = 200
SIGNATURE = iris_signature()
NOT_COMPARED = {"compared": False, "why": "no model is served yet"}
NOT_CONVERTED = Converted(None, OnnxConversion(available=False, reason="not tried"))


def genes() -> pd.DataFrame:
    """120 rows; of the columns, the last three tell the class."""
    random = np.random.default_rng(1)
    kind = np.arange(120) % 2
    matrix = random.normal(size=(120, COLUMNS))
    matrix[:, -3:] += 3.0 * kind[:, None]
    return pd.DataFrame(matrix, columns=[f"gene_{at}" for at in range(COLUMNS)]).assign(kind=np.array(["a", "b"])[kind])


def fitted(folder: Path, estimator: str, table: Callable[[], pd.DataFrame] = genes, target: str = "kind") -> Candidate:
    params = {"n_estimators": 30} if estimator == "random-forest" else {}
    return fit_candidate(load(tables.written(table(), folder), target=target), estimator, params, random_state=1)


def measured(candidate: Candidate, seconds: float, delay: float = 0.0) -> Importance:
    backend = SklearnBackend(candidate.estimator, candidate.signature)

    def score(matrix: Any) -> Any:
        time.sleep(delay)
        return backend.scores(matrix)

    return measure(
        candidate.estimator, score, candidate.held_out, candidate.target, candidate.signature, random_state=1, seconds=seconds
    )


@pytest.mark.parametrize("estimator", ["random-forest", "logistic-regression"])
def test_columns_that_the_estimator_ranks_highest_come_first(tmp_path: Path, estimator: str) -> None:
    order = ranking(fitted(tmp_path, estimator).estimator, COLUMNS)
    assert set(order[:3]) == {COLUMNS - 3, COLUMNS - 2, COLUMNS - 1}
    assert sorted(order) == list(range(COLUMNS))


def test_the_weights_of_one_hot_columns_go_to_the_feature_that_they_come_from(tmp_path: Path) -> None:
    def table() -> pd.DataFrame:
        frame = genes()
        colours = np.array(["red", "green", "blue"])[np.arange(120) % 2 + (np.arange(120) % 10 == 0)]
        return frame[["gene_0", "gene_1"]].assign(colour=colours, gene_2=frame["gene_2"], kind=frame["kind"])

    for estimator in ("logistic-regression", "random-forest"):
        candidate = fitted(tmp_path, estimator, table)
        assert candidate.signature.names == ("gene_0", "gene_1", "colour", "gene_2")
        assert ranking(candidate.estimator, 4)[0] == 2


def test_an_estimator_that_ranks_nothing_is_measured_in_the_order_of_the_table(tmp_path: Path) -> None:
    assert ranking(fitted(tmp_path, "hist-gradient-boosting").estimator, COLUMNS) == list(range(COLUMNS))


def test_the_time_is_kept_and_the_likeliest_columns_are_measured(tmp_path: Path) -> None:
    candidate = fitted(tmp_path, "logistic-regression")
    started = time.monotonic()
    importance = measured(candidate, seconds=1.0, delay=0.02)
    assert time.monotonic() - started < 5.0
    assert 0 < len(importance.mean) < COLUMNS
    assert importance.mean.keys() <= {candidate.signature.names[at] for at in ranking(candidate.estimator, COLUMNS)[:10]}
    by_feature = importance.by_feature(candidate.signature.names)
    assert tuple(by_feature) == candidate.signature.names
    assert sum(value is not None for value in by_feature.values()) == len(importance.mean)


def test_a_table_of_few_columns_is_measured_whole_and_left_as_it_was(tmp_path: Path) -> None:
    candidate = fitted(tmp_path, "random-forest", tables.customers, "stays")
    before = candidate.held_out.copy()
    assert None not in measured(candidate, seconds=60.0).by_feature(candidate.signature.names).values()
    assert np.array_equal(candidate.held_out, before, equal_nan=True)


def test_no_time_measures_nothing(tmp_path: Path) -> None:
    importance = measured(fitted(tmp_path, "logistic-regression"), seconds=0.0)
    assert importance.mean == {}


def test_the_figure_shows_twenty_bars_however_many_columns_there_are() -> None:
    def height(count: int) -> int:
        names = [f"f{at}" for at in range(count)]
        losses = {name: at / count for at, name in enumerate(names)}
        png = figures.importances(Importance(losses, losses), SIGNATURE)
        size: int = struct.unpack(">I", png[20:24])[0]
        return size

    assert height(2) < height(20) == height(2000)


def test_card_and_manifest_tell_what_was_not_measured(tmp_path: Path) -> None:
    candidate = fitted(tmp_path, "logistic-regression")
    importance = measured(candidate, seconds=1.0, delay=0.05)
    part = Publication(
        candidate,
        TrainOptions(no_tracking=True),
        {},
        1,
        NOT_CONVERTED,
        plots={},
        importance=importance.by_feature(candidate.signature.names),
    )
    whole = replace(part, importance=dict.fromkeys(candidate.signature.names, 0.5))
    pages = []
    for publication in (part, whole):
        manifest = bundles.manifest(publication, Verdict(accepted=True, comparison=NOT_COMPARED), None)
        pages.append(card.render(manifest, candidate.metrics.to_dict(), {}).decode())
    sentence = f"{len(importance.mean)} of {COLUMNS} features"
    assert sentence in pages[0]
    assert f"of {COLUMNS} features" not in pages[1]
