"""A program and all its processes: how long until its first answer, how much memory, how long until nothing is left."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.waiting import until

SETTLED_CPU = 0.15
"""CPU seconds that a whole application uses in a second when nobody asks it."""


def members(session: int) -> Iterator[Path]:
    """The folders in /proc of the processes of a session."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(folder.name)) == session:
                yield folder


def pss_megabytes(session: int) -> float:
    """Memory of every process of a session, shared pages counted once."""
    total = 0
    for folder in members(session):
        with contextlib.suppress(OSError):
            total += int(re.findall(r"^Pss:\s+(\d+)", (folder / "smaps_rollup").read_text(), re.MULTILINE)[0])
    return total / 1024


def cpu_seconds(session: int) -> dict[str, float]:
    """CPU time used so far, by the name of the process."""
    used: dict[str, float] = {}
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in members(session):
        with contextlib.suppress(OSError, ValueError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            name = (folder / "cmdline").read_bytes().split(b"\0")[0].decode().rpartition("/")[2]
            used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
    return used


def flush(session: int) -> None:
    """Wait until what is started behind the first answer is over: further replicas, Ray's agents, their imports."""

    def idle() -> bool:
        before = sum(cpu_seconds(session).values())
        time.sleep(1)
        return sum(cpu_seconds(session).values()) - before < SETTLED_CPU

    until(idle, seconds=60, what="an application that is done with its start")


def life(command: Sequence[str], url: str, folder: Path, environment: Mapping[str, str]) -> dict[str, float]:
    """Start a server, wait for its first 200 at `url`, let it settle, end it with Ctrl-C."""
    with (folder / "life.log").open("wb") as log:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=dict(environment), cwd=folder, start_new_session=True)
        try:
            until(lambda: _answers(url), seconds=60, what=f"an answer of {command}")
            started = time.monotonic() - began
            flush(process.pid)  # what is still being imported belongs to the memory
            memory = pss_megabytes(process.pid)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.wait(60)
            until(lambda: not any(members(process.pid)), seconds=60, what="the end of every process")
            return {"start_seconds": started, "stop_seconds": time.monotonic() - began, "pss_megabytes": memory}
        finally:
            for member in members(process.pid):
                with contextlib.suppress(OSError):
                    os.kill(int(member.name), signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status == 200
    return False
