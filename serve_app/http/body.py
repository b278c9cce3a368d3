"""The body of a request: read within limits of bytes, time and memory, and discarded when the request is refused.

When a server responds and closes the connection while the client still sends, the connection is reset and the client may lose the
response. The replica therefore sends the response at once, and then reads and discards the rest of the body for a while before it
closes the connection. A proxy closes the connection of its client as soon as it has the response. The replica therefore discards
the rest of a body that comes through a proxy before it responds.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import Executor
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from serve_app.fast_path import release_memory, resume, start
from serve_app.protocols.codec import Buffer

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Result = TypeVar("Result")

SMALL_BYTES = 64 * 1024
"""A refused body with a declared length up to this size is read and discarded, so that the connection can be used again."""
SMALL_SECONDS = 1.0
LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 5.0
"""Most bytes and seconds of a body that are read and discarded after an early response, before the connection is closed."""
PROXIED_BODIES = 32
"""Most bodies of one process that are discarded before their response, for a proxy; a further request gets its response at once."""
BUDGET_BODIES = 8
"""All bodies together may take the memory of so many bodies of the largest allowed size; a further request gets 429."""
WAIT_SECONDS = 0.1
"""Seconds that the message of a call may take to arrive before the budget counts it."""
RELEASE_SECONDS = LINGER_SECONDS + 1.0
"""Seconds after which the rest of all refused bodies is discarded, too."""
INFLATE_INPUT_BYTES = 64 * 1024
INFLATE_BYTES = 1024 * 1024
"""A compressed body is inflated in pieces of at most so many bytes. Between two pieces the body is held to the budget and the
limit, and the thread can inflate the bodies of other requests."""
GZIP = b"gzip"
CODINGS = {GZIP: 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""The content codings of a body and their `wbits` for zlib; `deflate` is the zlib format (RFC 9110, section 8.4.1.2)."""
_LARGE = SMALL_BYTES + 1


