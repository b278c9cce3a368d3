"""`create_app`: the whole HTTP side as a plain ASGI app over a slot, without Ray and without the environment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from serve_app import __version__
from serve_app.artifacts.fields import Unknown
from serve_app.http.auth import Keys
from serve_app.http.gateway import ASGIApp, Gateway
from serve_app.http.openapi import install_openapi
from serve_app.http.problems import problem
from serve_app.http.rate_limit import Limits, RateLimiter
from serve_app.http.rate_window import RateCounter, RateLimitClient
from serve_app.http.routes.health import health_router
from serve_app.http.routes.model import model_router
from serve_app.http.routes.predict import PredictionService, predict_router, to_response
from serve_app.inference.slot import Slot
from serve_app.telemetry.collector import MetricsCollector

log = logging.getLogger("iris_api.app")

ACCOUNT_SECONDS = 1.0
KEYS_SECONDS = 2.0
EXPOSED = ("X-Request-ID", "X-Model-Name", "X-Model-Version", "X-Model-Digest", "ETag", "Retry-After")
"""Headers that a page from another origin may read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the app behaves: the part of the settings that it needs."""

    api_key: str | None = None
    api_keys_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    cors_origins: tuple[str, ...] = ()
    model_name: str = "IrisClassifier"
    max_body_bytes: int = 16 * 1024 * 1024
    max_body_seconds: float = 15.0
    max_rows: int = 100_000
    unknown: Unknown = "refuse"
    poll_seconds: float = 1.0
    max_in_flight: int = 300
    max_wait_seconds: float = 1.0
    log_every: int = 0
    sends_request_id: bool = True
    hot_path: bool = True
    model_dir: Path | None = None


def create_app(
    slot: Slot,
    options: Options | None = None,
    *,
    on_export: Callable[[MetricsCollector], None] | None = None,
    book: RateCounter | None = None,
    around: Callable[[ASGIApp], ASGIApp] | None = None,
) -> FastAPI:
    """The app over this slot. While it runs it refreshes the slot every `poll_seconds`, in a thread of its own;
    `on_export` is called about once a second with the accounts, to pass them on; `book` counts rate limits for all replicas;
    `around` is put around the whole app."""
    options = options or Options()
    keys = Keys(options.api_key, options.api_keys_file)
    accounts = MetricsCollector(slot, options.model_dir)
    threads = (ThreadPoolExecutor(1, "rows"), ThreadPoolExecutor(1, "batches"))  # rows do not wait for batches
    answers = PredictionService(
        slot,
        accounts,
        check=keys.check,
        model_name=options.model_name,
        max_body_bytes=options.max_body_bytes,
        max_rows=options.max_rows,
        unknown=options.unknown,
        max_wait_seconds=options.max_wait_seconds,
        executor=threads[0],
        batches=threads[1],
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(_follow(slot, accounts, options.poll_seconds)),
            asyncio.create_task(_account(accounts, on_export)),
        ]
        if keys.file is not None:
            tasks.append(asyncio.create_task(_follow_keys(keys)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            for thread in threads:
                thread.shutdown(wait=False, cancel_futures=True)

    app: FastAPI = FastAPIOffline(
        title="iris-api",
        version=__version__,
        description="Answers with the model that the store points to. The schema of a row follows that model's signature.",
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would repeat the Host header and the query
        exception_handlers={HTTPException: _http_problem},
    )
    app.include_router(predict_router(answers))
    app.include_router(model_router(answers, model_name=options.model_name))
    app.include_router(health_router(slot, accounts))
    install_openapi(app, slot, max_rows=options.max_rows)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    gate = partial(
        Gateway,
        answers=answers,
        accounts=accounts,
        warden=RateLimiter(options.limits, RateLimitClient(book), keys.check) if options.limits else None,
        max_body_bytes=options.max_body_bytes,
        max_body_seconds=options.max_body_seconds,
        max_in_flight=options.max_in_flight,
        log_every=options.log_every,
        sends_request_id=options.sends_request_id,
        hot_path=options.hot_path,
    )
    app.add_middleware(gate)
    if around is not None:
        app.add_middleware(around)
    app.state.accounts = accounts
    app.state.gate = gate(app)
    return app


async def _follow(slot: Slot, accounts: MetricsCollector, seconds: float) -> None:
    """Refresh the slot for ever. A thread of its own: a load must not hold up requests, nor wait behind a batch."""
    loop = asyncio.get_running_loop()
    dice = random.Random()  # noqa: S311, replicas should not all look at once
    with ThreadPoolExecutor(1, "refresh") as thread:
        while True:
            await loop.run_in_executor(thread, slot.refresh)
            await loop.run_in_executor(thread, accounts.poll_store)
            await asyncio.sleep(seconds * dice.uniform(0.8, 1.0))


async def _follow_keys(keys: Keys) -> None:
    """Read the file of keys for ever; not in the slot's thread, where a revoked key would wait behind a load."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, "keys") as thread:
        while True:
            await asyncio.sleep(KEYS_SECONDS)
            await loop.run_in_executor(thread, keys.refresh)


async def _account(accounts: MetricsCollector, on_export: Callable[[MetricsCollector], None] | None) -> None:
    """Settle the accounts and pass them on, also while the store does not answer. A failure is told once and stops nothing."""
    told = False
    while True:
        try:
            accounts.flush()
            if on_export is not None:
                on_export(accounts)
        except Exception:
            if not told:
                log.exception("metrics cannot be passed on")
            told = True
        await asyncio.sleep(ACCOUNT_SECONDS)


async def _http_problem(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = {
        404: ("not_found", "There is nothing at this address; /docs lists what there is."),
        405: ("method_not_allowed", "This address does not take this method."),
    }
    code, detail = known.get(status, (f"http_{status}", str(getattr(error, "detail", "The request failed."))))
    headers = tuple((name.lower().encode(), value.encode()) for name, value in (getattr(error, "headers", None) or {}).items())
    return to_response(problem(status, code, detail, headers=headers))
