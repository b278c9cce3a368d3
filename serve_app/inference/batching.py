"""Adaptive batching: rows that wait at the same time are predicted in one call.

Most of a call goes into everything but the row, with scikit-learn and, a hundred times less, with ONNX Runtime. There is no timer:
a single client does not wait, and while a call runs the next rows gather. How long a row would wait is known before it is
accepted: the cost of a call was measured while the model warmed up, and is corrected by the time that calls take now.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.inference.predictor import Predictor
from serve_app.inference.warm_up import MAX_SHARED_ROWS, SLOW_SECONDS

LONE_ROWS = 4
"""After a row of a quick predictor that shared its call with no other, so many rows are predicted at once, without batching."""
THREAD_SECONDS = 0.01
"""A call that takes longer is made in a thread: the event loop must not stand still."""
CALL_SECONDS = 0.05
"""A call takes no more rows than it answers in about this time, so that later rows do not wait long for one call."""

PendingRow = tuple[Matrix, asyncio.Future[Scores]]


class AdaptiveBatcher:
    """Gathers rows until the event loop comes round and the last call is over; used by one event loop.

    It refers to a predictor only while rows wait for it, so that a replaced predictor is released with its last row.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._queues: dict[Predictor, deque[PendingRow]] = {}
        self._unanswered_rows = 0
        self._call_scheduled = False  # or under way
        self._direct_rows = 0  # so many rows of a quick predictor are still predicted without batching
        self._slowdown = 1.0  # of calls now, compared with those while the model warmed up

    def takes(self, predictor: Predictor) -> bool:
        """Whether a row should come here; otherwise the caller predicts it at once."""
        if predictor.slow:
            return True
        if self._direct_rows:
            self._direct_rows -= 1
            return False
        return predictor.profile.batch_invariant

    def seconds_ahead(self, predictor: Predictor) -> float:
        """About how long a row that comes now would wait for those that came before, in seconds."""
        if not self._unanswered_rows:
            return 0.0
        profile = predictor.profile
        calls = math.ceil(self._unanswered_rows / self._max_rows(predictor))
        call_seconds = profile.row_seconds - profile.extra_row_seconds
        return self._slowdown * (calls * call_seconds + self._unanswered_rows * profile.extra_row_seconds)

    async def scores(self, predictor: Predictor, matrix: Matrix) -> Scores:
        """The scores of one row, shape (1, features), computed with the other rows that wait for this predictor."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Scores] = loop.create_future()
        self._queues.setdefault(predictor, deque()).append((matrix, future))
        if not self._call_scheduled:
            self._call_scheduled = True
            loop.call_soon(self._call, loop)
        self._unanswered_rows += 1
        try:
            return await future
        finally:
            self._unanswered_rows -= 1

    def _max_rows(self, predictor: Predictor) -> int:
        """Rows in one call."""
        if not predictor.slow:
            return MAX_SHARED_ROWS
        profile = predictor.profile
        seconds_left = CALL_SECONDS / self._slowdown - profile.row_seconds
        return 1 + int(min(max(0.0, seconds_left) / max(profile.extra_row_seconds, 1e-9), 1e6))

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        predictor, queue = next(iter(self._queues.items()))
        pending = [queue.popleft() for _ in range(min(len(queue), self._max_rows(predictor)))]
        if not queue:
            del self._queues[predictor]
        self._direct_rows = LONE_ROWS if len(pending) == 1 else 0
        rows = [row for row, _ in pending]
        futures = [future for _, future in pending]
        expected_seconds = predictor.seconds_of(len(pending))
        result: asyncio.Future[tuple[Scores, float]]
        if expected_seconds * self._slowdown > THREAD_SECONDS:
            result = loop.run_in_executor(self._executor, _timed_scores, predictor, rows)
            result.add_done_callback(partial(self._finish, loop, predictor, rows, futures, expected_seconds))
            return
        result = loop.create_future()
        try:
            result.set_result(_timed_scores(predictor, rows))
        except Exception as error:
            result.set_exception(error)
        self._finish(loop, predictor, rows, futures, expected_seconds, result)

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        predictor: Predictor,
        rows: list[Matrix],
        futures: list[asyncio.Future[Scores]],
        expected_seconds: float,
        result: asyncio.Future[tuple[Scores, float]],
    ) -> None:
        if result.exception() is not None:
            self._finish_failed(loop, predictor, rows, futures, result)
            return
        scores, seconds = result.result()
        if expected_seconds >= SLOW_SECONDS:
            self._slowdown += 0.2 * (min(max(seconds / expected_seconds, 0.2), 10.0) - self._slowdown)
        for position, future in enumerate(futures):
            if not future.done():  # else its client is gone
                future.set_result(scores[position : position + 1])
        self._call_next(loop)

    def _finish_failed(
        self,
        loop: asyncio.AbstractEventLoop,
        predictor: Predictor,
        rows: list[Matrix],
        futures: list[asyncio.Future[Scores]],
        result: asyncio.Future[tuple[Scores, float]],
    ) -> None:
        """One row may have made the model fail: each is predicted alone, so that the others get their answers."""
        error = result.exception()
        assert error is not None
        if len(rows) == 1:
            self._answer(loop, futures, [error])
            return
        alone = loop.run_in_executor(self._executor, _each_alone, predictor, rows)
        alone.add_done_callback(
            lambda done: self._answer(loop, futures, [error] * len(rows) if done.exception() else done.result())
        )

    def _answer(
        self, loop: asyncio.AbstractEventLoop, futures: list[asyncio.Future[Scores]], answers: Sequence[Scores | BaseException]
    ) -> None:
        for future, answer in zip(futures, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._call_next(loop)

    def _call_next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_scheduled = bool(self._queues)
        if self._call_scheduled:
            loop.call_soon(self._call, loop)


def _timed_scores(predictor: Predictor, rows: list[Matrix]) -> tuple[Scores, float]:
    started = time.perf_counter()
    return predictor.rows_scores(rows), time.perf_counter() - started


def _each_alone(predictor: Predictor, rows: list[Matrix]) -> list[Scores | BaseException]:
    """The scores of each row, or the error that it makes."""
    answers: list[Scores | BaseException] = []
    for row in rows:
        try:
            answers.append(predictor.row_scores(row))
        except Exception as error:
            answers.append(error)
    return answers
