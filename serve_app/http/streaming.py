"""A response that begins before the body has ended: rows are answered while further rows arrive.

Rows are dropped as soon as they are answered, so memory does not grow with the body. A client may send its whole body before it
reads the response. The replica keeps reading, because otherwise both sides would wait forever. The answers count in the body budget
until the client reads them.
"""

from __future__ import annotations

import asyncio
import time

from starlette.requests import ClientDisconnect

from serve_app.http.body import Body, BodyBudgetExceeded, BodyTimeout, BodyTooLarge
from serve_app.http.prediction_service import PredictionStream
from serve_app.http.problems import problem_of
from serve_app.http.responses import CLOSE, DISCONNECTED, REQUEST_ID, SECURITY_HEADERS, HttpResponse, Send, problem_response
from serve_app.protocols.codec import Buffer, Codec
from serve_app.protocols.decode import PIECE_BYTES
from serve_app.telemetry.collector import MetricsCollector

_ERRORS = (BodyTooLarge, BodyTimeout, BodyBudgetExceeded)


class StreamedResponse:
    """Reads the body of one request and sends the answers to its rows.

    `seconds` is the time of their computation. A problem before the first answer becomes the whole response. A later problem
    becomes the last line of the response: an object with the field `error`.
    """

    def __init__(self, stream: PredictionStream, codec: type[Codec], body: Body, send: Send, collector: MetricsCollector) -> None:
        self._stream = stream
        self._codec = codec
        self._body = body
        self._send = send
        self._collector = collector
        self._waiting: asyncio.Queue[Buffer | None] = asyncio.Queue()
        self._writer: asyncio.Task[None] | None = None
        self.seconds = 0.0

    async def run(self, request_id: bytes | None) -> tuple[HttpResponse, bool]:
        """Answer all rows; return the response and whether its head was sent. The caller ends a response that has begun."""
        try:
            problem = await self._answer_all(request_id)
        except ClientDisconnect:
            problem = DISCONNECTED
        if self._writer is None:
            assert problem is not None  # a body without rows is a problem
            return problem, False
        if problem is not None and problem is not DISCONNECTED:
            self._waiting.put_nowait(b'{"error":%b}\n' % bytes(problem.body))
        self._waiting.put_nowait(None)
        await self._writer
        return HttpResponse(200, (), b"", self._stream.version, "" if problem is None else problem.error), True

    def cancel(self) -> None:
        """Stop sending when the server has cancelled the request."""
        if self._writer is not None:
            self._writer.cancel()

    async def _answer_all(self, request_id: bytes | None) -> HttpResponse | None:
        """Read and answer up to the end of the body or up to a problem, and return the problem."""
        more = True
        while more:
            try:
                message = await self._body.receive()
            except _ERRORS as error:
                return problem_response(problem_of(error), self._codec)
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece, more = memoryview(message.get("body", b"")), self._body.more
            for start in range(0, max(len(piece), 1), PIECE_BYTES):
                last = not more and start + PIECE_BYTES >= len(piece)
                text = await self._timed(piece[start : start + PIECE_BYTES], last=last)
                if isinstance(text, HttpResponse):
                    return text
                try:
                    self._put(text, request_id)
                except BodyBudgetExceeded as error:
                    return problem_response(problem_of(error), self._codec)
        return None

    async def _timed(self, piece: memoryview, *, last: bool) -> Buffer | HttpResponse:
        started = time.perf_counter()
        self._collector.in_flight += 1
        try:
            return await self._stream.answer(piece, last=last)
        finally:
            self._collector.in_flight -= 1
            self.seconds += time.perf_counter() - started

    def _put(self, text: Buffer, request_id: bytes | None) -> None:
        if not text:
            return
        try:
            self._body.hold(len(text))
        except BodyBudgetExceeded:
            self._body.give_back(len(text))  # this answer is dropped; the answers before it still wait
            raise
        self._waiting.put_nowait(text)
        if self._writer is None:
            headers = [*self._stream.headers, *SECURITY_HEADERS, CLOSE]  # a part of the body may stay unread
            if request_id is not None:
                headers.append((REQUEST_ID, request_id))
            self._writer = asyncio.create_task(self._write(headers))

    async def _write(self, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        while (text := await self._waiting.get()) is not None:
            await self._send({"type": "http.response.body", "body": text, "more_body": True})
            self._body.give_back(len(text))
