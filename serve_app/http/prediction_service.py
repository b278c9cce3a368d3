"""From the body of a prediction to its response: codec -> slot -> batcher -> backend -> codec."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

import numpy as np

from serve_app.artifacts.matrix import PIECE_ROWS, Matrix, Scores, batched
from serve_app.errors import InvalidInput, NoModel, NotFinite
from serve_app.http.auth import Verdict
from serve_app.http.options import HttpOptions
from serve_app.http.problems import (
    INTERNAL_ERROR,
    KEY_PROBLEMS,
    TOO_BUSY,
    UNKNOWN_MODEL,
    Headers,
    HttpProblem,
    problem_of,
    unknown_version,
)
from serve_app.http.responses import HttpResponse, problem_response
from serve_app.inference.batching import THREAD_SECONDS, AdaptiveBatcher
from serve_app.inference.predictor import Predictor
from serve_app.inference.slot import Slot
from serve_app.protocols.codec import Batch, Buffer, Codec, CodecContext, CountingCodec, Request, Response
from serve_app.protocols.codec import Headers as RequestHeaders
from serve_app.protocols.limits import row_bytes
from serve_app.telemetry.collector import PENDING_ROWS, MetricsCollector

log = logging.getLogger("iris_api.predict")

INLINE_BYTES = 128 * 1024
"""A larger body is answered in a thread, so that single rows do not wait for it."""
INLINE_CELLS = 32 * 1024
"""A batch is also answered in a thread when it may have more numbers or more scores than this."""
COUNT_BYTES = 64 * 1024
"""A CountingCodec counts the rows of a larger body in a thread."""

BATCH_WAIT_FACTOR = 10
"""The longest wait of a batch for other batches, as a multiple of the longest wait of a row for other rows."""


Result = TypeVar("Result")


class Prepared(NamedTuple):
    """The objects that are made once for a predictor and a protocol: the codec and the headers of the responses.

    A body of more than `inline_bytes` is answered in a thread.
    """

    codec: Codec
    headers: Headers
    inline_bytes: float


class PredictionService:
    """Answers predictions with the model of the slot. An application has one service, used by one event loop.

    `executor` runs calls of slow models for single rows; `batches` runs calls for many rows.
    """

    def __init__(
        self,
        slot: Slot,
        collector: MetricsCollector,
        options: HttpOptions,
        *,
        check: Callable[[bytes | None, bytes | None], Verdict],
        executor: Executor | None = None,
        batches: Executor | None = None,
    ) -> None:
        self.slot = slot
        self.collector = collector
        self._options = options
        self._check = check
        self._max_wait = options.max_wait_seconds
        self._batcher = AdaptiveBatcher(executor)
        self._batches = batches
        self._batch_seconds = 0.0  # estimated time of the batches that were accepted and are not answered yet
        # Weak keys: these objects live as long as the predictor and do not keep it in memory.
        self._prepared: WeakKeyDictionary[Predictor, dict[type[Codec], Prepared]] = WeakKeyDictionary()
        # The last result of `prepared`: one comparison replaces a look-up in Python code.
        self._recent: tuple[ref[Predictor] | None, type[Codec] | None, Prepared | None] = (None, None, None)

    def check_key(self, key: bytes | None, authorization: bytes | None) -> Verdict:
        """The key in these values of `X-API-Key` and `Authorization`, or why there is none that is valid."""
        return self._check(key, authorization)

    def refuse_key(self, key: bytes | None, authorization: bytes | None) -> HttpProblem | None:
        """The problem of a request with these values of `X-API-Key` and `Authorization`; None for a valid key."""
        verdict = self._check(key, authorization)
        return KEY_PROBLEMS[verdict] if isinstance(verdict, str) else None

    async def predict_row(self, protocol: type[Codec], body: Buffer, headers: RequestHeaders) -> HttpResponse:
        """The response for one row. A call of the model that is short enough runs on the event loop."""
        predictor = self.slot.predictor
        if predictor is None:
            return self._no_model(protocol)
        if predictor.slow and self._batcher.seconds_ahead(predictor) > self._max_wait:
            return problem_response(TOO_BUSY, protocol)
        try:
            codec, response_headers, _ = self.prepared(predictor, protocol)
            if len(body) <= INLINE_BYTES:
                batch = codec.decode(body, headers)
            else:
                batch = await asyncio.get_running_loop().run_in_executor(self._batches, codec.decode, body, headers)
            if self._batcher.takes(predictor):
                scores = await self._batcher.scores(predictor, batch.matrix)
            else:
                scores = predictor.row_scores(batch.matrix)
            response = HttpResponse(200, response_headers, codec.encode(batch, scores), predictor.version)
        except Exception as error:
            return _failure(error, protocol, predictor)
        self.collector.predicted(predictor, batch.matrix, scores)
        return response

    async def predict_rows(self, protocol: type[Codec], body: Buffer, headers: RequestHeaders) -> HttpResponse:
        """The response for many rows in their order. One model computes all of them, in a thread when that takes long."""
        predictor = self.slot.predictor
        if predictor is None:
            return self._no_model(protocol)
        try:
            codec, response_headers, inline_bytes = self.prepared(predictor, protocol)
            if len(body) <= inline_bytes:
                batch, scores, text = _predict(predictor, codec, body, headers)
            elif self._has_too_many_batches():
                return problem_response(TOO_BUSY, protocol)
            else:
                rows = codec.rows_in(len(body))
                batch, scores, text = await self._run_batch(predictor, rows, _predict, predictor, codec, body, headers)
        except Exception as error:
            return _failure(error, protocol, predictor)
        await self._count(predictor, batch, scores)
        return HttpResponse(200, response_headers, text, predictor.version)

    async def predict_table(self, protocol: type[Codec], body: Buffer, headers: RequestHeaders) -> HttpResponse:
        """The same for a protocol with several formats; the headers of the request select the formats."""
        values = dict(headers)
        variant = protocol.variant(values.get(b"content-type"), values.get(b"accept"))
        return await self.predict_rows(variant or protocol, body, headers)

    def open_stream(self, protocol: type[Codec]) -> PredictionStream | HttpResponse:
        """A stream that answers the rows of a body while it arrives, all with the current model; or the response to a refusal."""
        predictor = self.slot.predictor
        if predictor is None:
            return self._no_model(protocol)
        if self._has_too_many_batches():
            return problem_response(TOO_BUSY, protocol)
        return PredictionStream(predictor, protocol, self.prepared(predictor, protocol), self.collector, self._batches)

    async def predict(
        self, protocol: type[CountingCodec], body: Buffer, headers: RequestHeaders, version: str | None = None
    ) -> HttpResponse:
        """The response for a body that holds one row or many; `version` is the version that the request names."""
        predictor = self.slot.predictor
        if predictor is None:
            return self._no_model(protocol)
        if version is not None and version != predictor.version:
            return problem_response(unknown_version(predictor.version), protocol)
        is_small = len(body) <= COUNT_BYTES
        if not is_small and self._has_too_many_batches():
            return problem_response(TOO_BUSY, protocol)
        try:
            codec, response_headers, _ = self.prepared(predictor, protocol)
            assert isinstance(codec, CountingCodec)
            request = codec.read(body, headers) if is_small else await self._run(codec.read, body, headers)
            inline = is_small and request.rows > 1 and _is_inline(predictor, request.rows)
            if request.rows == 1:
                is_busy = predictor.slow and self._batcher.seconds_ahead(predictor) > self._max_wait
            else:
                is_busy = not inline and self._has_too_many_batches()
            if is_busy:
                return problem_response(TOO_BUSY, protocol)
            batch, scores, response = await self._predict_counted(predictor, codec, request, is_small=is_small, inline=inline)
        except Exception as error:
            return _failure(error, protocol, predictor)
        await self._count(predictor, batch, scores)
        text, own_headers = response
        if own_headers:
            response_headers = (*own_headers, *response_headers[1:])  # replaces the content type
        return HttpResponse(200, response_headers, text, predictor.version)

    async def _predict_counted(
        self, predictor: Predictor, codec: CountingCodec, request: Request, *, is_small: bool, inline: bool
    ) -> tuple[Batch, Scores, Response]:
        """Predict a request: the batcher takes one row, a thread takes many rows unless they are `inline`."""
        if request.rows == 1:
            batch = codec.batch(request) if is_small else await self._run(codec.batch, request)
            if self._batcher.takes(predictor):
                scores = await self._batcher.scores(predictor, batch.matrix)
            else:
                scores = predictor.row_scores(batch.matrix)
            return batch, scores, codec.respond(batch, scores)
        if inline:
            return _predict_request(predictor, codec, request)
        return await self._run_batch(predictor, request.rows, _predict_request, predictor, codec, request)

    async def _count(self, predictor: Predictor, batch: Batch, scores: Scores) -> None:
        if len(scores) <= PENDING_ROWS:
            self.collector.predicted(predictor, batch.matrix, scores)
        else:
            await self.collector.predicted_many(predictor, batch.matrix, scores)

    def _has_too_many_batches(self) -> bool:
        return self._batch_seconds > self._max_wait * BATCH_WAIT_FACTOR

    async def _run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in the thread of the batches."""
        return await asyncio.get_running_loop().run_in_executor(self._batches, function, *arguments)

    async def _run_batch(self, predictor: Predictor, rows: float, function: Callable[..., Result], *arguments: Any) -> Result:
        """The same for a function that predicts about so many rows; its estimated time counts as the wait of later batches."""
        seconds = predictor.seconds_of(rows)
        self._batch_seconds += seconds
        try:
            return await self._run(function, *arguments)
        finally:
            self._batch_seconds -= seconds

    def prepared(self, predictor: Predictor, protocol: type[Codec]) -> Prepared:
        """The codec and the response headers of this predictor; made by its first request, kept as long as the predictor."""
        reference, codec, recent = self._recent
        if codec is protocol and reference is not None and reference() is predictor and recent is not None:
            return recent
        by_protocol = self._prepared.setdefault(predictor, {})
        prepared = by_protocol.get(protocol)
        if prepared is None:
            prepared = by_protocol[protocol] = self._prepare(predictor, protocol)
        self._recent = (ref(predictor), protocol, prepared)
        return prepared

    def max_row_bytes(self) -> int:
        """The largest body of a single row for the served model, in bytes."""
        predictor = self.slot.predictor
        return self._options.max_row_bytes if predictor is None else self._max_row_bytes(predictor)

    def _max_row_bytes(self, predictor: Predictor) -> int:
        return min(row_bytes(predictor.signature, self._options.max_row_bytes), self._options.max_body_bytes)

    def served(self, model: str, version: str | None) -> Predictor | HttpProblem:
        """The predictor of a model and a version (None: the served version), or the problem when it is not served."""
        if model != self._options.model_name:
            return UNKNOWN_MODEL
        predictor = self.slot.predictor
        if predictor is None:
            return self.no_model()
        return predictor if version is None or version == predictor.version else unknown_version(predictor.version)

    def no_model(self) -> HttpProblem:
        """The problem of a request while no model is loaded."""
        return problem_of(NoModel(f"No model is loaded: {self.slot.problem}."))

    def model_headers(self, predictor: Predictor) -> Headers:
        """The headers that name a version."""
        return (
            (b"x-model-name", self._options.model_name.encode()),
            (b"x-model-version", predictor.version.encode()),
            (b"x-model-digest", predictor.digest.encode()),
        )

    def _prepare(self, predictor: Predictor, protocol: type[Codec]) -> Prepared:
        context = CodecContext(
            signature=predictor.signature,
            model_name=self._options.model_name,
            model_version=predictor.version,
            max_rows=self._options.max_rows,
            max_body_bytes=self._options.max_body_bytes,
            max_row_bytes=self._max_row_bytes(predictor),
            unknown=self._options.unknown,
            unknown_fields=self._options.unknown_fields,
        )
        codec = protocol(context)
        headers = ((b"content-type", protocol.content_type), *self.model_headers(predictor))
        return Prepared(codec, headers, _inline_bytes(predictor, codec))

    def _no_model(self, protocol: type[Codec]) -> HttpResponse:
        return problem_response(self.no_model(), protocol)


