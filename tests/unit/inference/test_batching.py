"""Rows of one turn of the event loop are predicted together, and nobody's answer is somebody else's."""

from __future__ import annotations

import asyncio
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.store import Store
from serve_app.inference.batching import CALL_SECONDS, LONE_ROWS, THREAD_SECONDS, AdaptiveBatcher
from serve_app.inference.predictor import Predictor, open_predictor
from serve_app.inference.slot import Slot
from serve_app.inference.warm_up import MAX_SHARED_ROWS, SLOW_SECONDS, warm_up
from tests.support.apps import HEADERS, client_of
from tests.support.backends import BrokenBackend, CountingBackend, counting
from tests.support.models import A_FLOWER, ROW_SECONDS, forest, iris, logistic, publish_iris, slow_model
from tests.support.policies import ALLOW_ALL


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    store = Store(tmp_path)
    publish_iris(store, KNeighborsClassifier().fit(*iris()))
    bundle = store.current()
    assert bundle is not None
    return open_predictor(bundle, ALLOW_ALL)


@pytest.mark.parametrize("row_seconds", [SLOW_SECONDS, THREAD_SECONDS * 2], ids=["inline", "in a thread"])
async def test_rows_that_wait_together_are_one_call_and_each_gets_its_own(predictor: Predictor, row_seconds: float) -> None:
    X, _ = iris()
    expected = predictor.scores(X)
    predictor, calls = counting(replace(predictor, profile=replace(predictor.profile, row_seconds=row_seconds)))
    batcher = AdaptiveBatcher()
    found = await asyncio.gather(*(batcher.scores(predictor, X[i : i + 1]) for i in range(len(X))))
    assert calls == [len(X)]
    assert np.array_equal(np.concatenate(found), expected)


async def test_a_lone_row_is_predicted_at_once(predictor: Predictor) -> None:
    X, _ = iris()
    predictor, calls = counting(predictor)
    batcher = AdaptiveBatcher()
    for i in (0, 75, 149):
        assert np.array_equal(await batcher.scores(predictor, X[i : i + 1]), predictor.scores(X[i : i + 1]))
    assert calls == [1] * 6


async def test_two_models_in_one_turn_do_not_mix(predictor: Predictor, tmp_path: Path) -> None:
    store = Store(tmp_path / "other")
    X, _ = iris()
    publish_iris(store, KNeighborsClassifier(n_neighbors=50).fit(*iris()))
    bundle = store.current()
    assert bundle is not None
    other = open_predictor(bundle, ALLOW_ALL)
    batcher = AdaptiveBatcher()
    one, two = await asyncio.gather(batcher.scores(predictor, X[70:71]), batcher.scores(other, X[70:71]))
    assert np.array_equal(one, predictor.scores(X[70:71]))
    assert np.array_equal(two, other.scores(X[70:71]))
    assert not np.array_equal(one, two)


