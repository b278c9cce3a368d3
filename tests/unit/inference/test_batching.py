"""Rows of one turn of the event loop are predicted together, and nobody's answer is somebody else's."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.store import Store
from serve_app.inference.batching import CALL_SECONDS, LONE_ROWS, THREAD_SECONDS, AdaptiveBatcher
from serve_app.inference.predictor import SLOW_SECONDS, TOGETHER_ROWS, Predictor, open_predictor, warm_up
from tests.support.apps import HEADERS, client_of
from tests.support.models import A_FLOWER, ROW_SECONDS, forest, iris, logistic, publish_iris, slow_model


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


@pytest.mark.parametrize("row_seconds", [SLOW_SECONDS, THREAD_SECONDS * 2], ids=["inline", "in a thread"])
async def test_rows_that_wait_together_are_one_call_and_each_gets_its_own(predictor: Predictor, row_seconds: float) -> None:
    X, _ = iris()
    expected = predictor.scores(X)
    calls = counting(predictor)
    predictor.row_seconds = row_seconds
    turn = AdaptiveBatcher()
    found = await asyncio.gather(*(turn.scores(predictor, X[i : i + 1]) for i in range(len(X))))
    assert calls == [len(X)]
    assert np.array_equal(np.concatenate(found), expected)


async def test_a_lone_row_is_predicted_at_once(predictor: Predictor) -> None:
    X, _ = iris()
    calls = counting(predictor)
    turn = AdaptiveBatcher()
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
    turn = AdaptiveBatcher()
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
    turn = AdaptiveBatcher()
    found = await asyncio.gather(*(turn.scores(predictor, X[i : i + 1]) for i in range(3)), return_exceptions=True)
    assert [type(item) for item in found] == [RuntimeError] * 3
    predictor.scores = right
    assert np.array_equal(await turn.scores(predictor, X[:1]), right(X[:1]))


async def test_a_client_that_went_away_leaves_the_others_their_answers(predictor: Predictor) -> None:
    X, _ = iris()
    turn = AdaptiveBatcher()
    gone = asyncio.create_task(turn.scores(predictor, X[:1]))
    here = asyncio.create_task(turn.scores(predictor, X[75:76]))
    await asyncio.sleep(0)
    gone.cancel()
    assert np.array_equal(await here, predictor.scores(X[75:76]))


# --- models that are quick for each row


@pytest.fixture(params=["logistic", "forest"])
def quick(request: pytest.FixtureRequest, tmp_path: Path) -> Predictor:
    store = Store(tmp_path / "quick")
    publish_iris(store, logistic() if request.param == "logistic" else forest(), onnx=True)
    return opened(store)


async def test_quick_rows_share_calls_and_each_gets_bit_for_bit_what_it_gets_alone(quick: Predictor) -> None:
    X, _ = iris()
    alone = [quick.row_scores(X[i : i + 1]) for i in range(len(X))]
    assert quick.together
    calls = counting(quick)
    for together in (2, 3, 7, TOGETHER_ROWS, len(X)):
        turn = AdaptiveBatcher()
        assert turn.takes(quick)
        found = await asyncio.gather(*(turn.scores(quick, X[i : i + 1]) for i in range(together)))
        assert all(np.array_equal(one, other) for one, other in zip(found, alone, strict=False))
    assert max(calls) == TOGETHER_ROWS
    assert all(rows % quick.multiple == 0 for rows in calls)


async def test_after_a_lone_row_the_next_ones_do_not_wait_for_company(quick: Predictor) -> None:
    X, _ = iris()
    turn = AdaptiveBatcher()
    await turn.scores(quick, X[:1])
    assert [turn.takes(quick) for _ in range(LONE_ROWS + 2)] == [False] * LONE_ROWS + [True] * 2
    await asyncio.gather(*(turn.scores(quick, X[i : i + 1]) for i in range(2)))
    assert turn.takes(quick)


def test_rows_of_a_model_that_computes_them_differently_in_company_are_left_alone(quick: Predictor) -> None:
    scores = quick.scores
    quick.scores = lambda matrix: scores(matrix) + 1e-16 * len(matrix)
    warm_up(quick)
    assert (quick.multiple, quick.together) == (1, False)
    assert not AdaptiveBatcher().takes(quick)


# --- models that are slow for each row


@pytest.fixture
def slow(tmp_path: Path) -> Store:
    store = Store(tmp_path / "slow")
    publish_iris(store, slow_model())
    return store


def opened(store: Store) -> Predictor:
    bundle = store.current()
    assert bundle is not None
    return open_predictor(bundle)


async def test_a_call_takes_no_more_rows_than_it_answers_in_a_short_time(slow: Store) -> None:
    predictor = opened(slow)
    X, _ = iris()
    calls = counting(predictor)
    turn = AdaptiveBatcher()
    found = await asyncio.gather(*(turn.scores(predictor, X[i : i + 1]) for i in range(12)))
    assert max(calls) <= CALL_SECONDS / ROW_SECONDS
    assert np.array_equal(np.concatenate(found), np.concatenate([predictor.scores(X[i : i + 1]) for i in range(12)]))


def test_who_would_wait_longer_than_allowed_is_told_to_come_back_and_the_others_are_answered(slow: Store) -> None:
    client = client_of(slow, max_wait_seconds=5 * ROW_SECONDS)
    with client, ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: client.post("/predict", json=A_FLOWER, headers=HEADERS), range(60)))
        batch = client.post("/predict/batch", json={"instances": [A_FLOWER] * 3}, headers=HEADERS)
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert (refused.json()["code"], refused.headers["retry-after"]) == ("too_busy", "1")
    assert batch.status_code == 200  # batches have a queue of their own


def test_batches_are_refused_when_too_much_of_them_waits(slow: Store) -> None:
    client = client_of(slow, max_wait_seconds=ROW_SECONDS / 2)
    body = {"instances": [A_FLOWER] * 10}
    with client, ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: client.post("/predict/batch", json=body, headers=HEADERS).status_code, range(10)))
    assert set(answers) == {200, 429}