class PredictionStream:
    """Answers the rows of one body piece by piece, with one model."""

    def __init__(
        self,
        predictor: Predictor,
        protocol: type[Codec],
        prepared: Prepared,
        collector: MetricsCollector,
        executor: Executor | None,
    ) -> None:
        self._predictor = predictor
        self._protocol = protocol
        self._codec = prepared.codec
        self._inline_bytes = prepared.inline_bytes
        self._reader = prepared.codec.open()
        self._collector = collector
        self._executor = executor
        self._count = 0
        self.headers = prepared.headers
        self.version = predictor.version

    async def answer(self, piece: bytes | memoryview, *, last: bool) -> Buffer | HttpResponse:
        """The answers to the rows that end in this piece, possibly none; or the response to a body that cannot be answered."""
        try:
            if len(piece) <= self._inline_bytes:
                matrix, scores, text = self._step(piece, last)
            else:
                loop = asyncio.get_running_loop()
                matrix, scores, text = await loop.run_in_executor(self._executor, self._step, piece, last)
        except Exception as error:
            return _failure(error, self._protocol, self._predictor)
        if len(scores):
            await self._collector.predicted_many(self._predictor, matrix, scores)
        return text

    def _step(self, piece: bytes | memoryview, last: bool) -> tuple[Matrix, Scores, Buffer]:
        matrix = self._reader.feed(piece)
        if last:
            matrix = np.concatenate([matrix, self._reader.end()])
        if not len(matrix):
            return matrix, np.empty(0), b""
        scores = np.concatenate([self._predictor.scores(part) for part in batched(matrix, PIECE_ROWS)])
        first, self._count = self._count, self._count + len(matrix)
        try:
            return matrix, scores, self._codec.encode(Batch(matrix), scores)
        except NotFinite as error:
            raise NotFinite([first + row for row in error.rows]) from None


