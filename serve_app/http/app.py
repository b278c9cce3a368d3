"""`create_app`: the whole HTTP side as a plain ASGI app over a slot. It does not use Ray or the environment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from serve_app import __version__
from serve_app.fast_path import release_memory
from serve_app.http.auth import Keys
from serve_app.http.gateway import Gateway, GatewayMiddleware
from serve_app.http.openapi import install_openapi
from serve_app.http.options import HttpOptions
from serve_app.http.pages import require_key
from serve_app.http.prediction_service import PredictionService
from serve_app.http.prefix import path_below
from serve_app.http.problems import NOT_FOUND, Headers, HttpProblem, method_not_allowed, problem
from serve_app.http.rate_limit import RateLimiter, free_paths
from serve_app.http.rate_window import RateCounter, RateLimitClient
from serve_app.http.responses import ASGIApp, problem_response, to_starlette
from serve_app.http.routes.console import Console, Reports, install_console
from serve_app.http.routes.console_actions import install_actions
from serve_app.http.routes.documentation import install_documentation
from serve_app.http.routes.health import health_router
from serve_app.http.routes.model import model_router
from serve_app.http.routes.open_inference import open_inference_router
from serve_app.http.routes.predictions import MODEL_ROUTES, PREDICTION_ROUTES, problem_codec
from serve_app.http.routes.tables import kserve_router, ping_router, table_routes
from serve_app.inference.slot import Slot
from serve_app.protocols.codec import Codec
from serve_app.telemetry.collector import MetricsCollector
from serve_app.telemetry.history import History

log = logging.getLogger("iris_api.app")

EXPORT_SECONDS = 1.0
KEYS_SECONDS = 2.0
EXPOSED_HEADERS = (
    *("X-Request-ID", "X-Model-Name", "X-Model-Version", "X-Model-Digest", "ETag"),
    *("Retry-After", "RateLimit", "RateLimit-Policy", "Accept-Encoding", "Allow", "Inference-Header-Content-Length"),
)
"""Headers that a page from another origin may read."""


def create_app(
    slot: Slot,
    options: HttpOptions,
    *,
    on_export: Callable[[MetricsCollector], None] | None = None,
    rate_counter: RateCounter | None = None,
    around: Callable[[ASGIApp], ASGIApp] | None = None,
    replica: str = "this process",
    reports: Reports | None = None,
    routes: Mapping[str, type[Codec]] = PREDICTION_ROUTES,
    model_routes: Mapping[str, type[Codec]] = MODEL_ROUTES,
) -> FastAPI:
    """The app over this slot. `app.state` holds its `gateway` and `service` for the ingress hook and for calls over gRPC.

    A separate thread refreshes the slot every `poll_seconds` while the app runs. The app calls `on_export` about once a second to
    export the metrics. `rate_counter` counts rate limits for all replicas, and `around` wraps the whole app. The console calls
    `reports` to get the reports of all replicas; `replica` is the name of this replica.
    """
    predictions = {**table_routes(options), **routes}
    keys = Keys(options.api_key, options.api_keys_file, previous=options.api_key_previous, folder=options.api_key_folder)
    collector = MetricsCollector(slot, options.model_dir)
    history = History()
    # Separate threads: rows do not wait for batches, and neither of them waits for the decompression of a body.
    rows, batches, inflating = (ThreadPoolExecutor(1, name) for name in ("rows", "batches", "inflating"))
    service = PredictionService(slot, collector, options, check=keys.check, executor=rows, batches=batches)
    console = Console(service, history, options, name=replica, reports=reports)
    limits, free = options.rate_limits, free_paths(options.health_route)
    gateway = Gateway(
        service,
        collector,
        options,
        routes=predictions,
        model_routes=model_routes,
        rate_limiter=RateLimiter(limits, RateLimitClient(rate_counter), keys.check, free) if limits else None,
        cors=_cors(options.cors_origins),
        executor=inflating,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with _background(slot, collector, history, keys, options.poll_seconds, on_export):
            yield
        for executor in (rows, batches, inflating):
            executor.shutdown(wait=False, cancel_futures=True)
        console.close()

    app: FastAPI = FastAPIOffline(
        docs_url=None,  # FastAPI's pages use absolute addresses; `install_documentation` adds pages with relative addresses
        redoc_url=None,
        servers=[{"url": "."}],  # relative to the document, so it is correct behind any prefix
        title="iris-api",
        version=__version__,
        description="Predictions of the served model. The schema of a row follows the signature of this model.",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would repeat the Host header and the query
        exception_handlers={HTTPException: _http_problem},
    )
    install_documentation(app)
    install_console(app, console, service, options)
    if options.console_actions:
        install_actions(app, console, service)
    routers = (
        model_router(service, model_name=options.model_name),
        health_router(slot, collector, None if options.public_pages else service.refuse_key),
        ping_router(service, options.health_route),
        kserve_router(service, options.model_name),
        open_inference_router(service, model_name=options.model_name, public_pages=options.public_pages),
    )
    for router in routers:
        app.include_router(router)
    install_openapi(
        app, slot, routes, max_rows=options.max_rows, unknown_fields=options.unknown_fields, public_pages=options.public_pages
    )
    if not options.public_pages:
        require_key(app.routes, service.refuse_key)
    own = [route for routed in (app, *routers) for route in routed.routes if isinstance(route, Route | Mount)]
    paths = frozenset([*predictions, *(route.path for route in own)])
    app.add_middleware(GatewayMiddleware, gateway=gateway, sends_request_id=options.sends_request_id, paths=paths)
    if around is not None:
        app.add_middleware(around)
    app.state.collector = collector
    app.state.console = console
    app.state.gateway = gateway
    app.state.service = service
    return app


def _cors(origins: tuple[str, ...]) -> CORSMiddleware | None:
    """The middleware that decides about other origins. The gateway asks it for decisions, so it wraps no app."""
    if not origins:
        return None

    async def no_app(*_: object) -> None:
        raise AssertionError("the gateway uses CORSMiddleware for decisions only")

    return CORSMiddleware(
        no_app,
        allow_origins=list(origins),
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )


@contextlib.asynccontextmanager
async def _background(
    slot: Slot,
    collector: MetricsCollector,
    history: History,
    keys: Keys,
    poll_seconds: float,
    on_export: Callable[[MetricsCollector], None] | None,
) -> AsyncIterator[None]:
    """Run the tasks that update the slot, the metrics and the keys until the block ends."""
    tasks = [
        asyncio.create_task(_follow_store(slot, poll_seconds)),
        asyncio.create_task(_follow_volume(collector, poll_seconds)),
        asyncio.create_task(_export_metrics(collector, history, on_export)),
    ]
    if keys.may_change:
        tasks.append(asyncio.create_task(_follow_keys(keys)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _follow_store(slot: Slot, seconds: float) -> None:
    """Refresh the slot until cancelled. A separate thread: a load must not delay requests, and must not wait for a batch."""
    loop = asyncio.get_running_loop()
    random_source = random.Random()  # noqa: S311, spreads the polls of replicas
    swapped = False
    with ThreadPoolExecutor(1, "refresh") as thread:
        try:
            while True:
                swapped_before, swapped = swapped, await loop.run_in_executor(thread, slot.refresh)
                if swapped_before:  # one poll later, when no request and no metric refers to the replaced model
                    await loop.run_in_executor(thread, release_memory)
                await asyncio.sleep(seconds * random_source.uniform(0.8, 1.0))
        finally:
            slot.close()  # otherwise the thread would end only after a running load


async def _follow_volume(collector: MetricsCollector, seconds: float) -> None:
    """Poll the store's volume and the last report until cancelled. The slot's thread must not wait for them."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "volume") as thread:
        while True:
            await loop.run_in_executor(thread, collector.poll_store)
            await asyncio.sleep(seconds)


