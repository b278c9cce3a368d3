"""`/predict` and `/predict/batch`: from a body to an answer. The hot path and the FastAPI routes call the same functions."""

from __future__ import annotations

import asyncio
import gzip
import io
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from fastapi import APIRouter, Request, Response

from serve_app.artifacts.fields import Unknown
from serve_app.artifacts.matrix import PIECE_ROWS, Matrix, Scores, batched
from serve_app.errors import InvalidInput, NoModel
from serve_app.http.auth import Verdict
from serve_app.http.body import BUDGET_BODIES
from serve_app.http.problems import (
    MISSING_KEY,
    NOT_JSON,
    TOO_BUSY,
    WRONG_KEY,
    Headers,
    HttpResponse,
    internal_error,
    problem,
    problem_of,
    too_large,
)
from serve_app.inference.batching import THREAD_SECONDS, AdaptiveBatcher
from serve_app.inference.predictor import Predictor
from serve_app.inference.slot import Slot
from serve_app.protocols.decode import Buffer
from serve_app.protocols.native import NativeCodec
from serve_app.telemetry.collector import PENDING_ROWS, MetricsCollector

log = logging.getLogger("iris_api.predict")

INLINE_BYTES = 128 * 1024
"""A larger batch is answered in a thread, so that single rows do not wait for it."""

BATCH_WAIT_FACTOR = 10
"""A batch may wait for other batches so many times as long as a row for other rows."""


class Prepared(NamedTuple):
    """What is made once for a predictor."""

    codec: NativeCodec
    headers: Headers


class PredictionService:
    """Everything an answer to a prediction needs: the slot, who may ask, and where it is counted."""

    def __init__(
        self,
        slot: Slot,
        accounts: MetricsCollector,
        *,
        check: Callable[[bytes | None, bytes | None], Verdict],
        model_name: str,
        max_body_bytes: int,
        max_rows: int,
        unknown: Unknown,
        max_wait_seconds: float = 1.0,
        executor: Executor | None = None,
        batches: Executor | None = None,
    ) -> None:
        self.slot = slot
        self.accounts = accounts
        self.check = check
        self.max_body_bytes = max_body_bytes
        self._max_wait = max_wait_seconds
        self._turn = AdaptiveBatcher(executor)
        self._batches = batches
        self._batch_seconds = 0.0  # of batches that were accepted and are not yet answered, about
        self._batch_bytes = 0
        self._name = model_name.encode()
        self._max_rows, self._unknown = max_rows, unknown
        self._prepared: WeakKeyDictionary[Predictor, Prepared] = WeakKeyDictionary()  # it keeps no replaced model alive

    def refuse(self, key: bytes | None, authorization: bytes | None, content_type: bytes | None) -> HttpResponse | None:
        """The refusal of a request whose key or content type is not right; None when both are."""
        verdict = self.check(key, authorization)
        if isinstance(verdict, str):
            return MISSING_KEY if verdict == "missing" else WRONG_KEY
        if content_type is not None and content_type != b"application/json":
            kind = content_type.partition(b";")[0].strip().lower()
            if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
                return NOT_JSON
        return None

    async def row(self, body: Buffer) -> HttpResponse:
        """The answer for one row; runs inline when that is shorter than a turn of the event loop."""
        predictor = self.slot.predictor
        if predictor is None:
            return self._no_model()
        if predictor.slow and self._turn.seconds_ahead(predictor) > self._max_wait:
            return TOO_BUSY
        codec, headers = self.prepared(predictor)
        try:
            matrix = codec.decode_row(body)
            if self._turn.takes(predictor):
                scores = await self._turn.scores(predictor, matrix)
            else:
                scores = predictor.row_scores(matrix)
            answer = HttpResponse(200, headers, codec.encode_row(scores), predictor.version)
        except InvalidInput as error:
            return problem_of(error)
        except Exception:
            log.exception("prediction failed", extra={"model_version": predictor.version})
            return internal_error()
        self.accounts.predicted(predictor, matrix, scores)
        return answer

    async def rows(self, body: Buffer) -> HttpResponse:
        """The answer for many rows, order kept; one model computes them all."""
        predictor = self.slot.predictor
        if predictor is None:
            return self._no_model()
        codec, headers = self.prepared(predictor)
        seconds = predictor.seconds_of(len(body) / codec.row_bytes)
        try:
            if len(body) <= INLINE_BYTES and seconds < THREAD_SECONDS:
                matrix, scores, text = _many(predictor, codec, body)
            elif (
                self._batch_seconds > self._max_wait * BATCH_WAIT_FACTOR or self._batch_bytes > self.max_body_bytes * BUDGET_BODIES
            ):
                return TOO_BUSY
            else:
                matrix, scores, text = await self._in_thread(predictor, codec, body, seconds)
        except InvalidInput as error:
            return problem_of(error)
        except Exception:
            log.exception("prediction failed", extra={"model_version": predictor.version})
            return internal_error()
        if len(scores) <= PENDING_ROWS:
            self.accounts.predicted(predictor, matrix, scores)
        else:
            await self.accounts.predicted_many(predictor, matrix, scores)
        return HttpResponse(200, headers, text, predictor.version)

    async def _in_thread(
        self, predictor: Predictor, codec: NativeCodec, body: Buffer, seconds: float
    ) -> tuple[Matrix, Scores, Buffer]:
        self._batch_seconds += seconds
        self._batch_bytes += len(body)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._batches, _many, predictor, codec, body)
        finally:
            self._batch_seconds -= seconds
            self._batch_bytes -= len(body)

    def prepared(self, predictor: Predictor) -> Prepared:
        """The codec and the headers of this predictor; they are made once and go when it goes."""
        prepared = self._prepared.get(predictor)
        if prepared is None:
            codec = NativeCodec(predictor.signature, max_rows=self._max_rows, unknown=self._unknown)
            headers = (
                (b"content-type", b"application/json"),
                (b"x-model-name", self._name),
                (b"x-model-version", predictor.version.encode()),
                (b"x-model-digest", predictor.digest.encode()),
            )
            prepared = self._prepared[predictor] = Prepared(codec, headers)
        return prepared

    def _no_model(self) -> HttpResponse:
        return problem_of(NoModel(f"No model is loaded: {self.slot.problem}."))


