"""`/predict` and `/predict/batch`: from a body to an answer. The hot path and the FastAPI routes call the same functions."""

from __future__ import annotations

import asyncio
import gzip
import io
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import lru_cache

import numpy as np
from fastapi import APIRouter, Request, Response

from serve_app.api.body import HELD_BODIES
from serve_app.api.errors import (
    MISSING_KEY,
    NOT_JSON,
    TOO_BUSY,
    WRONG_KEY,
    Answer,
    Headers,
    internal_error,
    problem,
    problem_of,
    too_large,
)
from serve_app.api.turn import THREAD_SECONDS, Turn
from serve_app.core.accounts import PENDING_ROWS, Accounts
from serve_app.core.codec import PIECE_ROWS, Matrix, Scores, Text, batched
from serve_app.core.errors import InvalidInput, NoModel
from serve_app.core.keys import Verdict
from serve_app.core.predictor import Predictor
from serve_app.core.slot import Slot

log = logging.getLogger("iris_api.predict")

INLINE_BYTES = 128 * 1024
"""A larger batch is answered in a thread, so that single rows do not wait for it."""

BATCH_PATIENCE = 10
"""A batch may wait for other batches so many times as long as a row for other rows."""


class Answers:
    """Everything an answer to a prediction needs: the slot, who may ask, and where it is counted."""

    def __init__(
        self,
        slot: Slot,
        accounts: Accounts,
        *,
        check: Callable[[bytes | None, bytes | None], Verdict],
        model_name: str,
        max_body_bytes: int,
        max_wait_seconds: float = 1.0,
        executor: Executor | None = None,
        batches: Executor | None = None,
    ) -> None:
        self.slot = slot
        self.accounts = accounts
        self.check = check
        self.max_body_bytes = max_body_bytes
        self._max_wait = max_wait_seconds
        self._turn = Turn(executor)
        self._batches = batches
        self._batch_seconds = 0.0  # of batches that were accepted and are not yet answered, about
        self._batch_bytes = 0
        self._name = model_name.encode()
        self.headers = lru_cache(maxsize=4)(self._headers)

    def refuse(self, key: bytes | None, authorization: bytes | None, content_type: bytes | None) -> Answer | None:
        """The refusal of a request whose key or content type is not right; None when both are."""
        verdict = self.check(key, authorization)
        if isinstance(verdict, str):
            return MISSING_KEY if verdict == "missing" else WRONG_KEY
        if content_type is not None and content_type != b"application/json":
            kind = content_type.partition(b";")[0].strip().lower()
            if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
                return NOT_JSON
        return None

    async def row(self, body: Text) -> Answer:
        """The answer for one row; runs inline when that is shorter than a turn of the event loop."""
        predictor = self.slot.predictor
        if predictor is None:
            return self._no_model()
        if predictor.slow and self._turn.seconds_ahead(predictor) > self._max_wait:
            return TOO_BUSY
        try:
            matrix = predictor.decode_row(body)
            if self._turn.takes(predictor):
                scores = await self._turn.scores(predictor, matrix)
            else:
                scores = predictor.row_scores(matrix)
            answer = Answer(200, self.headers(predictor), predictor.encode_row(scores), predictor.version)
        except InvalidInput as error:
            return problem_of(error)
        except Exception:
            log.exception("prediction failed", extra={"model_version": predictor.version})
            return internal_error()
        self.accounts.predicted(predictor, matrix, scores)
        return answer

    async def rows(self, body: Text) -> Answer:
        """The answer for many rows, order kept; one model computes them all."""
        predictor = self.slot.predictor
        if predictor is None:
            return self._no_model()
        seconds = predictor.seconds_of(len(body) / predictor.row_bytes)
        try:
            if len(body) <= INLINE_BYTES and seconds < THREAD_SECONDS:
                matrix, scores, text = _many(predictor, body)
            elif self._batch_seconds > self._max_wait * BATCH_PATIENCE or self._batch_bytes > self.max_body_bytes * HELD_BODIES:
                return TOO_BUSY
            else:
                matrix, scores, text = await self._in_thread(predictor, body, seconds)
        except InvalidInput as error:
            return problem_of(error)
        except Exception:
            log.exception("prediction failed", extra={"model_version": predictor.version})
            return internal_error()
        if len(scores) <= PENDING_ROWS:
            self.accounts.predicted(predictor, matrix, scores)
        else:
            await self.accounts.predicted_many(predictor, matrix, scores)
        return Answer(200, self.headers(predictor), text, predictor.version)

    async def _in_thread(self, predictor: Predictor, body: Text, seconds: float) -> tuple[Matrix, Scores, Text]:
        self._batch_seconds += seconds
        self._batch_bytes += len(body)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._batches, _many, predictor, body)
        finally:
            self._batch_seconds -= seconds
            self._batch_bytes -= len(body)

    def _headers(self, predictor: Predictor) -> Headers:
        return (
            (b"content-type", b"application/json"),
            (b"x-model-name", self._name),
            (b"x-model-version", predictor.version.encode()),
            (b"x-model-digest", predictor.digest.encode()),
        )

    def _no_model(self) -> Answer:
        return problem_of(NoModel(f"No model is loaded: {self.slot.problem}."))


def _many(predictor: Predictor, body: Text) -> tuple[Matrix, Scores, Text]:
    matrix = predictor.decode_rows(body)
    pieces = [predictor.scores(piece) for piece in batched(matrix, PIECE_ROWS)]
    scores = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return matrix, scores, predictor.encode_rows(scores)


def predict_router(answers: Answers) -> APIRouter:
    """The two routes; their schema is written by `openapi.py`, after the signature of the served model."""
    router = APIRouter(tags=["prediction"])

    @router.post("/predict", operation_id="predict", summary="Predict one row")
    async def predict(request: Request) -> Response:
        body = await _body(request, answers)
        return to_response(body if isinstance(body, Answer) else await answers.row(body))

    @router.post("/predict/batch", operation_id="predictBatch", summary="Predict many rows, order kept")
    async def predict_batch(request: Request) -> Response:
        body = await _body(request, answers)
        return to_response(body if isinstance(body, Answer) else await answers.rows(body))

    return router


async def _body(request: Request, answers: Answers) -> bytes | Answer:
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


def to_response(answer: Answer) -> Response:
    """The same answer as a Starlette response."""
    response = Response(bytes(answer.body), answer.status)
    response.raw_headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    return response