def _predict(predictor: Predictor, codec: Codec, body: Buffer, headers: RequestHeaders) -> tuple[Batch, Scores, Buffer]:
    batch = codec.decode(body, headers)
    scores = _scores(predictor, batch.matrix)
    return batch, scores, codec.encode(batch, scores)


def _predict_request(predictor: Predictor, codec: CountingCodec, request: Request) -> tuple[Batch, Scores, Response]:
    batch = codec.batch(request)
    scores = _scores(predictor, batch.matrix)
    return batch, scores, codec.respond(batch, scores)


def _scores(predictor: Predictor, matrix: Matrix) -> Scores:
    pieces = [predictor.scores(piece) for piece in batched(matrix, PIECE_ROWS)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _is_inline(predictor: Predictor, rows: float) -> bool:
    """Whether so many rows can be read, predicted and written in one turn of the event loop."""
    return rows * _width(predictor) <= INLINE_CELLS and predictor.seconds_of(rows) < THREAD_SECONDS


def _width(predictor: Predictor) -> int:
    """The number of features of a row, or the number of its scores if that is larger."""
    return max(len(predictor.signature.features), math.prod(predictor.signature.score_shape))


def _inline_bytes(predictor: Predictor, codec: Codec) -> float:
    """The largest body that can be answered in one turn of the event loop when its rows are as short as possible."""
    size = float(INLINE_BYTES)
    while size >= 1:
        rows = codec.most_rows_in(int(size))
        if _is_inline(predictor, rows):
            break
        size *= 0.8
    return size


def _failure(error: Exception, protocol: type[Codec], predictor: Predictor) -> HttpResponse:
    if isinstance(error, InvalidInput):
        return problem_response(problem_of(error), protocol)
    if isinstance(error, NotFinite):
        return problem_response(problem_of(error), protocol)._replace(version=predictor.version)
    log.error("prediction failed", exc_info=error, extra={"model_version": predictor.version})
    return problem_response(INTERNAL_ERROR, protocol)
