"""Rows that arrive in the same turn of the event loop, predicted in one call.

scikit-learn spends most of a call on everything but the row. There is no timer: a lone client waits for nobody, and while a
call runs the next rows gather by themselves.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial

import numpy as np

from serve_app.core.codec import Matrix, Scores
from serve_app.core.predictor import Predictor

MERGE_SECONDS = 0.0002
"""A predictor that needs longer for a row is asked for several at once."""

THREAD_SECONDS = 0.01
"""One that needs longer still is asked in a thread: the event loop must not stand still."""


class Turn:
    """Gathers rows until the event loop comes round; used by one event loop."""

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor
        self._waiting: dict[Predictor, list[tuple[Matrix, asyncio.Future[Scores]]]] = {}

    async def scores(self, predictor: Predictor, matrix: Matrix) -> Scores:
        """The scores of one row, shape (1, features), computed with whatever else waits for this predictor."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Scores] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._run, loop)
        self._waiting.setdefault(predictor, []).append((matrix, future))
        return await future

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting, self._waiting = self._waiting, {}
        for predictor, rows in waiting.items():
            matrix = np.concatenate([row for row, _ in rows])
            futures = [future for _, future in rows]
            if predictor.row_seconds > THREAD_SECONDS:
                job = loop.run_in_executor(self._executor, predictor.scores, matrix)
                job.add_done_callback(partial(_share, futures))
            else:
                done: asyncio.Future[Scores] = loop.create_future()
                try:
                    done.set_result(predictor.scores(matrix))
                except Exception as error:
                    done.set_exception(error)
                _share(futures, done)


def _share(futures: list[asyncio.Future[Scores]], done: asyncio.Future[Scores]) -> None:
    error = done.exception()
    for place, future in enumerate(futures):
        if future.done():  # its client is gone
            continue
        if error is None:
            future.set_result(done.result()[place : place + 1])
        else:
            future.set_exception(error)