def _many(predictor: Predictor, codec: NativeCodec, body: Buffer) -> tuple[Matrix, Scores, Buffer]:
    matrix = codec.decode_rows(body)
    pieces = [predictor.scores(piece) for piece in batched(matrix, PIECE_ROWS)]
    scores = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return matrix, scores, codec.encode_rows(scores)


def predict_router(answers: PredictionService) -> APIRouter:
    """The two routes; their schema is written by `openapi.py`, after the signature of the served model."""
    router = APIRouter(tags=["prediction"])

    @router.post("/predict", operation_id="predict", summary="Predict one row")
    async def predict(request: Request) -> Response:
        body = await _body(request, answers)
        return to_response(body if isinstance(body, HttpResponse) else await answers.row(body))

    @router.post("/predict/batch", operation_id="predictBatch", summary="Predict many rows, order kept")
    async def predict_batch(request: Request) -> Response:
        body = await _body(request, answers)
        return to_response(body if isinstance(body, HttpResponse) else await answers.rows(body))

    return router


async def _body(request: Request, answers: PredictionService) -> bytes | HttpResponse:
    headers = dict(request.scope["headers"])
    refused = answers.refuse(headers.get(b"x-api-key"), headers.get(b"authorization"), headers.get(b"content-type"))
    if refused is not None:
        return refused
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    body = await request.body()
    if encoding == b"identity":
        return body
    if encoding != b"gzip":
        return problem(415, "unsupported_encoding", "Send the body as it is, or with Content-Encoding: gzip.")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            plain = file.read(answers.max_body_bytes + 1)
    except (OSError, EOFError):
        return problem(400, "malformed", "The body is not a gzip stream.")
    return too_large(answers.max_body_bytes) if len(plain) > answers.max_body_bytes else plain


def to_response(answer: HttpResponse) -> Response:
    """The same answer as a Starlette response."""
    response = Response(bytes(answer.body), answer.status)
    response.raw_headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    return response
