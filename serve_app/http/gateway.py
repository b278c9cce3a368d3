"""The steps around every response: request id, limits, API key, body, CORS, content encoding, security headers and counts.

The gateway is plain ASGI, because each layer of a framework costs more than a prediction. It answers predictions and forwards all
other requests to the app.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.datastructures import Headers as StarletteHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from serve_app.http.body import CODINGS, Body, BodyBudget, BodyBudgetExceeded, BodyMiscoded, BodyTimeout, BodyTooLarge, MessageBody
from serve_app.http.forwarding import ForwardedRequest
from serve_app.http.headers import HeaderValues, problem_of_headers, problem_of_prediction_headers
from serve_app.http.lingering import Lingering
from serve_app.http.options import HttpOptions
from serve_app.http.prediction_service import PredictionService, PredictionStream
from serve_app.http.prefix import add_prefix, path_below
from serve_app.http.problems import (
    INTERNAL_ERROR,
    TOO_BUSY,
    HttpProblem,
    method_not_allowed,
    not_acceptable,
    problem_of,
    unsupported_encoding,
    unsupported_media_type,
)
from serve_app.http.rate_limit import RateLimiter, free_paths
from serve_app.http.responses import (
    DISCONNECTED,
    REQUEST_ID,
    ASGIApp,
    HttpResponse,
    Message,
    Receive,
    Scope,
    Send,
    problem_response,
    send_response,
    send_without_body,
)
from serve_app.http.routes.predictions import problem_codec, protocol_of
from serve_app.http.streaming import StreamedResponse
from serve_app.protocols.codec import FORMATS, Buffer, Codec, CountingCodec
from serve_app.protocols.codec import Headers as RequestHeaders
from serve_app.telemetry import trace_context
from serve_app.telemetry.collector import MetricsCollector
from serve_app.telemetry.state import RequestLabels

log = logging.getLogger("iris_api.request")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
UNMATCHED = RequestLabels("unmatched", "unknown")
"""The metric labels of requests that match no route of the application."""
_ALLOW_POST = method_not_allowed(((b"allow", b"POST"),))
_BODY_ERRORS = (BodyTooLarge, BodyTimeout, BodyBudgetExceeded, BodyMiscoded)
_SENDS_REQUEST_ID = "iris_api.sends_request_id"
"""Key in the ASGI scope of a request whose response needs the request id, because no layer around the app adds it."""


@dataclass(frozen=True, slots=True)
class PredictionRoute:
    """A path that takes predictions, its codec, and the function that answers a body."""

    path: str
    codec: type[Codec]
    predict: Callable[[Buffer, RequestHeaders], Awaitable[HttpResponse]]
    max_bytes: int
    labels: Mapping[str, RequestLabels]
    """The metric labels of a request by the format of its body."""
    wider: Callable[[], int] | None = None
    """Returns a larger limit than `max_bytes` for a single row of a model with many columns."""


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """A route whose path has a version between `before` and `after`; `predict` takes this version as an argument."""

    before: str
    after: str
    route: PredictionRoute
    predict: Callable[..., Awaitable[HttpResponse]]


@dataclass(frozen=True, slots=True)
class CallRoute(PredictionRoute):
    """A call of another protocol than HTTP, with a whole message as its body. Probes are answered under any load."""

    needs_key: bool = True
    is_probe: bool = False


class Gateway:
    """Handles every request of an application. An application has one gateway, used by one event loop.

    The ingress hook and `GatewayMiddleware` share it. Limits, counts and ids therefore exist once, for every path and all headers.
    """

    def __init__(
        self,
        service: PredictionService,
        collector: MetricsCollector,
        options: HttpOptions,
        *,
        routes: Mapping[str, type[Codec]],
        model_routes: Mapping[str, type[Codec]],
        rate_limiter: RateLimiter | None = None,
        cors: CORSMiddleware | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._service = service
        self._collector = collector
        self._options = options
        # Also below the root path: a prefix that a proxy does not strip costs a prediction nothing.
        self._routes = {
            prefix + path: _route(path, codec, service, options)
            for prefix in {"", options.root_path}
            for path, codec in routes.items()
        }
        self._versions: list[VersionRoute] = []
        for template, codec in model_routes.items():
            self._add_model_route(template, codec)
        self._rate_limiter = rate_limiter
        self._free = free_paths(options.health_route)
        self._cors = cors
        self._executor = executor  # inflates bodies
        self._budget = BodyBudget(options.max_body_bytes)
        self._lingering = Lingering()
        self._recorded = 0
        # An id is half random, half a counter. It is as unique as a random id, without a system call for each request.
        self._id_prefix = uuid.uuid4().hex[:16].encode()
        self._ids = itertools.count()
        self._busy_seconds = 0.0
        self._busy_since = time.perf_counter()

    def route_of(self, scope: Scope) -> PredictionRoute | None:
        """The prediction route of a request; None when the app answers it."""
        if scope["type"] != "http":
            return None
        path = path_below(scope)
        route = self._routes.get(path)
        return self._version_route(path) if route is None else route

    def add_prefix(self, scope: Scope, paths: Collection[str]) -> bool:
        """Add the path prefix of a proxy (see `prefix`) to a request that `answer` did not answer; return whether there is one."""
        return add_prefix(scope, self._options.root_path, paths)

    async def answer(self, scope: Scope, receive: Receive, send: Send, *, sends_request_id: bool = True) -> bool:
        """Answer a request of a prediction route. For any other request return False without reading or sending anything.

        The ingress hook calls this before Serve's own request accounting, so only the gateway counts these requests.
        """
        route = self.route_of(scope)
        if route is None:
            return False
        scope["route"] = route
        body = self._body(receive, route)
        try:
            await self._answer(scope, route, body, send, sends_request_id)
        finally:
            if body.held:
                body.release()
        return True

    async def forward(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, sends_request_id: bool = True) -> None:
        """Forward a request that `answer` did not answer to the app, within the same limits as a prediction."""
        started = time.perf_counter()
        scope["headers"] = list(scope["headers"])
        request = scope
        if scope["method"] == "HEAD":  # HEAD gets the status and headers of GET on every path
            scope, send = {**scope, "method": "GET"}, partial(send_without_body, send)  # a copy: the server reads its own scope
        values = dict(scope["headers"])
        problem = problem_of_headers(scope["headers"])
        request_id = self._request_id(scope, values)
        body = self._body(receive)
        forwarded = ForwardedRequest(
            scope["headers"],
            body,
            self._with_cors(scope, values, send),
            self._collector,
            request_id=request_id if sends_request_id else None,
        )
        self._collector.in_flight += 1
        try:
            refusal = await self._refusal_of_forward(scope, values, body, problem)
            if refusal is None:
                await app(scope, forwarded.receive, forwarded.send)
            else:
                await forwarded.respond(refusal)
        except _BODY_ERRORS as error:
            await forwarded.respond(problem_response(problem_of(error), problem_codec(path_below(scope))))
        except ClientDisconnect:
            forwarded.disconnected()
        except Exception:
            log.exception("request failed", extra=_identity(scope, request_id))
            await forwarded.respond(problem_response(INTERNAL_ERROR, problem_codec(path_below(scope))))
        finally:
            body.release()
            self._collector.in_flight -= 1
        request["route"] = scope.get("route")
        path = getattr(scope.get("route"), "path", "")
        labels = RequestLabels(path, protocol_of(path)) if path else UNMATCHED
        seconds = time.perf_counter() - started - forwarded.waited_seconds
        self._busy_seconds += seconds
        self._record(labels, forwarded.response(), seconds, request_id, scope)
        await forwarded.close(self._lingering)

    async def answer_call(self, route: CallRoute, scope: Scope, receive: Receive) -> tuple[HttpResponse, bytes]:
        """The response to a call and the id of the request. The limits are those of a request over HTTP.

        `scope` has the same `headers` and `client` as the scope of a request; `receive` returns the whole message.
        """
        values, response = dict(scope["headers"]), DISCONNECTED
        body = MessageBody(receive, limit=route.max_bytes, seconds=self._options.max_body_seconds, budget=self._budget)
        problem = problem_of_headers(scope["headers"])
        request_id = self._request_id(scope, values)
        started = time.perf_counter()
        try:
            content = await self._read_call(route, scope, values, body, problem)
            started = time.perf_counter()
            response = content if isinstance(content, HttpResponse) else await self._answer_call(route, scope, content)
        except Exception:
            log.exception("request failed", extra=_identity(scope, request_id))
            response = problem_response(INTERNAL_ERROR, route.codec)
        finally:  # also when the client cancels the call
            body.release()
            seconds = time.perf_counter() - started
            self._busy_seconds += seconds
            self._record(route.labels[route.codec.body_format(values)], response, seconds, request_id, scope)
        return response, request_id

    async def _answer_call(self, route: CallRoute, scope: Scope, content: Buffer) -> HttpResponse:
        collector = self._collector
        if collector.in_flight >= self._options.max_in_flight and not route.is_probe:
            return problem_response(TOO_BUSY, route.codec)
        collector.in_flight += 1
        try:
            return await route.predict(content, scope["headers"])
        finally:
            collector.in_flight -= 1

    async def _read_call(
        self, route: CallRoute, scope: Scope, values: HeaderValues, body: Body, problem: HttpProblem | None
    ) -> Buffer | HttpResponse:
        """The message of a call, or the response to a refused call; `problem` is the problem of its headers."""
        if problem is None and self._rate_limiter is not None and not route.is_probe:
            problem = await self._rate_limiter.refuse(scope, route.path)
        if problem is None and route.needs_key:
            problem = self._service.refuse_key(values.get(b"x-api-key"), values.get(b"authorization"))
        if problem is not None:
            return problem_response(problem, route.codec)
        try:
            return await body.read()
        except _BODY_ERRORS as error:
            return problem_response(problem_of(error), route.codec)
        except ClientDisconnect:
            return DISCONNECTED

    def _add_model_route(self, template: str, codec: type[Codec]) -> None:
        """Add a route whose path names the model, with and without the root path."""
        assert issubclass(codec, CountingCodec)
        options, service = self._options, self._service
        route = _route(template, codec, service, options)
        before, versioned, after = template.replace("{model}", options.model_name).partition("{version}")
        for prefix in {"", options.root_path}:
            if not versioned:
                self._routes[prefix + before] = route
            else:
                self._versions.append(VersionRoute(prefix + before, after, route, partial(service.predict, codec)))

    def _version_route(self, path: str) -> PredictionRoute | None:
        """The route of a path that names a version of the model."""
        for versions in self._versions:
            if path.startswith(versions.before) and path.endswith(versions.after):
                version = path[len(versions.before) : len(path) - len(versions.after)]
                if version and "/" not in version:
                    return replace(versions.route, predict=partial(versions.predict, version=version))
        return None

    def mean_in_flight(self) -> float:
        """The average number of requests in flight since the last call (Little's law), without the time of slow clients."""
        now = time.perf_counter()
        mean = self._busy_seconds / max(now - self._busy_since, 0.001)
        self._busy_seconds, self._busy_since = 0.0, now
        return mean

    async def _answer(self, scope: Scope, route: PredictionRoute, body: Body, send: Send, sends_request_id: bool) -> None:
        headers, collector = scope["headers"], self._collector
        values = dict(headers)
        if b"origin" in values:
            send = self._with_cors(scope, values, send)
        content = await self._read(scope, route, values, body)
        if content is None:
            await self._stream(scope, route, values, body, send, sends_request_id)
            return
        must_close = body.more and await body.drain(headers)
        started = time.perf_counter()
        if isinstance(content, HttpResponse):
            response = content
        elif collector.in_flight >= self._options.max_in_flight:
            response = problem_response(TOO_BUSY, route.codec)
        else:
            collector.in_flight += 1  # only during the computation: a slow upload does not count as in flight
            try:
                response = await route.predict(content, headers)
            finally:
                collector.in_flight -= 1
        request_id = self._request_id(scope, values)
        await send_response(response, send, request_id=request_id if sends_request_id else None, must_close=must_close)
        seconds = time.perf_counter() - started
        self._busy_seconds += seconds
        self._record(route.labels[route.codec.body_format(values)], response, seconds, request_id, scope)
        if must_close:
            await self._lingering.end(body, send)

    async def _stream(
        self, scope: Scope, route: PredictionRoute, values: HeaderValues, body: Body, send: Send, sends_request_id: bool
    ) -> None:
        """Answer the rows of a body while it arrives."""
        started = time.perf_counter()
        request_id = self._request_id(scope, values)
        sent_id = request_id if sends_request_id else None
        codec = route.codec.variant(values.get(b"content-type"), values.get(b"accept")) or route.codec
        response: HttpResponse | PredictionStream = problem_response(TOO_BUSY, codec)
        if self._collector.in_flight < self._options.max_in_flight:
            response = self._service.open_stream(codec)
        has_begun, seconds = False, 0.0
        if not isinstance(response, HttpResponse):
            streamed = StreamedResponse(response, codec, body, send, self._collector)
            try:
                response, has_begun = await streamed.run(sent_id)
            finally:
                streamed.cancel()
            seconds = streamed.seconds
        must_close = has_begun or (body.more and await body.drain(scope["headers"]))
        if not has_begun:
            await send_response(response, send, request_id=sent_id, must_close=must_close)
        self._busy_seconds += seconds
        labels = route.labels[route.codec.body_format(values)]
        self._record(labels, response, seconds or time.perf_counter() - started, request_id, scope)
        if must_close:
            await self._lingering.end(body, send)

    async def _read(self, scope: Scope, route: PredictionRoute, values: HeaderValues, body: Body) -> Buffer | HttpResponse | None:
        """The content of the body, or the response to a request that is refused or has no body to read.

        None for a body whose rows are answered while it arrives.
        """
        if len(values) != len(scope["headers"]) or REQUEST_ID in values:  # most requests need no check of single headers
            problem = problem_of_prediction_headers(scope["headers"], values)
            if problem is not None:
                return problem_response(problem, route.codec)
        if self._rate_limiter is not None:
            limited = await self._rate_limiter.refuse(scope, route.path)
            if limited is not None:
                return problem_response(limited, route.codec)
        refusal = self._refusal(scope, route, values, body)
        if refusal is not None:
            return refusal
        if route.codec.response_types and _streams(route.codec, values):
            return None
        try:
            content = await body.read()
            if b"content-encoding" in values and (coding := _encoding(values)) in CODINGS:
                content = await body.inflate(content, self._executor, coding)
        except _BODY_ERRORS as error:
            body.release()  # the content is dropped, and the client may send for seconds more
            return problem_response(problem_of(error), route.codec)
        except ClientDisconnect:
            return DISCONNECTED
        return content

    def _refusal(self, scope: Scope, route: PredictionRoute, values: HeaderValues, body: Body) -> HttpResponse | None:
        """The response to a request of a prediction route without reading its body; None when the body must be read."""
        if scope["method"] != "POST":
            return self._preflight(scope, values) or problem_response(_ALLOW_POST, route.codec)
        problem = self._service.refuse_key(values.get(b"x-api-key"), values.get(b"authorization"))
        problem = problem or self._refuse_body(route.codec, values, body)
        return None if problem is None else problem_response(problem, route.codec)

    def _refuse_body(self, codec: type[Codec], values: HeaderValues, body: Body) -> HttpProblem | None:
        """The problem of a body that cannot be read according to its headers; None when it can be read."""
        content_type = values.get(b"content-type")
        if content_type is not None and not codec.accepts(content_type):
            return unsupported_media_type(codec.media_types, codec.missing_extra(content_type))
        if codec.response_types and codec.variant(content_type, values.get(b"accept")) is None:
            return not_acceptable(codec.response_types)
        if b"content-encoding" in values and (encoding := _encoding(values)) not in (b"identity", *CODINGS):
            return unsupported_encoding(encoding)
        return self._refuse_length(values, body)

    def _refuse_length(self, values: HeaderValues, body: Body) -> HttpProblem | None:
        length = values.get(b"content-length")
        if length is not None and length.isdigit() and int(length) > body.limit:
            try:
                body.check(int(length))
            except BodyTooLarge as error:
                return problem_of(error)
        return None

    async def _refusal_of_forward(
        self, scope: Scope, values: HeaderValues, body: Body, problem: HttpProblem | None
    ) -> HttpResponse | None:
        """The response to a refused request of any other route; None when the request goes to the app.

        `problem` is the problem of its headers.
        """
        problem = problem or self._refuse_length(values, body)
        path = path_below(scope)
        if problem is None and self._rate_limiter is not None:
            problem = await self._rate_limiter.refuse(scope, path)
        if problem is None and self._collector.in_flight > self._options.max_in_flight and path not in self._free:
            problem = TOO_BUSY
        return self._preflight(scope, values) if problem is None else problem_response(problem, problem_codec(path))

    def _is_preflight(self, scope: Scope, values: HeaderValues) -> bool:
        """Whether this is a CORS preflight request of a browser."""
        if self._cors is None or scope["method"] != "OPTIONS":
            return False
        return b"origin" in values and b"access-control-request-method" in values

    def _preflight(self, scope: Scope, values: HeaderValues) -> HttpResponse | None:
        """The response to a preflight request; None for any other request."""
        if self._cors is None or not self._is_preflight(scope, values):
            return None
        response = self._cors.preflight_response(StarletteHeaders(scope=scope))
        headers = tuple(header for header in response.raw_headers if header[0] != b"content-length")
        error = "" if response.status_code < 400 else f"http_{response.status_code}"
        return HttpResponse(response.status_code, headers, bytes(response.body), error=error)

    def _with_cors(self, scope: Scope, values: HeaderValues, send: Send) -> Send:
        """`send` with the headers that let a page from an allowed origin read the response."""
        if self._cors is None:
            return send
        with_cors = partial(self._cors.send, send=send, request_headers=StarletteHeaders(scope=scope))
        return partial(_send_unless_decided, with_cors, send) if self._is_preflight(scope, values) else with_cors

    def _body(self, receive: Receive, route: PredictionRoute | None = None) -> Body:
        seconds, budget = self._options.max_body_seconds, self._budget
        if route is None:
            return Body(receive, limit=self._options.max_body_bytes, seconds=seconds, budget=budget)
        return Body(receive, limit=route.max_bytes, seconds=seconds, budget=budget, wider=route.wider)

    def _request_id(self, scope: Scope, values: HeaderValues) -> bytes:
        """The client's id when its characters are allowed, else a new id. The scope keeps the id for the app and its logs."""
        client_id = values.get(REQUEST_ID)
        if client_id is not None:
            if _REQUEST_ID.fullmatch(client_id):
                return client_id
            scope["headers"][:] = [header for header in scope["headers"] if header[0] != REQUEST_ID]
        request_id = b"%b%016x" % (self._id_prefix, next(self._ids))
        scope["headers"].append((REQUEST_ID, request_id))
        return request_id

    def _record(self, labels: RequestLabels, response: HttpResponse, seconds: float, request_id: bytes, scope: Scope) -> None:
        """Count a request and its error; log the request for a server error, and when it is sampled."""
        status, version, error = response.status, response.version, response.error
        self._collector.answered(labels, status, version, seconds)
        if error:
            self._collector.failed(error, labels.route)
        log_every = self._options.log_every
        if not error and not log_every:
            return
        self._recorded += 1
        sampled = log_every and self._recorded % log_every == 0
        if sampled or (status >= 500 and error != "no_model"):
            extra = {
                **_identity(scope, request_id),
                "route": labels.route,
                "status": status,
                "model_version": version or None,
                "seconds": round(seconds, 6),
            }
            log.log(logging.ERROR if status >= 500 else logging.INFO, "request", extra=extra)


class GatewayMiddleware:
    """Puts an app behind the gateway, which answers predictions and forwards other requests. `paths` are all paths of the app."""

    def __init__(self, app: ASGIApp, gateway: Gateway, *, sends_request_id: bool, paths: Collection[str]) -> None:
        self._app = app
        self._paths = paths
        self._gateway = gateway
        self._sends_request_id = sends_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sends_request_id = self._sends_request_id or _SENDS_REQUEST_ID in scope
        gateway = self._gateway
        if await gateway.answer(scope, receive, send, sends_request_id=sends_request_id):
            return
        # Try again with the prefix, if there is one.
        if gateway.add_prefix(scope, self._paths) and await gateway.answer(scope, receive, send, sends_request_id=sends_request_id):
            return
        await gateway.forward(self._app, scope, receive, send, sends_request_id=sends_request_id)


def sending_request_ids(app: ASGIApp) -> ASGIApp:
    """An app whose `GatewayMiddleware` sends the request id itself, for requests that bypass Serve's wrapper."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope[_SENDS_REQUEST_ID] = True
        await app(scope, receive, send)

    return answer


def _route(path: str, codec: type[Codec], service: PredictionService, options: HttpOptions) -> PredictionRoute:
    labels = _labels(path, codec)
    if issubclass(codec, CountingCodec):
        return PredictionRoute(path, codec, partial(service.predict, codec), options.max_body_bytes, labels)
    if not codec.single_row:
        predict = service.predict_table if codec.response_types else service.predict_rows
        return PredictionRoute(path, codec, partial(predict, codec), options.max_body_bytes, labels)
    limit = min(options.max_row_bytes, options.max_body_bytes)
    return PredictionRoute(path, codec, partial(service.predict_row, codec), limit, labels, service.max_row_bytes)


def _labels(path: str, codec: type[Codec]) -> Mapping[str, RequestLabels]:
    return {body_format: RequestLabels(path, codec.protocol, body_format) for body_format in FORMATS}


async def _send_unless_decided(with_cors: Send, send: Send, message: Message) -> None:
    """Send the response to a preflight request. An answer already has the CORS headers; a refusal gets them here."""
    decided = any(name == b"access-control-allow-methods" for name, _ in message.get("headers", ()))
    await (send if decided else with_cors)(message)


def _streams(codec: type[Codec], values: HeaderValues) -> bool:
    """Whether the rows of a body can be answered while it arrives, by its formats and its content coding."""
    variant = codec.variant(values.get(b"content-type"), values.get(b"accept"))
    return variant is not None and variant.streams and (b"content-encoding" not in values or _encoding(values) == b"identity")


def _encoding(values: HeaderValues) -> bytes:
    """The content coding of the body; `x-gzip` is a name of `gzip` (RFC 9110, section 8.4.1.3)."""
    encoding = values[b"content-encoding"].strip().lower() or b"identity"
    return b"gzip" if encoding == b"x-gzip" else encoding


def _identity(scope: Scope, request_id: bytes) -> dict[str, Any]:
    """The fields that identify a request in the log: its id, and its trace id if it is traced."""
    trace_id = trace_context.trace_id(scope)
    return {"request_id": request_id.decode()} | ({"trace_id": trace_id} if trace_id else {})
