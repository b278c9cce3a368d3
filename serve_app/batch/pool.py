"""The workers of a scoring: Ray processes on one or more machines, or this process for a small table.

Ray Data distributes the numbers of the parts to the workers and returns the result of each part. The workers do not use its readers
of CSV and Parquet, which read a file in one task, infer types for each block, and do not count rows.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from serve_app.batch.worker import Model, Scorer, ScoringTask
from serve_app.errors import BackendUnavailable, UsageError
from serve_app.ray_workers import workers
from serve_app.tables.location import Location
from serve_app.tables.splits import Part, Range, RangeScan, scan_range

OBJECT_STORE = 128 << 20
"""Bytes of the object store when the command starts Ray; the result of a part is a few numbers."""


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """`count` workers. `scan` returns the scans of ranges in order; `score` yields the result of each part when it is complete."""

    count: int
    scan: Callable[[Location, Sequence[Range]], list[RangeScan]]
    score: Callable[[ScoringTask, Model, Sequence[Part]], Iterator[dict[str, Any]]]


Pool = Callable[[], AbstractContextManager[WorkerPool]]


@contextmanager
def in_process() -> Iterator[WorkerPool]:
    """A pool of only this process."""

    def score(task: ScoringTask, model: Model, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
        scorer = Scorer(task, model)
        for part in parts:
            yield {name: values[0] for name, values in scorer({"number": [part.number]}).items()}

    yield WorkerPool(1, lambda location, ranges: [scan_range(location, byte_range) for byte_range in ranges], score)


@contextmanager
def on_ray(count: int | None = None) -> Iterator[WorkerPool]:
    """A pool of `count` worker processes, by default one for each CPU of the Ray cluster. Raises BackendUnavailable."""
    with workers(num_cpus=count, object_store_memory=OBJECT_STORE):
        import ray

        size = count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield WorkerPool(size, _scan, lambda task, model, parts: _score(task, model, parts, min(size, len(parts))))


def _scan(location: Location, ranges: Sequence[Range]) -> list[RangeScan]:
    import ray

    task = ray.remote(num_cpus=1)(scan_range)
    try:
        return list(ray.get([task.remote(location, byte_range) for byte_range in ranges]))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, UsageError | BackendUnavailable) else _worker_lost(error) from None


def _score(task: ScoringTask, model: Model, parts: Sequence[Part], count: int) -> Iterator[dict[str, Any]]:
    """The result of each part. Ray does not restart a worker, because it would run out of memory again."""
    import ray
    from ray import data

    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.wait_for_min_actors_s = 600
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers = data.from_items([{"number": part.number} for part in parts], override_num_blocks=len(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray 2.60 has no other way to set `max_restarts`
        results = numbers.map_batches(
            Scorer,
            fn_constructor_kwargs={"task": task, "model": model},
            batch_size=1,
            num_cpus=1,
            max_restarts=0,
            max_task_retries=0,
            compute=data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        )
    try:
        yield from results.iter_rows()
    except ray.exceptions.RayError as error:
        raise _worker_lost(error) from None


def _worker_lost(error: BaseException) -> BackendUnavailable:
    line = " ".join(str(error).split())[-200:]
    return BackendUnavailable(f"a worker ended ({line}): run the same command again to score the remaining parts")
