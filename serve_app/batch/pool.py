"""Who does the work: Ray's workers, on one machine or many, or this process where the table is small.

Ray Data's own readers are not used: they read a file in one task, guess the types of each block, and know no row numbers. It gets
the numbers of the parts as its rows, spreads them over the workers, and brings back what became of each.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from serve_app.batch.worker import Job, Model, Scorer
from serve_app.errors import BackendUnavailable, UsageError
from serve_app.ray_workers import workers
from serve_app.tables.location import Location
from serve_app.tables.splits import Part, Range, RangeScan, scan_range

OBJECT_STORE = 128 << 20
"""Bytes that a Ray of our own keeps for results in flight: ours are a few numbers a part."""


@dataclass(frozen=True, slots=True)
class WorkerPool:
    """`scan` of ranges gives what they hold, in order; `score` of parts tells how each went, as soon as it is known."""

    count: int
    scan: Callable[[Location, Sequence[Range]], list[RangeScan]]
    score: Callable[[Job, Model, Sequence[Part]], Iterator[dict[str, Any]]]


Pool = Callable[[], AbstractContextManager[WorkerPool]]


@contextmanager
def in_process() -> Iterator[WorkerPool]:
    """This process."""

    def scored(job: Job, model: Model, parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
        scorer = Scorer(job, model)
        for part in parts:
            yield {name: values[0] for name, values in scorer({"number": [part.number]}).items()}

    yield WorkerPool(1, lambda place, pieces: [scan_range(place, piece) for piece in pieces], scored)


@contextmanager
def on_ray(wanted: int | None = None) -> Iterator[WorkerPool]:
    """So many worker processes, else one for each CPU of the Ray that is joined."""
    with workers(num_cpus=wanted, object_store_memory=OBJECT_STORE):
        import ray

        count = wanted or max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield WorkerPool(count, _scan, lambda job, model, parts: _score(job, model, parts, min(count, len(parts))))


def _scan(place: Location, pieces: Sequence[Range]) -> list[RangeScan]:
    import ray

    task = ray.remote(num_cpus=1)(scan_range)
    try:
        return list(ray.get([task.remote(place, piece) for piece in pieces]))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, UsageError | BackendUnavailable) else _broken(error) from None


def _score(job: Job, model: Model, parts: Sequence[Part], count: int) -> Iterator[dict[str, Any]]:
    """No worker is started twice: one that ran out of memory would do so again, without end. What it left is for the next start."""
    import ray
    from ray import data

    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.wait_for_min_actors_s = 600
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    numbers = data.from_items([{"number": part.number} for part in parts], override_num_blocks=len(parts))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray 2.60 has no other way to say `max_restarts`
        told = numbers.map_batches(
            Scorer,
            fn_constructor_kwargs={"job": job, "model": model},
            batch_size=1,
            num_cpus=1,
            max_restarts=0,
            max_task_retries=0,
            compute=data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        )
    try:
        yield from told.iter_rows()
    except ray.exceptions.RayError as error:
        raise _broken(error) from None


def _broken(error: BaseException) -> BackendUnavailable:
    line = " ".join(str(error).split())[-200:]
    return BackendUnavailable(f"a worker ended ({line}): the same command goes on with what is left")
