"""The composition root: settings -> store -> slot -> app. `serve run serve_app.deployment:app` and serveConfigV2 import `app`."""

from __future__ import annotations

import gc
import sys
import warnings
from typing import TYPE_CHECKING, Any

from ray import serve

from serve_app.rayserve import ingress_hook as edge
from serve_app.settings import Settings, load_settings, wants_json

if TYPE_CHECKING:
    from fastapi import FastAPI

    from serve_app.http.app import Options
    from serve_app.http.rate_limit import Limits
    from serve_app.inference.slot import Slot, Source
    from serve_app.telemetry.tracing import Tracing

# What a replica needs is imported in the replica: whoever deploys it (the program that starts Serve, the controller) starts
# seconds sooner without scikit-learn.

APPLICATION = "iris-api"
CPUS = 0.5

SWITCH_SECONDS = 0.0002
"""How long a thread waits for Python's lock before it asks for it. Ray's main thread wants it a hundred times a second; with the
default of 5 ms it never asks under load, and is woken in vain with each request instead."""


def make_slot(settings: Settings) -> Slot:
    """The slot that follows the store, and MLflow while the store is empty."""
    from serve_app.artifacts.mlflow_source import Registry
    from serve_app.artifacts.signing import verifier
    from serve_app.artifacts.store import Store
    from serve_app.inference.predictor import LoadPolicy
    from serve_app.inference.slot import Slot

    sources: list[Source] = [Store(settings.model_dir)]
    if settings.mlflow_tracking_uri:
        sources.append(
            Registry(
                settings.mlflow_tracking_uri,
                model_name=settings.iris_model_name,
                alias=settings.iris_model_alias,
                model_dir=settings.model_dir,
                poll_seconds=settings.iris_registry_poll_seconds,
            )
        )
    policy = LoadPolicy(
        allow_joblib=settings.iris_allow_joblib,
        backend=settings.iris_predictor,
        verify=verifier(settings.iris_verify_key) if settings.iris_verify_key else None,
    )
    return Slot(*sources, policy=policy)


def make_options(settings: Settings, *, sends_request_id: bool) -> Options:
    """The part of the settings that the app needs."""
    from serve_app.http.app import Options

    return Options(
        api_key=settings.api_key.get_secret_value() if settings.api_key else None,
        api_keys_file=settings.iris_api_keys_file,
        limits=make_limits(settings),
        cors_origins=settings.cors_origins,
        model_name=settings.iris_model_name,
        max_body_bytes=settings.iris_max_body_bytes,
        max_body_seconds=settings.iris_max_body_seconds,
        max_rows=settings.iris_max_rows,
        unknown=settings.iris_unknown_category,
        max_wait_seconds=settings.iris_max_wait_seconds,
        poll_seconds=settings.iris_poll_seconds,
        log_every=settings.iris_access_log_every,
        sends_request_id=sends_request_id,
        model_dir=settings.model_dir,
    )


def make_limits(settings: Settings) -> Limits:
    """What is limited, and whose word on a client's address is taken."""
    from serve_app.http.rate_limit import COMPAT, Limits, parse_networks
    from serve_app.http.rate_window import parse_rate

    rates = (settings.iris_rate_limit_per_key, settings.iris_rate_limit_per_client)
    per_key, per_client = (parse_rate(rate) if rate else None for rate in rates)
    return Limits(per_key, per_client, COMPAT if settings.iris_compat_limits else {}, parse_networks(settings.iris_trusted_proxies))


def make_tracing(settings: Settings) -> Tracing | None:
    """What makes spans; None, with nothing of OpenTelemetry's exporter imported, when no address for them is set."""
    if settings.iris_otlp_endpoint is None:
        return None
    from serve_app.telemetry.tracing import open_tracing

    return open_tracing(settings.iris_otlp_endpoint, settings.iris_trace_ratio)


@serve.deployment(
    name="IrisApi",
    ray_actor_options={"num_cpus": CPUS},
    max_ongoing_requests=100,
    max_queued_requests=200,
    backpressure_config={"status_code": 429, "retry_after_s": 1},
    graceful_shutdown_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
    health_check_period_s=5,
    health_check_timeout_s=10,
    max_constructor_retry_count=3,
    logging_config={"enable_access_log": False, "encoding": "JSON", "log_level": "WARNING"},
)
@serve.ingress()
class IrisApi:
    """A replica: ingress and model in one process, so a request never leaves it."""

    def __init__(self) -> None:
        from serve_app.rayserve.autoscaling import Usage, assigned_cpus
        from serve_app.telemetry.logs import configure

        self.settings = load_settings()
        configure(level=self.settings.log_level, json=wants_json(self.settings))
        warnings.simplefilter("ignore")  # each filter is run through for each tree of a forest; the tests run with errors
        self.slot = make_slot(self.settings)
        self.slot.refresh()
        self.usage = Usage(assigned_cpus() or CPUS)
        # What lives now lives on; collecting it again and again only costs latency.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        sys.setswitchinterval(SWITCH_SECONDS)

    def __serve_build_asgi_app__(self) -> FastAPI:
        from serve_app.http.app import create_app
        from serve_app.rayserve.metrics_export import Exporter
        from serve_app.rayserve.rate_counter import open_rate_counter

        options = make_options(self.settings, sends_request_id=False)
        book = open_rate_counter() if options.limits else None
        tracing = make_tracing(self.settings)
        app = create_app(self.slot, options, on_export=Exporter(), book=book, around=tracing.middleware if tracing else None)
        self.gate = app.state.gate
        edge.answer = tracing.around(self.gate.answer) if tracing else self.gate.answer
        return app

    async def check_health(self) -> None:
        """Serve asks on the event loop that answers requests: that it can ask is the proof."""

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy reads; Serve's own count does not see what the edge answers."""
        return {**self.usage.read(), "in_flight": self.gate.mean_in_flight()}


def __getattr__(name: str) -> Any:
    # `app` is bound when it is asked for, so that importing this module (for a test, for its types) reads no settings.
    if name == "app":
        settings = load_settings()
        deployment: Any = IrisApi
        return deployment.options(num_replicas=settings.iris_replicas).bind()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