async def _follow_keys(keys: Keys) -> None:
    """Read the API keys again until cancelled. In the slot's thread, a revoked key would stay valid during a load."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "keys") as thread:
        while True:
            await asyncio.sleep(KEYS_SECONDS)
            await loop.run_in_executor(thread, keys.refresh)


async def _export_metrics(
    collector: MetricsCollector, history: History, on_export: Callable[[MetricsCollector], None] | None
) -> None:
    """Sum up the metrics and export them until cancelled, also while the store does not answer.

    Only the first failure is logged. A failure does not end the export.
    """
    logged = False
    while True:
        try:
            collector.flush()
            predictor = collector.slot.predictor
            history.sample(collector.state, None if predictor is None else predictor.version)
            if on_export is not None:
                on_export(collector)
        except Exception:
            if not logged:
                log.exception("metrics cannot be exported")
            logged = True
        await asyncio.sleep(EXPORT_SECONDS)


async def _http_problem(request: Request, error: Exception) -> Response:
    """The response to an error that FastAPI's router raised."""
    headers = tuple((name.lower().encode(), value.encode()) for name, value in (getattr(error, "headers", None) or {}).items())
    return to_starlette(problem_response(_problem_of_status(error, headers), problem_codec(path_below(request.scope))))


def _problem_of_status(error: Exception, headers: Headers) -> HttpProblem:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return NOT_FOUND
    if status == 405:
        return method_not_allowed(tuple((name, b"GET, HEAD" if value == b"GET" else value) for name, value in headers))
    return problem(status, f"http_{status}", str(getattr(error, "detail", "The request failed.")), headers=headers)
