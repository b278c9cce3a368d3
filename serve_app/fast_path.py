"""Optimizations for speed and memory, in one place. Each part says what it buys and how that was measured.

Figures without another source are those of `docs/explanation/benchmarks.md` ("Settings, each with its reason"), with the way they
were made.
The flags of Ray Serve and of the allocator are in `rayserve/serve.env` and have their figures in the same tables: requests that
do not go through Serve's request wrapper, HAProxy instead of Serve's proxy in Python, and `MALLOC_ARENA_MAX=2`, without which an
idle replica grew by 80 KB a second because each of Ray's threads took an arena. The padding of rows is `inference/padding.py`.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import Any

# --- the hand-stepped coroutine

Suspended = tuple[Generator[Any, Any, Any], Any]
"""A coroutine that was taken one step, and what it waits for."""


def start(awaitable: Awaitable[Any]) -> tuple[bool, Any]:
    """Take the first step of an awaitable: (True, its result) when it had no need to wait, else (False, what `resume` takes).

    The message with the body of a request is nearly always there when it is asked for. A deadline around each `receive` would
    make and cancel a timer for each request; so the first step is taken without one, and only a `receive` that really waits gets
    its timer. `tests/hostile/test_bodies.py` proves that a body that has arrived costs no timer.
    """
    steps = awaitable.__await__()
    try:
        waits_for = next(steps)
    except StopIteration as stop:
        return True, stop.value
    return False, (steps, waits_for)


def resume(suspended: Suspended) -> Awaitable[Any]:
    """The rest of an awaitable that `start` suspended."""
    return _Resumed(*suspended)


class _Resumed:
    """An awaitable whose first step was taken already."""

    def __init__(self, steps: Generator[Any, Any, Any], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            yield self._waits_for
            return (yield from self._steps)
        finally:
            self._steps.close()


# --- joined writes

FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})
"""Headers from which uvicorn knows where a response ends."""
JOINED_BYTES = 64 * 1024
"""A longer body is not copied behind its head."""


def joined_writes(send: Callable[[Any], Awaitable[None]], cycle: Any) -> Callable[[Any], Awaitable[None]]:
    """The `send` of uvicorn's request `cycle`, with head and first piece of the body in one system call.

    Uvicorn writes head and body separately, and a write costs as much as a prediction: this saves one of the two system calls
    that a replica makes for a response. Uvicorn also looks at every header of a response with two regular expressions; here it gets
    only those of FRAMING, and the others are written behind its head: 6 searches for a response instead of 26. A header with a
    line break raises ValueError.
    """
    method = cycle.scope["method"]

    async def send_joined(message: Any) -> None:
        if message["type"] == "http.response.start" and method != "HEAD":  # uvicorn writes no body to it that a head could join
            headers = message["headers"]
            lines = [b"%b: %b\r\n" % header for header in headers if header[0] not in FRAMING]
            more = b"".join(lines)
            if more.count(b"\n") != len(lines) or more.count(b"\r") != len(lines):
                raise ValueError("a header of the response has a line break in it")
            cycle.transport = _JoiningTransport(cycle.transport, more)
            message = {**message, "headers": [header for header in headers if header[0] in FRAMING]}
        await send(message)

    return send_joined


class _JoiningTransport:
    """Stands in for the transport of one response: keeps the head until the body comes; what follows goes through."""

    __slots__ = ("_head", "_more", "_transport")

    def __init__(self, transport: Any, more: bytes) -> None:
        self._transport = transport
        self._head: bytes | None = b""
        self._more = more  # header lines that the server does not know of

    def write(self, data: bytes) -> None:
        if self._head == b"":
            self._head = b"%b%b\r\n" % (data[:-2], self._more)
            return
        head, self._head = self._head, None
        if head is None:
            self._transport.write(data)
        elif len(data) <= JOINED_BYTES:
            self._transport.write(head + data)
        else:
            self._transport.writelines((head, data))  # one system call too, without a copy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


# --- settings of the interpreter

SWITCH_SECONDS = 0.0002
GC_THRESHOLDS = (50_000, 20, 20)


def tune_interpreter() -> None:
    """Settings of a replica's Python, made once its first model is loaded.

    Objects that exist by then live as long as the process: freezing them, and collecting less often, spares the garbage
    collector from looking at them again and again, which only costs latency. A thread asks for Python's lock after SWITCH_SECONDS
    instead of 5 ms: Ray's main thread wants it a hundred times a second, and with the default it never asks under load and is
    woken in vain with each request (0.64 wake-ups for a request instead of 1.55). No figure of the garbage collector was kept.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_SECONDS)


# --- memory of large bodies and of replaced models

MMAP_BYTES = 4 * 1024 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def tune_allocator() -> None:
    """Let glibc's allocator ask the system for each block of more than MMAP_BYTES, and give it back when the block is freed.

    By default the allocator learns from each large block that is freed to take the next one from its heap, and a heap with holes
    does not shrink: after 60 bodies of 16 MB at once a replica kept up to 170 MB. `tests/hostile/test_bombs.py` measures it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other allocators have no such call
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * MMAP_BYTES)


def release_memory() -> None:
    """Give memory that was freed back to the system; for the moment after a model was replaced.

    The allocator of glibc learns from each large block that is freed to take the next one from its heap instead of asking the
    system, and a heap with holes does not shrink. With models of 43 MB replaced eleven times a process grew from 318 to 361 MB and
    stayed there; with this call after each swap it stayed at 317 MB. `tests/integration/test_model_memory.py` sees it in a replica
    under load.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other allocators have no such call
        trim(0)
