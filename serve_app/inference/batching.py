"""Adaptive batching: one call predicts all rows that wait at the same time.

Most of the time of a call does not depend on the number of rows, with scikit-learn as well as with ONNX Runtime, whose calls take a
hundredth of the time. There is no timer: a single client does not wait, and the next rows gather while a call runs. The batcher
knows how long a row would wait before it accepts the row: the warm-up measured the cost of a call, and the time of recent calls
corrects it.
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
"""Number of rows that a quick predictor answers at once, without batching, after a row that was alone in its call."""
THREAD_SECONDS = 0.01
"""The batcher runs longer calls in a thread, so they do not block the event loop."""
CALL_SECONDS = 0.05
"""Approximate maximum time of one call. It limits the rows of a call, so later rows do not wait long."""

PendingRow = tuple[Matrix, asyncio.Future[Scores]]


class AdaptiveBatcher:
    """Gathers rows until the next iteration of the event loop and the end of the last call. Only one event loop may use it.

    It refers to a predictor only while rows wait for it, so the last row releases a replaced predictor.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._queues: dict[Predictor, deque[PendingRow]] = {}
        self._unanswered_rows = 0
        self._call_scheduled = False  # or running
        self._direct_rows = 0  # rows of a quick predictor that still skip batching
        self._slowdown = 1.0  # time of recent calls, relative to the warm-up

    def takes(self, predictor: Predictor) -> bool:
        """Whether the batcher takes the row; otherwise the caller predicts it at once."""
        if predictor.slow:
            return True
        if self._direct_rows:
            self._direct_rows -= 1
            return False
        return predictor.profile.batch_invariant

    def seconds_ahead(self, predictor: Predictor) -> float:
        """The approximate time in seconds that a new row waits for earlier rows."""
        if not self._unanswered_rows:
            return 0.0
        profile = predictor.profile
        calls = math.ceil(self._unanswered_rows / self._max_rows(predictor))
        call_seconds = profile.row_seconds - profile.extra_row_seconds
        return self._slowdown * (calls * call_seconds + self._unanswered_rows * profile.extra_row_seconds)

    async def scores(self, predictor: Predictor, matrix: Matrix) -> Scores:
        """The scores of one row, shape (1, features), from a call with the other rows that wait for this predictor."""
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
        """The maximum number of rows in one call."""
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
            if not future.done():  # otherwise the client has disconnected
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
        """Predict each row alone, because one row may have caused the failure and the others still need their answers."""
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
    """The scores of each row, or the error of the model for this row."""
    answers: list[Scores | BaseException] = []
    for row in rows:
        try:
            answers.append(predictor.row_scores(row))
        except Exception as error:
            answers.append(error)
    return answers
