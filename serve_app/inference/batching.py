"""Rows that arrive in the same turn of the event loop, predicted in one call.

Most of a call goes into everything but the row, with scikit-learn and, a hundred times less, with ONNX Runtime. There is no timer:
a lone client waits for nobody, and while a call runs the next rows gather by themselves. How long a row would wait is known before
it is let in: what a call costs was seen while the model warmed up, and is corrected by what calls take now.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from concurrent.futures import Executor
from functools import partial

from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.inference.predictor import SLOW_SECONDS, TOGETHER_ROWS, Predictor

LONE_ROWS = 4
"""After a row of a quick predictor that nobody joined, so many are predicted right away before one looks for company again."""
THREAD_SECONDS = 0.01
"""A call that takes longer is made in a thread: the event loop must not stand still."""
CALL_SECONDS = 0.05
"""A call takes no more rows than it answers in about this time, so that who comes next is not kept waiting by one call."""

Asked = tuple[Matrix, asyncio.Future[Scores]]


class AdaptiveBatcher:
    """Gathers rows until the event loop comes round and the last call is over; used by one event loop."""

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._waiting: dict[Predictor, deque[Asked]] = {}
        self._rows = 0  # accepted and not yet answered
        self._due = False  # a call is under way, or will be in the next turn
        self._lone = 0  # rows of a quick predictor that are still predicted right away
        self._slowness = 1.0  # of calls now, compared with those while the model warmed up

    def takes(self, predictor: Predictor) -> bool:
        """Whether a row should come here, or is better predicted where it is."""
        if predictor.slow:
            return True
        if self._lone:
            self._lone -= 1
            return False
        return predictor.together

    def seconds_ahead(self, predictor: Predictor) -> float:
        """About how long a row that comes now would wait for those that came before."""
        if not self._rows:
            return 0.0
        calls = math.ceil(self._rows / self._most(predictor))
        alone = predictor.row_seconds - predictor.further_seconds
        return self._slowness * (calls * alone + self._rows * predictor.further_seconds)

    async def scores(self, predictor: Predictor, matrix: Matrix) -> Scores:
        """The scores of one row, shape (1, features), computed with whatever else waits for this predictor."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Scores] = loop.create_future()
        self._waiting.setdefault(predictor, deque()).append((matrix, future))
        if not self._due:
            self._due = True
            loop.call_soon(self._run, loop)
        self._rows += 1
        try:
            return await future
        finally:
            self._rows -= 1

    def _most(self, predictor: Predictor) -> int:
        """Rows in one call."""
        if not predictor.slow:
            return TOGETHER_ROWS
        left = CALL_SECONDS / self._slowness - predictor.row_seconds
        return 1 + int(min(max(0.0, left) / max(predictor.further_seconds, 1e-9), 1e6))

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        predictor, asked = next(iter(self._waiting.items()))
        taken = [asked.popleft() for _ in range(min(len(asked), self._most(predictor)))]
        if not asked:
            del self._waiting[predictor]
        self._lone = LONE_ROWS if len(taken) == 1 else 0
        rows = [row for row, _ in taken]
        futures = [future for _, future in taken]
        expected = predictor.seconds_of(len(taken))
        done: asyncio.Future[tuple[Scores, float]]
        if expected * self._slowness > THREAD_SECONDS:
            done = loop.run_in_executor(self._executor, _timed, predictor, rows)
            done.add_done_callback(partial(self._finish, loop, futures, expected))
            return
        done = loop.create_future()
        try:
            done.set_result(_timed(predictor, rows))
        except Exception as error:
            done.set_exception(error)
        self._finish(loop, futures, expected, done)

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        futures: list[asyncio.Future[Scores]],
        expected: float,
        done: asyncio.Future[tuple[Scores, float]],
    ) -> None:
        error = done.exception()
        if error is None:
            scores, seconds = done.result()
        if error is None and expected >= SLOW_SECONDS:
            self._slowness += 0.2 * (min(max(seconds / expected, 0.2), 10.0) - self._slowness)
        for place, future in enumerate(futures):
            if future.done():  # its client is gone
                continue
            if error is None:
                future.set_result(scores[place : place + 1])
            else:
                future.set_exception(error)
        self._due = bool(self._waiting)
        if self._due:
            loop.call_soon(self._run, loop)


def _timed(predictor: Predictor, rows: list[Matrix]) -> tuple[Scores, float]:
    started = time.perf_counter()
    return predictor.rows_scores(rows), time.perf_counter() - started
