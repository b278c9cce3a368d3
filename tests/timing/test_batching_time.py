"""How long a batched row takes is measured, known in advance, and does not stop the event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sklearn.neighbors import KNeighborsClassifier

from serve_app.artifacts.store import Store
from serve_app.inference.batching import AdaptiveBatcher
from serve_app.inference.predictor import Predictor, open_predictor
from tests.support.models import ROW_SECONDS, iris, publish_iris, slow_model
from tests.support.policies import ALLOW_ALL


def opened(folder: Path, estimator: object) -> Predictor:
    store = Store(folder)
    publish_iris(store, estimator)
    bundle = store.current()
    assert bundle is not None
    return open_predictor(bundle, ALLOW_ALL)


@pytest.fixture
def slow(tmp_path: Path) -> Predictor:
    """A predictor whose every row takes ROW_SECONDS."""
    return opened(tmp_path / "slow", slow_model())


def test_the_cost_of_a_call_and_of_each_further_row_is_seen_while_warming_up(slow: Predictor, tmp_path: Path) -> None:
    assert ROW_SECONDS <= slow.profile.row_seconds < 2 * ROW_SECONDS
    assert 0.8 * ROW_SECONDS <= slow.profile.extra_row_seconds < 2 * ROW_SECONDS
    quick = opened(tmp_path / "quick", KNeighborsClassifier().fit(*iris()))
    assert quick.profile.extra_row_seconds < quick.profile.row_seconds / 4


async def test_the_event_loop_goes_on_while_slow_rows_are_predicted(slow: Predictor) -> None:
    X, _ = iris()
    batcher = AdaptiveBatcher()
    answers = asyncio.gather(*(batcher.scores(slow, X[i : i + 1]) for i in range(6)))
    turns = 0
    while not answers.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 12  # a loop that stood still would have come round once for each call


async def test_how_long_a_row_would_wait_is_known_before_it_is_let_in(slow: Predictor) -> None:
    X, _ = iris()
    batcher = AdaptiveBatcher()
    assert batcher.seconds_ahead(slow) == 0.0
    asked = [asyncio.create_task(batcher.scores(slow, X[i : i + 1])) for i in range(10)]
    await asyncio.sleep(0)
    assert 10 * ROW_SECONDS * 0.8 <= batcher.seconds_ahead(slow) < 10 * ROW_SECONDS * 3
    await asyncio.gather(*asked)
    assert batcher.seconds_ahead(slow) == 0.0
