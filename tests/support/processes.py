"""The processes of a running application: found by what they are, killed and frozen by their id."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from tests.support.waiting import until

OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")
"""Variables of the make that may have started the tests; another make must not inherit them."""


def of_session(session: int) -> dict[int, str]:
    """Every living process of this session, which Ray's are too, and its command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if os.getsid(int(folder.name)) == session and state(int(folder.name)) != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (ProcessLookupError, FileNotFoundError):
                continue
    return found


def replicas(session: int) -> list[int]:
    return sorted(pid for pid, command in of_session(session).items() if command.startswith("ray::ServeReplica:iris-api"))


def haproxies(session: int) -> list[int]:
    return sorted(pid for pid, command in of_session(session).items() if "haproxy" in command.split(" ")[0])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: state(pid) in ("", "Z"), what=f"the end of process {pid}")


def kill_session(session: int) -> None:
    """Kill what is left of a session: programs that Ray started in process groups of their own are in it too."""
    for pid in of_session(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return  # it was replaced meanwhile


def state(pid: int) -> str:
    """The letter of its state; empty when it is gone."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pids: Iterable[int]) -> set[int]:
    """Those of the processes that have not ended."""
    return {pid for pid in pids if state(pid) not in ("", "Z")}


def resident(pid: int) -> int:
    """Bytes of memory in use."""
    pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
