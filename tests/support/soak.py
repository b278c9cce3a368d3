"""Many requests over few connections as fast as they are answered; every answer is compared, and the processes are measured.

The short form is in tests/faults, the long one in tests/soak (`make soak`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from tests.support import processes
from tests.support.figures import note
from tests.support.models import A_FLOWER
from tests.support.server import KEY, Server

CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process held after so many requests."""

    requests: int
    resident: int
    files: int
    threads: int


@dataclass(slots=True)
class Soak:
    """What became of the requests, and what each process (by its id) held meanwhile."""

    answered: int = 0
    closed: int = 0
    wrong: list[bytes] = field(default_factory=list)
    samples: dict[int, list[Sample]] = field(default_factory=dict)

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


def soak(server: Server, expected: str, *, requests: int, warm: int) -> tuple[Soak, float]:
    """Ask for so many predictions, which must be `expected`, and measure the application's processes meanwhile.

    Notes the figures; the record, and by how many bytes the memory of a replica grew per 100,000 requests after `warm` ones.
    """
    body = orjson.dumps(A_FLOWER)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    right = expected.encode()
    replicas = processes.replicas(server.process.pid)
    others = processes.haproxies(server.process.pid)
    port = int(server.url.rpartition(":")[2])
    record = Soak(samples={pid: [sample(pid, 0)] for pid in (*replicas, *others)})
    started = time.monotonic()
    asyncio.run(_run(record, port, f"{head}\r\n\r\n".encode() + body, right, requests, every=max(1, (requests - warm) // 50)))
    seconds = time.monotonic() - started
    assert processes.replicas(server.process.pid) == replicas, "a replica was replaced meanwhile"
    grown = max(record.growth(pid, after=warm) for pid in replicas)
    note(
        f"{record.answered} requests in {seconds:.0f} s, {len(record.wrong)} not answered right, "
        f"{record.closed} asked again on a new connection; memory of a replica "
        f"{grown / 1e6:+.2f} MB per 100,000 requests, file descriptors {record.spread('files', after=warm):+d}, "
        f"threads {record.spread('threads', after=warm):+d}"
    )
    return record, grown


async def _run(record: Soak, port: int, request: bytes, right: bytes, requests: int, *, every: int) -> None:
    left = requests

    async def ask() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left > 0:
            left -= 1
            writer.write(request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                answer = head + await reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
                answer = repr(error).encode()
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                if isinstance(error, asyncio.IncompleteReadError) and not error.partial:
                    record.closed += 1  # a kept connection that a replaced HAProxy closed: asked again, as any client does
                    left += 1
                    continue
            record.answered += 1
            if not (answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(right)) and len(record.wrong) < 1000:
                record.wrong.append(answer)
            if record.answered % every == 0:
                for pid, samples in record.samples.items():
                    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a HAProxy that was replaced
                        samples.append(sample(pid, record.answered))
        writer.close()

    await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
