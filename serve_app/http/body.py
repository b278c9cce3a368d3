"""The body of a request: read within limits of bytes and of time, and let run out when nobody wants it.

A server that answers while its client is still sending, and then closes, resets the connection, and the answer may be lost with it.
So the answer goes out at once, and what still comes is read and forgotten for a while before the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator, Iterable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from serve_app.protocols.decode import Buffer

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

SMALL_BYTES = 64 * 1024
"""A body that is refused unread is still waited for when it says that it is this small: the connection can be used again then."""
SMALL_SECONDS = 1.0
LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 5.0
"""What is read and forgotten after an answer that did not wait for its body, before the connection is closed."""
_LARGE = SMALL_BYTES + 1
BUDGET_BODIES = 8
"""Bodies that arrive in pieces may take up the memory of so many of the largest allowed; whoever comes then has to come back."""


class TooLarge(Exception):
    """The body is over the limit."""


class TooSlow(Exception):
    """The body was not there in time."""


class TooMany(Exception):
    """Too many bodies are arriving at once."""


class BodyBudget:
    """Bytes of bodies that are still arriving, of all requests of this process together."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Body:
    """The body of one request; `more` is whether anything of it is still to come."""

    __slots__ = ("_deadline", "_held", "_limit", "_read", "_receive", "_seconds", "more")

    def __init__(self, receive: Receive, *, limit: int, seconds: float, held: BodyBudget) -> None:
        self._receive = receive
        self._limit = limit
        self._seconds = seconds
        self._held = held
        self._deadline: float | None = None
        self._read = 0
        self.more = True

    async def message(self) -> Message:
        """The next message of the server. Raises TooLarge and TooSlow; one that is there already costs no timer."""
        if not self.more:
            return await self._receive()  # the client's leaving, for which an app may wait as long as it likes
        steps = self._receive().__await__()
        try:
            waits_for = next(steps)
        except StopIteration as there:
            message: Message = there.value
        else:
            message = await self._later(steps, waits_for)
        self.more = message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._read > self._limit:
            raise TooLarge
        return message

    async def all(self) -> Buffer:
        """The whole body. Raises TooLarge, TooSlow, TooMany and ClientDisconnect."""
        message = await self.message()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        first: bytes = message.get("body", b"")
        if not self.more:
            return first
        whole, held = bytearray(), self._held
        piece = first
        try:
            while True:
                whole += piece  # joined at the end, a large body would hold up other requests for milliseconds
                held.bytes += len(piece)
                if held.bytes > self._limit * BUDGET_BODIES:
                    raise TooMany
                if not self.more:
                    return whole
                message = await self.message()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece = message.get("body", b"")
        finally:
            held.bytes -= len(whole)

    async def is_left(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether an answer that wants no more of the body has to close the connection; waits for a small rest of it."""
        if not self.more:
            return False
        length, expects = 0, False
        for name, value in headers:
            if name == b"content-length":
                length = int(value) if value.isdigit() else _LARGE
            elif name == b"transfer-encoding":
                length = _LARGE
            elif name == b"expect":
                expects = True  # asking for the body would invite it
        if length == 0:
            return False
        if self._read <= length <= SMALL_BYTES and not expects and self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + SMALL_SECONDS
            with contextlib.suppress(TooLarge, TooSlow):
                while self.more:
                    await self.message()
        return self.more

    async def run_out(self) -> None:
        """Read on after the answer, bounded in bytes and in time, and forget what comes."""
        left = LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.more and left > 0:
                    message = await self._receive()
                    self.more = message.get("more_body", False)
                    left -= len(message.get("body", b""))

    async def _later(self, steps: Generator[Any, Any, Message], waits_for: Any) -> Message:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                return await _Begun(steps, waits_for)
        except TimeoutError:
            raise TooSlow from None


class _Begun:
    """An awaitable that was taken one step already, to see whether it has to wait."""

    def __init__(self, steps: Generator[Any, Any, Message], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Message]:
        try:
            yield self._waits_for
            return (yield from self._steps)
        finally:
            self._steps.close()
