"""Rows of one turn of the event loop are predicted together, and nobody's answer is somebody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from serve_app.api.turn import MERGE_SECONDS, THREAD_SECONDS, Turn
from serve_app.core.codec import Matrix, Scores
from serve_app.core.predictor import Predictor, open_predictor
from serve_app.core.store import Store
from tests.support.models import iris, publish_iris


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    store = Store(tmp_path)
    publish_iris(store, KNeighborsClassifier().fit(*iris()))
    bundle = store.current()
    assert bundle is not None
    return open_predictor(bundle)


def counting(predictor: Predictor) -> list[int]:
    """The number of rows in each call that reaches the estimator."""
    calls: list[int] = []
    estimator = predictor.scores

    def scores(matrix: Matrix) -> Scores:
        calls.append(len(matrix))
        return estimator(matrix)

    predictor.scores = scores
    return calls


@pytest.mark.parametrize("row_seconds", [MERGE_SECONDS, THREAD_SECONDS * 2], ids=["inline", "in a thread"])
async def test_rows_that_wait_together_are_one_call_and_each_gets_its_own(predictor: Predictor, row_seconds: float) -> None:
    X, _ = iris()
    expected = predictor.scores(X)
    calls = counting(predictor)
    predictor.row_seconds = row_seconds
    turn = Turn()
    found = await asyncio.gather(*(turn.scores(predictor, X[i : i + 1]) for i in range(len(X))))
    assert calls == [len(X)]
    assert np.array_equal(np.concatenate(found), expected)


async def test_a_lone_row_is_predicted_at_once(predictor: Predictor) -> None:
    X, _ = iris()
    calls = counting(predictor)
    turn = Turn()
    for i in (0, 75, 149):
        assert np.array_equal(await turn.scores(predictor, X[i : i + 1]), predictor.scores(X[i : i + 1]))
    assert calls == [1] * 6


async def test_two_models_in_one_turn_do_not_mix(predictor: Predictor, tmp_path: Path) -> None:
    store = Store(tmp_path / "other")
    X, _ = iris()
    publish_iris(store, KNeighborsClassifier(n_neighbors=50).fit(*iris()))
    bundle = store.current()
    assert bundle is not None
    other = open_predictor(bundle)
    turn = Turn()
    one, two = await asyncio.gather(turn.scores(predictor, X[70:71]), turn.scores(other, X[70:71]))
    assert np.array_equal(one, predictor.scores(X[70:71]))
    assert np.array_equal(two, other.scores(X[70:71]))
    assert not np.array_equal(one, two)


async def test_an_error_reaches_everybody_who_waits_and_the_next_turn_works(predictor: Predictor) -> None:
    X, _ = iris()
    right = predictor.scores

    def broken(matrix: Matrix) -> Scores:
        raise RuntimeError("broken")

    predictor.scores = broken
    turn = Turn()
    found = await asyncio.gather(*(turn.scores(predictor, X[i : i + 1]) for i in range(3)), return_exceptions=True)
    assert [type(item) for item in found] == [RuntimeError] * 3
    predictor.scores = right
    assert np.array_equal(await turn.scores(predictor, X[:1]), right(X[:1]))


async def test_a_client_that_went_away_leaves_the_others_their_answers(predictor: Predictor) -> None:
    X, _ = iris()
    turn = Turn()
    gone = asyncio.create_task(turn.scores(predictor, X[:1]))
    here = asyncio.create_task(turn.scores(predictor, X[75:76]))
    await asyncio.sleep(0)
    gone.cancel()
    assert np.array_equal(await here, predictor.scores(X[75:76]))
