"""Optimizations for speed and memory. Each part states its effect and how it was measured.

Figures without another source come from `docs/explanation/benchmarks.md` ("Settings, each with its reason"). That page also
describes the measurements.

`rayserve/serve.env` holds the flags of Ray Serve and of the allocator; their figures are in the same tables. With these flags
requests bypass Serve's request wrapper, and HAProxy replaces Serve's proxy in Python. `MALLOC_ARENA_MAX=2` limits the arenas:
before, an idle replica grew by 80 KB a second because each of Ray's threads took an arena. `inference/padding.py` pads rows.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import Any

# --- coroutines that are stepped by hand

Suspended = tuple[Generator[Any, Any, Any], Any]
"""A coroutine after its first step, and the object that it waits for."""


def start(awaitable: Awaitable[Any]) -> tuple[bool, Any]:
    """Take the first step of an awaitable: (True, its result) when it finished, else (False, the argument of `resume`).

    The message with the body of a request has nearly always arrived before `receive` is called. A deadline around each `receive`
    would create and cancel a timer for each request. The first step therefore runs without a timer, and only a `receive` that
    waits gets one. `tests/hostile/test_bodies.py` checks that a body that has arrived costs no timer.
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
    """An awaitable after its first step."""

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
"""Headers that tell uvicorn where a response ends."""
JOINED_BYTES = 64 * 1024
"""A longer body is not copied to join it with its head."""


def joined_writes(send: Callable[[Any], Awaitable[None]], cycle: Any) -> Callable[[Any], Awaitable[None]]:
    """The `send` of uvicorn's request `cycle` that writes the head and the first piece of the body in one system call.

    Uvicorn writes head and body separately, and one write costs as much as a prediction. This function saves one of the two system
    calls of a response. Uvicorn also searches every header of a response with two regular expressions. This function passes only
    the headers in FRAMING to uvicorn and appends the others to its head: 6 searches for a response instead of 26.

    `send` raises ValueError for a header with a line break.
    """
    method = cycle.scope["method"]

    async def send_joined(message: Any) -> None:
        if message["type"] == "http.response.start" and method != "HEAD":  # a response to HEAD has no body to join
            headers = message["headers"]
            lines = [b"%b: %b\r\n" % header for header in headers if header[0] not in FRAMING]
            more = b"".join(lines)
            if more.count(b"\n") != len(lines) or more.count(b"\r") != len(lines):
                raise ValueError("a header of the response contains a line break")
            cycle.transport = _JoiningTransport(cycle.transport, more)
            message = {**message, "headers": [header for header in headers if header[0] in FRAMING]}
        await send(message)

    return send_joined


class _JoiningTransport:
    """Replaces the transport of one response: keeps the head until the body arrives, and passes on every later write."""

    __slots__ = ("_head", "_more", "_transport")

    def __init__(self, transport: Any, more: bytes) -> None:
        self._transport = transport
        self._head: bytes | None = b""
        self._more = more  # header lines that uvicorn did not get

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
            self._transport.writelines((head, data))  # also one system call, without a copy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


# --- settings of the interpreter

SWITCH_SECONDS = 0.0002
GC_THRESHOLDS = (50_000, 20, 20)


def tune_interpreter() -> None:
    """Tune the Python interpreter of a replica after the replica has loaded its first model.

    Objects that exist then live as long as the process. The garbage collector would visit them again and again, which only costs
    latency. This function therefore freezes them and makes collections rarer; no figure of this effect was kept.

    A waiting thread requests the GIL after SWITCH_SECONDS instead of 5 ms. Ray's main thread needs the GIL a hundred times a
    second. With 5 ms it never requests the GIL under load, and each request wakes it in vain. SWITCH_SECONDS causes 0.64 wake-ups
    for a request instead of 1.55.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_SECONDS)


# --- memory of large bodies and of replaced models

MMAP_BYTES = 4 * 1024 * 1024
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def tune_allocator() -> None:
    """Make glibc's allocator request each block of more than MMAP_BYTES from the system, and return it when the block is freed.

    By default the allocator raises this threshold after it frees a large block, and takes the next large block from its heap. A
    heap with holes does not shrink: after 60 concurrent bodies of 16 MB a replica kept up to 170 MB.
    `tests/hostile/test_bombs.py` measures it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other allocators do not have this call
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * MMAP_BYTES)


def release_memory() -> None:
    """Return freed memory to the system. The app calls this after a swap and after a flood of large bodies.

    The allocator of glibc keeps freed blocks in its heap, and a heap with holes does not shrink (see `tune_allocator`). After
    eleven swaps of models of 43 MB a process grew from 318 to 361 MB and stayed there. With this call after each swap it stayed at
    317 MB. `tests/integration/test_model_memory.py` checks this in a replica under load.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other allocators do not have this call
        trim(0)