async def test_an_error_reaches_every_waiting_request_and_the_next_call_works(predictor: Predictor) -> None:
    X, _ = iris()
    broken = replace(predictor, backend=BrokenBackend())
    batcher = AdaptiveBatcher()
    results = await asyncio.gather(*(batcher.scores(broken, X[i : i + 1]) for i in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError] * 3
    assert np.array_equal(await batcher.scores(predictor, X[:1]), predictor.scores(X[:1]))


class FailingBackend(CountingBackend):
    """Fails in every call that holds a row whose first value is negative."""

    def scores(self, matrix: Matrix) -> Scores:
        scores = super().scores(matrix)
        if (matrix[:, 0] < 0).any():
            raise ValueError("negative")
        return scores


async def test_a_row_that_makes_the_model_fail_leaves_the_others_their_answers(predictor: Predictor) -> None:
    X = iris()[0][:5].copy()
    X[2, 0] = -1.0
    backend = FailingBackend(predictor.backend)
    batcher = AdaptiveBatcher()
    failing = replace(predictor, backend=backend)
    results = await asyncio.gather(*(batcher.scores(failing, X[i : i + 1]) for i in range(5)), return_exceptions=True)
    assert backend.calls == [5, 1, 1, 1, 1, 1]
    assert [isinstance(result, ValueError) for result in results] == [False, False, True, False, False]
    expected = predictor.scores(X)
    found = [result for result in results if not isinstance(result, BaseException)]
    assert np.array_equal(np.concatenate(found), expected[[0, 1, 3, 4]])
    assert np.array_equal(await batcher.scores(predictor, X[:1]), expected[:1])


async def test_a_client_that_went_away_leaves_the_others_their_answers(predictor: Predictor) -> None:
    X, _ = iris()
    batcher = AdaptiveBatcher()
    gone = asyncio.create_task(batcher.scores(predictor, X[:1]))
    here = asyncio.create_task(batcher.scores(predictor, X[75:76]))
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
    assert quick.profile.batch_invariant
    quick, calls = counting(quick)
    for together in (2, 3, 7, MAX_SHARED_ROWS, len(X)):
        batcher = AdaptiveBatcher()
        assert batcher.takes(quick)
        found = await asyncio.gather(*(batcher.scores(quick, X[i : i + 1]) for i in range(together)))
        assert all(np.array_equal(one, other) for one, other in zip(found, alone, strict=False))
    assert max(calls) == MAX_SHARED_ROWS
    assert all(rows % quick.profile.batch_multiple == 0 for rows in calls)


async def test_after_a_lone_row_the_next_ones_do_not_wait_for_company(quick: Predictor) -> None:
    X, _ = iris()
    batcher = AdaptiveBatcher()
    await batcher.scores(quick, X[:1])
    assert [batcher.takes(quick) for _ in range(LONE_ROWS + 2)] == [False] * LONE_ROWS + [True] * 2
    await asyncio.gather(*(batcher.scores(quick, X[i : i + 1]) for i in range(2)))
    assert batcher.takes(quick)


class CompanyBackend(CountingBackend):
    """A row's scores depend on how many rows share its call."""

    def scores(self, matrix: Matrix) -> Scores:
        return super().scores(matrix) + 1e-16 * len(matrix)


def test_rows_of_a_model_that_computes_them_differently_in_company_are_left_alone(quick: Predictor) -> None:
    backend = CompanyBackend(quick.backend)
    profile = warm_up(backend, quick.signature)
    assert (profile.batch_multiple, profile.batch_invariant) == (1, False)
    assert not AdaptiveBatcher().takes(replace(quick, backend=backend, profile=profile))


# --- models that are slow for each row


@pytest.fixture
def slow(tmp_path: Path) -> Store:
    store = Store(tmp_path / "slow")
    publish_iris(store, slow_model())
    return store


def opened(store: Store) -> Predictor:
    bundle = store.current()
    assert bundle is not None
    return open_predictor(bundle, ALLOW_ALL)


async def test_a_call_takes_no_more_rows_than_it_answers_in_a_short_time(slow: Store) -> None:
    predictor = opened(slow)
    X, _ = iris()
    predictor, calls = counting(predictor)
    batcher = AdaptiveBatcher()
    found = await asyncio.gather(*(batcher.scores(predictor, X[i : i + 1]) for i in range(12)))
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


async def test_a_replaced_predictor_is_released_with_its_last_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    slot = Slot(store, policy=ALLOW_ALL)
    batcher = AdaptiveBatcher()
    X, _ = iris()
    replaced = []
    for estimator in (logistic(0.5), forest(), logistic(2.0)):
        publish_iris(store, estimator, onnx=True)
        assert slot.refresh()
        assert slot.predictor is not None
        await asyncio.gather(*(batcher.scores(slot.predictor, X[i : i + 1]) for i in range(3)))
        replaced.append(weakref.ref(slot.predictor))
    gc.collect()
    assert [reference() is slot.predictor for reference in replaced] == [False, False, True]
    assert [reference() for reference in replaced[:-1]] == [None, None]
