"""Many requests over few connections as fast as they are answered; every response is compared, and the processes are measured.

The short form is in tests/faults, the long one in tests/soak (`make soak`).
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.support import processes
from tests.support.figures import note
from tests.support.load import Load, closed_loop, matches
from tests.support.models import A_FLOWER
from tests.support.server import KEY, Server
from tests.support.waiting import until

CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process held after so many requests."""

    requests: int
    resident: int
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Soak:
    """What became of the requests, and what each process (by its id) held meanwhile."""

    load: Load
    samples: dict[int, list[Sample]]

    def growth(self, pid: int, *, after: int) -> float:
        """Bytes of resident memory per 100,000 requests, by least squares over the samples after so many requests."""
        kept = [sample for sample in self.samples[pid] if sample.requests >= after]
        slope = np.polyfit([sample.requests for sample in kept], [sample.resident for sample in kept], 1)[0]
        return float(slope) * 100_000

    def spread(self, what: str, *, after: int) -> int:
        """By how much the number of `files` or `threads` rose after so many requests, in the process where it rose most."""
        kept = [[getattr(one, what) for one in samples if one.requests >= after] for samples in self.samples.values()]
        return max(int(numbers[-1] - numbers[0]) for numbers in kept if numbers)


def sample(pid: int, requests: int) -> Sample:
    process = Path("/proc") / str(pid)
    return Sample(requests, processes.resident(pid), len(os.listdir(process / "fd")), len(os.listdir(process / "task")))


def soak(server: Server, version: str, expected: str, *, requests: int, warm: int) -> tuple[Soak, float]:
    """Send so many predictions, whose response must be `expected` of `version`, and measure the application's processes meanwhile.

    Notes the figures. Returns the record, and by how many bytes the memory of a replica grew per 100,000 requests after the first
    `warm` ones.
    """
    replicas = processes.replicas(server.process.pid)
    samples = {pid: [sample(pid, 0)] for pid in (*replicas, *processes.haproxies(server.process.pid))}
    every = max(1, (requests - warm) // 50)
    started = time.monotonic()
    check = matches({version: expected})
    with closed_loop(server.url, A_FLOWER, key=KEY, clients=CONNECTIONS, requests=requests, check=check) as load:

        def has_finished(count: int) -> bool:
            return load.finished >= count

        for count in (*range(every, requests, every), requests):
            until(partial(has_finished, count), seconds=300, what=f"{every} responses")
            for pid, values in samples.items():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a HAProxy that was replaced
                    values.append(sample(pid, load.finished))
    seconds = time.monotonic() - started
    assert processes.replicas(server.process.pid) == replicas, "a replica was replaced meanwhile"
    record = Soak(load, samples)
    grown = max(record.growth(pid, after=warm) for pid in replicas)
    note(
        f"{load.finished} requests in {seconds:.0f} s, {load.failed} not answered right, "
        f"{load.reconnects} asked again on a new connection; memory of a replica "
        f"{grown / 1e6:+.2f} MB per 100,000 requests, file descriptors {record.spread('files', after=warm):+d}, "
        f"threads {record.spread('threads', after=warm):+d}"
    )
    return record, grown
