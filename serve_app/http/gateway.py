"""What surrounds every answer: request id, security headers, the limit on the body, and the accounts.

This is plain ASGI, because each layer of framework costs more than a prediction. Predictions are answered right here
by the same functions that their FastAPI routes call; everything else goes on to the app.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from serve_app.http.body import Body, BodyBudget, Message, Receive, TooLarge, TooMany, TooSlow
from serve_app.http.problems import TOO_BUSY, HttpResponse, internal_error, too_large, too_slow
from serve_app.http.rate_limit import RateLimiter
from serve_app.http.routes.predict import PredictionService
from serve_app.protocols.decode import Buffer
from serve_app.telemetry import trace_context as traces
from serve_app.telemetry.collector import MetricsCollector

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("iris_api.request")

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"x-xss-protection", b"1; mode=block"),
    (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
    (b"referrer-policy", b"strict-origin-when-cross-origin"),
)
REQUEST_ID = b"x-request-id"
CLOSE = (b"connection", b"close")
SEND_BYTES = 256 * 1024
"""A longer body is sent in pieces: other requests would wait while one of many megabytes is copied to the system."""
_HOT = frozenset({"/predict", "/predict/batch"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class Gateway:
    """ASGI middleware around the app; the only place that sees every request.

    `sends_request_id` is False under Ray Serve, whose own middleware already repeats the id in the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        answers: PredictionService,
        accounts: MetricsCollector,
        warden: RateLimiter | None = None,
        max_body_bytes: int,
        max_body_seconds: float = 15.0,
        max_in_flight: int = 300,
        log_every: int = 0,
        sends_request_id: bool = True,
        hot_path: bool = True,
    ) -> None:
        self._app = app
        self._answers = answers
        self._accounts = accounts
        self._warden = warden
        self._max_body_bytes = max_body_bytes
        self._max_body_seconds = max_body_seconds
        self._held = BodyBudget()
        self._max_in_flight = max_in_flight
        self._log_every = log_every
        self._seen = 0
        # Half random, half counted: as unique as a random one, without asking the system for each request.
        self._id_prefix = uuid.uuid4().hex[:16].encode()
        self._ids = itertools.count()
        self._busy_seconds = 0.0
        self._busy_since = time.perf_counter()
        self._sends_request_id = sends_request_id
        self._hot_path = hot_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not (self._hot_path and await self.answer(scope, receive, send, sends_request_id=self._sends_request_id)):
            accounts = self._accounts
            accounts.in_flight += 1
            try:
                body = await self._pass_on(scope, receive, send, time.perf_counter())
            finally:
                accounts.in_flight -= 1
            if body is not None:
                await _close(body, send)

    async def answer(self, scope: Scope, receive: Receive, send: Send, *, sends_request_id: bool = True) -> bool:
        """Answer `POST /predict` and `/predict/batch`; False, with nothing read or sent, for all else and for what is unusual.

        The ingress hook calls this before Serve's own request accounting, so the counts kept here are the only ones.
        """
        if scope["type"] != "http" or scope["method"] != "POST":
            return False
        path = _path(scope)
        if path not in _HOT:
            return False
        body = self._body(receive)
        answer = await self._read(scope, body, path)
        if answer is None:
            return False
        is_left = body.more and await body.is_left(scope["headers"])
        started = time.perf_counter()
        if not isinstance(answer, HttpResponse):
            accounts = self._accounts
            if accounts.in_flight >= self._max_in_flight:
                answer = TOO_BUSY
            else:
                accounts.in_flight += 1  # counted while it is computed: who sends slowly takes no place from others
                try:
                    answer = await (self._answers.row(answer) if path == "/predict" else self._answers.rows(answer))
                finally:
                    accounts.in_flight -= 1
        request_id = self._request_id(scope)
        await self._send(answer, request_id if sends_request_id else None, send, is_left=is_left)
        seconds = time.perf_counter() - started
        self._busy_seconds += seconds
        self._accounts.answered(path, answer.status, answer.version, seconds)
        if answer.error or self._log_every:
            self._note(path, answer.status, answer.version, answer.error, seconds, request_id, scope)
        if is_left:
            await _close(body, send)
        return True

    def _body(self, receive: Receive) -> Body:
        return Body(receive, limit=self._max_body_bytes, seconds=self._max_body_seconds, held=self._held)

    def mean_in_flight(self) -> float:
        """Requests that `answer` had in flight on average since this was last asked (Little's law)."""
        now = time.perf_counter()
        mean = self._busy_seconds / max(now - self._busy_since, 0.001)
        self._busy_seconds, self._busy_since = 0.0, now
        return mean

    async def _read(self, scope: Scope, body: Body, path: str) -> Buffer | HttpResponse | None:
        """The whole body, or the refusal of the request, or None for what is unusual enough to be left to the app."""
        key = authorization = content_type = length = None
        for name, value in scope["headers"]:
            if name == b"x-api-key":
                key = value
            elif name == b"content-type":
                content_type = value
            elif name == b"content-length":
                length = value
            elif name == b"authorization":
                authorization = value
            elif name in (b"origin", b"content-encoding"):
                return None
        if self._warden is not None and (limited := await self._warden.refuse(scope, path)) is not None:
            return limited
        refused = self._answers.refuse(key, authorization, content_type)
        if refused is not None:
            return refused
        if length is not None and length.isdigit() and int(length) > self._max_body_bytes:
            return too_large(self._max_body_bytes)
        try:
            return await body.all()
        except (TooLarge, TooSlow, TooMany, ClientDisconnect) as error:
            return self._refusal_of(error)

    def _refusal_of(self, error: Exception) -> HttpResponse:
        """The answer to a body that did not come as it should."""
        if isinstance(error, TooLarge):
            return too_large(self._max_body_bytes)
        if isinstance(error, TooSlow):
            return too_slow(self._max_body_seconds)
        return TOO_BUSY if isinstance(error, TooMany) else HttpResponse(499, (), b"", error="disconnected")

    async def _send(self, answer: HttpResponse, request_id: bytes | None, send: Send, *, is_left: bool) -> None:
        headers = [*answer.headers, *SECURITY_HEADERS, (b"content-length", b"%d" % len(answer.body))]
        if request_id is not None:
            headers.append((REQUEST_ID, request_id))
        if is_left:
            headers.append(CLOSE)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body: Buffer | memoryview = answer.body
        while len(body) > SEND_BYTES:  # the server waits between them until the client has read
            body = memoryview(body)
            await send({"type": "http.response.body", "body": body[:SEND_BYTES], "more_body": True})
            body = body[SEND_BYTES:]
        await send({"type": "http.response.body", "body": body, "more_body": is_left})

    def _request_id(self, scope: Scope) -> bytes:
        """The client's id when it is harmless, else a new one; left in the scope for the app and its logs."""
        for index, (name, value) in enumerate(scope["headers"]):
            if name == REQUEST_ID:
                if _REQUEST_ID.fullmatch(value):
                    found: bytes = value
                    return found
                del scope["headers"][index]
                break
        made = b"%b%016x" % (self._id_prefix, next(self._ids))
        scope["headers"].append((REQUEST_ID, made))
        return made

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, started: float) -> Body | None:
        """Let the app answer; the body when it was not read to its end and the connection has to be closed."""
        scope["headers"] = list(scope["headers"])
        request_id = self._request_id(scope)
        own_id = request_id if self._sends_request_id else None
        status = 0
        version = error = ""
        body = self._body(receive)
        is_left = False
        accounts = self._accounts

        async def limited() -> Message:
            accounts.in_flight -= 1  # who sends slowly takes no place from others
            try:
                return await body.message()
            finally:
                accounts.in_flight += 1

        async def dressed(message: Message) -> None:
            nonlocal status, version, is_left
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *SECURITY_HEADERS]
                version = next((value.decode() for name, value in headers if name == b"x-model-version"), "")
                if own_id is not None:
                    headers.append((REQUEST_ID, own_id))
                is_left = body.more and await body.is_left(scope["headers"])
                if is_left:
                    headers.append(CLOSE)
                message = {**message, "headers": headers}
            elif is_left:
                message = {**message, "more_body": True}
            await send(message)

        async def refuse(answer: HttpResponse) -> None:
            nonlocal status, error, is_left
            status, error = answer.status, answer.error
            is_left = body.more and await body.is_left(scope["headers"])
            await self._send(answer, own_id, send, is_left=is_left)

        try:
            length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
            if length.isdigit() and int(length) > self._max_body_bytes:
                raise TooLarge  # noqa: TRY301, one way out for both
            limited_by = await self._warden.refuse(scope, _path(scope)) if self._warden is not None else None
            if limited_by is None:
                await self._app(scope, limited, dressed)
            else:
                await refuse(limited_by)
        except (TooLarge, TooSlow) as refusal:
            if status == 0:
                await refuse(self._refusal_of(refusal))
        except ClientDisconnect:
            status, error = status or 499, "disconnected"
        except Exception:
            log.exception("request failed", extra=_identity(scope, request_id))
            if status == 0:
                await refuse(internal_error())
        seconds = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", "") or "unmatched"
        self._accounts.answered(route, status, version, seconds)
        error = error or (f"http_{status}" if status >= 400 else "")
        self._note(route, status, version, error, seconds, request_id, scope)
        return body if is_left else None

    def _note(self, route: str, status: int, version: str, error: str, seconds: float, request_id: bytes, scope: Scope) -> None:
        """Count an error; log it when it is ours, or when this request's turn has come."""
        if error:
            self._accounts.failed(error, route)
        self._seen += 1
        due = self._log_every and self._seen % self._log_every == 0
        if due or (status >= 500 and error != "no_model"):
            extra = {
                **_identity(scope, request_id),
                "route": route,
                "status": status,
                "model_version": version or None,
                "seconds": round(seconds, 6),
            }
            log.log(logging.ERROR if status >= 500 else logging.INFO, "request", extra=extra)


def _identity(scope: Scope, request_id: bytes) -> dict[str, Any]:
    """By what a line of the log is found: the request's id, and its trace when there is one."""
    trace_id = traces.trace_id(scope)
    return {"request_id": request_id.decode()} | ({"trace_id": trace_id} if trace_id else {})


def _path(scope: Scope) -> str:
    """The path as the app knows it."""
    path: str = scope["path"]
    root = scope.get("root_path")
    return path.removeprefix(root) if root else path


async def _close(body: Body, send: Send) -> None:
    """End an answer that said `Connection: close` while its client was still sending."""
    await body.run_out()
    await send({"type": "http.response.body"})
