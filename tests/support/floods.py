"""Clients that attack with bodies: connections that stall, and streams without end. They measure what they sent and received."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PIECE = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
"""A chunk of 64 KiB of a chunked body."""


@dataclass(slots=True)
class Flood:
    """What became of the connections of a flood: bytes that they sent, and the status lines that they received."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """The status of the first response of each connection; empty when the connection was closed without one."""
    seconds: list[float] = field(default_factory=list)
    """Seconds from the head of a request to the first byte of its response."""


def head(method: str, path: str, *headers: str, host: str = "x") -> bytes:
    """The head of a request with a chunked body."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Transfer-Encoding: chunked", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def flood(url: str, heads: Sequence[bytes], *, stalled: int, streams: int, seconds: float) -> Flood:
    """`stalled` connections send a head and one byte of the body; then `streams` send bodies for `seconds`.

    The connections take the heads in turn. A connection that the server closes is opened again.
    """
    result = Flood()
    stop = asyncio.Event()
    stalling = [asyncio.create_task(_stall(url, heads[number % len(heads)], result, stop)) for number in range(stalled)]
    await asyncio.sleep(1.0 if stalled else 0.0)  # the stalled connections come first
    end = time.monotonic() + seconds
    await asyncio.gather(*(_stream(url, heads[number % len(heads)], result, end) for number in range(streams)))
    stop.set()
    await asyncio.gather(*stalling)
    return result


async def hold(url: str, heads: Sequence[bytes], *, connections: int, work: Callable[[], object]) -> Flood:
    """Keep so many connections stalled after one byte of the body while `work` runs in a thread."""
    result = Flood()
    stop = asyncio.Event()
    stalling = [asyncio.create_task(_stall(url, heads[number % len(heads)], result, stop)) for number in range(connections)]
    await asyncio.sleep(0.5)  # all connections are open
    try:
        await asyncio.to_thread(work)
    finally:
        stop.set()
        await asyncio.gather(*stalling)
    return result


async def _stall(url: str, start: bytes, result: Flood, stop: asyncio.Event) -> None:
    """Send a head and a byte, and wait; again when the server has closed the connection."""
    while not stop.is_set():
        with contextlib.suppress(OSError):
            reader, writer = await _connect(url)
            try:
                await _write(writer, start + b"1\r\n \r\n", result)
                reading = asyncio.create_task(_read(reader, result))
                stopped = asyncio.create_task(stop.wait())
                await asyncio.wait((reading, stopped), return_when=asyncio.FIRST_COMPLETED)
                for task in (reading, stopped):
                    task.cancel()
                await asyncio.gather(reading, stopped, return_exceptions=True)
            finally:
                await _close(writer)
        await asyncio.sleep(0.02)


async def _stream(url: str, start: bytes, result: Flood, end: float) -> None:
    """Send a body without a pause until `end`; again when the server has closed the connection."""
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            reader, writer = await _connect(url)
            reading = asyncio.create_task(_read(reader, result))
            try:
                await _write(writer, start, result)
                while time.monotonic() < end:
                    async with asyncio.timeout(max(end - time.monotonic(), 0.001)):
                        await _write(writer, PIECE, result)
            except TimeoutError:
                pass
            finally:
                await _close(writer)
                await reading
        await asyncio.sleep(0.001)


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _write(writer: asyncio.StreamWriter, data: bytes, result: Flood) -> None:
    writer.write(data)
    result.sent += len(data)
    await writer.drain()


async def _read(reader: asyncio.StreamReader, result: Flood) -> None:
    """Count the status of the response, and read until the server closes the connection."""
    started = time.monotonic()
    status = b""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, ValueError):
        status = await reader.readline()
        result.seconds.append(time.monotonic() - started)
        result.statuses[status[9:12].decode("latin-1")] += 1
        while await reader.read(65536):
            pass


async def read_slowly(url: str, paths: Sequence[str], *, connections: int, work: Callable[[], object]) -> None:
    """Keep so many connections open that ask for these paths in turn and read nothing while `work` runs in a thread."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    sockets = []
    try:
        for number in range(connections):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            sockets.append(connection)
            await loop.sock_connect(connection, (parts.hostname, parts.port))
            await loop.sock_sendall(connection, f"GET {paths[number % len(paths)]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.to_thread(work)
    finally:
        for connection in sockets:
            connection.close()