class BodyTooLarge(Exception):
    """The body, as sent or inflated, is larger than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(limit)


class BodyTimeout(Exception):
    """The body did not arrive within `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(seconds)


class BodyBudgetExceeded(Exception):
    """The bodies of all requests together take more memory than the budget allows."""


class BodyMiscoded(Exception):
    """The body is not exactly one complete stream of the content coding `coding` that its header names."""

    def __init__(self, coding: bytes) -> None:
        self.coding = coding
        super().__init__(coding)


class BodyBudget:
    """Counts the bytes of all bodies that this process holds in memory. A body of one small message is not counted.

    The heap does not shrink by itself after a flood of large bodies. Some time after the last of them, the budget returns freed
    memory to the system.
    """

    __slots__ = ("_most", "bytes", "discarding", "limit")

    def __init__(self, max_body_bytes: int) -> None:
        self.bytes = 0
        self.discarding = 0
        self.limit = max_body_bytes * BUDGET_BODIES
        self._most = 0

    def take(self, count: int) -> None:
        """Count bytes until `give_back`. Raises BodyBudgetExceeded."""
        self.bytes += count
        self._most = max(self._most, self.bytes)
        if self.bytes > self.limit:
            raise BodyBudgetExceeded

    def give_back(self, count: int) -> None:
        """Forget bytes that were taken."""
        self.bytes -= count
        if self.bytes == 0 and self._most > self.limit // 2:
            self._most = 0
            loop = asyncio.get_running_loop()
            loop.call_later(RELEASE_SECONDS, loop.run_in_executor, None, release_memory)


class Body:
    """The body of one request; `more` tells whether more of it is to come, `held` is the number of its bytes in the budget.

    `limit` is the largest size in bytes, as sent and as inflated. `wider` returns a larger limit and is called only for a body that
    exceeds `limit`, because nearly all bodies are small.
    """

    __slots__ = ("_budget", "_deadline", "_is_late", "_receive", "_received", "_seconds", "_wider", "held", "limit", "more")

    def __init__(
        self, receive: Receive, *, limit: int, seconds: float, budget: BodyBudget, wider: Callable[[], int] | None = None
    ) -> None:
        self._receive = receive
        self.limit = limit
        self._wider = wider
        self._seconds = seconds
        self._budget = budget
        self._deadline: float | None = None
        self._is_late = False
        self._received = 0
        self.held = 0
        self.more = True

    def hold(self, count: int) -> None:
        """Count bytes in the budget until `release`. Raises BodyBudgetExceeded."""
        self.held += count
        self._budget.take(count)

    def give_back(self, count: int) -> None:
        """Return bytes that `hold` counted to the budget, unless `release` already did."""
        if self.held:
            self.held -= count
            self._budget.give_back(count)

    def release(self) -> None:
        """Return all bytes of this body to the budget."""
        if self.held:
            self._budget.give_back(self.held)
            self.held = 0

    def check(self, size: int) -> None:
        """Raise BodyTooLarge when a body of so many bytes exceeds the limit."""
        if size > self.limit and self._wider is not None:
            self.limit, self._wider = max(self.limit, self._wider()), None
        if size > self.limit:
            raise BodyTooLarge(self.limit)

    async def receive(self) -> Message:
        """The next message of the server. A message that has already arrived costs no timer. Raises BodyTooLarge, BodyTimeout."""
        if not self.more:
            return await self._receive()  # the disconnect; an app may wait for it without a limit
        finished, value = start(self._receive())
        message: Message = value if finished else await self._within_deadline(resume(value))
        self._count(message)
        return message

    async def read(self) -> Buffer:
        """The whole body. Raises BodyTooLarge, BodyTimeout, BodyBudgetExceeded and ClientDisconnect."""
        whole: Buffer | None = None
        while whole is None or self.more:
            finished, value = start(self._receive())
            if not finished:  # one timer for the rest of the body
                return await self._within_deadline(self._read_on(whole, resume(value)))
            whole = self._with(whole, value)
        return whole

    async def _read_on(self, whole: Buffer | None, waiting: Awaitable[Message]) -> Buffer:
        whole = self._with(whole, await waiting)
        while self.more:
            whole = self._with(whole, await self._receive())
        return whole

    def _count(self, message: Message) -> None:
        """Count a message of the server. Raises BodyTooLarge."""
        self.more = message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > self.limit:
            self.check(self._received)

    def _with(self, whole: Buffer | None, message: Message) -> Buffer:
        """The content so far plus one message. Raises BodyTooLarge, BodyBudgetExceeded and ClientDisconnect."""
        self._count(message)
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        if whole is None and not self.more:
            if len(piece) > SMALL_BYTES:
                self.hold(len(piece))
            return piece
        self.hold(len(piece))
        if whole is None:
            return bytearray(piece)
        whole += piece  # joining a large body at the end would delay other requests for milliseconds
        return whole

    async def inflate(self, packed: Buffer, executor: Executor | None, coding: bytes = GZIP) -> Buffer:
        """Inflate a body that one of CODINGS compressed, in a thread, and return its content.

        The budget counts packed and inflated bytes. Raises BodyMiscoded, BodyTooLarge and BodyBudgetExceeded.
        """
        if not self.held:
            self.hold(len(packed))
        loop, inflater, content = asyncio.get_running_loop(), Inflater(packed, coding), bytearray()
        while not inflater.finished:
            try:
                piece = await loop.run_in_executor(executor, inflater.read)
            except (zlib.error, EOFError):
                raise BodyMiscoded(coding) from None
            self.check(len(content) + len(piece))  # before the budget: with a small limit, a single piece exceeds the budget
            self.hold(len(piece))
            content += piece
        self.release()
        self.hold(len(content))
        return content

    async def drain(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Read the rest of a refused body if it is small or comes through a proxy.

        Return True when a part is still unread, so that the response must close the connection.
        """
        if not self.more:
            return False
        length, expects_continue, is_proxied = _declared_length(headers)
        if length == 0:
            return False
        if is_proxied and not expects_continue and not self._is_late and self._budget.discarding < PROXIED_BODIES:
            self._budget.discarding += 1
            try:
                await self.linger()
            finally:
                self._budget.discarding -= 1
        elif self._received <= length <= SMALL_BYTES and not expects_continue and self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + SMALL_SECONDS
            with contextlib.suppress(BodyTooLarge, BodyTimeout):
                while self.more:
                    await self.receive()
        return self.more

    async def linger(self) -> None:
        """Read and discard the rest of the body, up to LINGER_BYTES and for LINGER_SECONDS."""
        left = LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.more and left > 0:
                    message = await self._receive()
                    self.more = message.get("more_body", False)
                    left -= len(message.get("body", b""))

    async def _within_deadline(self, reading: Awaitable[Result]) -> Result:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                return await reading
        except TimeoutError:
            self._is_late = True
            raise BodyTimeout(self._seconds) from None


class MessageBody(Body):
    """The message of a call. gRPC delivers it whole, so its size in memory is unknown until it has arrived.

    When a message has not arrived after WAIT_SECONDS, the budget counts `unread` bytes for it until it arrives. The default of
    `unread` is the limit.
    """

    __slots__ = ("_is_refused", "_unread")

    def __init__(self, receive: Receive, *, limit: int, seconds: float, budget: BodyBudget, unread: int | None = None) -> None:
        super().__init__(receive, limit=limit, seconds=seconds, budget=budget)
        self._unread = limit if unread is None else unread
        self._is_refused = False

    async def read(self) -> Buffer:
        """The message. Raises BodyTooLarge, BodyTimeout, BodyBudgetExceeded and ClientDisconnect."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._seconds) as timeout:
                timer = loop.call_later(WAIT_SECONDS, self._wait_longer, timeout)
                try:
                    message = await self._receive()
                finally:
                    timer.cancel()
        except TimeoutError:
            raise BodyBudgetExceeded if self._is_refused else BodyTimeout(self._seconds) from None
        self.release()
        return self._with(None, message)

    def _wait_longer(self, timeout: asyncio.Timeout) -> None:
        try:
            self.hold(self._unread)
        except BodyBudgetExceeded:
            self._is_refused = True
            timeout.reschedule(asyncio.get_running_loop().time())


class Inflater:
    """Inflates exactly one stream of one of CODINGS in pieces, so that its size can be checked before the next piece."""

    def __init__(self, packed: Buffer, coding: bytes = GZIP) -> None:
        self._packed = memoryview(packed)
        self._position = 0
        self._member = zlib.decompressobj(CODINGS[coding])
        self.finished = False

    def read(self) -> bytes:
        """The next piece: at most INFLATE_BYTES, from at most INFLATE_INPUT_BYTES. A piece before the end may be empty.

        Raises zlib.error for a broken stream and for bytes behind it, and EOFError for a truncated stream.
        """
        source = self._packed[self._position : self._position + INFLATE_INPUT_BYTES]
        piece = self._member.decompress(source, INFLATE_BYTES)
        self._position += len(source) - len(self._member.unconsumed_tail) - len(self._member.unused_data)
        if self._member.eof:
            if self._position < len(self._packed):
                raise zlib.error("bytes behind the stream")
            self.finished = True
        elif not source and not piece:
            raise EOFError
        return piece


def _declared_length(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int, bool, bool]:
    """The declared size of the body, whether the client waits for `100 Continue`, and whether a proxy sent the request."""
    length, expects_continue, is_proxied = 0, False, False
    for name, value in headers:
        if name == b"content-length":
            length = int(value) if value.isdigit() else _LARGE
        elif name == b"transfer-encoding":
            length = _LARGE
        elif name == b"expect":
            expects_continue = True  # a read would make the server ask the client for the body
        elif name == b"x-forwarded-for":
            is_proxied = True
    return length, expects_continue, is_proxied
