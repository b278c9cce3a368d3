"""The composition root: settings -> store -> slot -> app. `serve run serve_app.deployment:app` and serveConfigV2 import `app`."""

from __future__ import annotations

import atexit
import contextlib
import logging
import warnings
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve._private.constants import DEFAULT_HTTP_PORT

from serve_app.fast_path import tune_allocator, tune_interpreter
from serve_app.loopback import keep_loopback_direct
from serve_app.rayserve import grpc_services, ingress_hook
from serve_app.rayserve.flags import set_flags, warn_about_missing_flags
from serve_app.rayserve.isolation import isolated_haproxy
from serve_app.settings import Settings, export_mlflow_secrets, load_settings, wants_json

if TYPE_CHECKING:
    from fastapi import FastAPI

    from serve_app.grpc.calls import Calls
    from serve_app.http.gateway import Gateway
    from serve_app.http.routes.console import Console
    from serve_app.inference.slot import Slot
    from serve_app.inference.sources import Source
    from serve_app.telemetry.tracing import Tracing

# Functions of the replica import what they need. The processes that deploy it (the program that starts Serve, the controller) then
# start seconds faster, because they do not import scikit-learn.

APPLICATION = "iris-api"
CPUS = 0.5
log = logging.getLogger("iris_api.deployment")
_FOLLOWED = {
    "store": "the replica serves the version in the store and reads the alias in MLflow only while the store is empty; "
    "set IRIS_MODEL_SOURCE=mlflow to follow the alias",
    "mlflow": "the replica serves the version that the alias in MLflow names",
    "newest": "the replica serves the version that the store's pointer or the alias in MLflow names, whichever changed last",
}


def make_slot(settings: Settings) -> Slot:
    """The slot for IRIS_MODEL_SOURCE: it follows the store (MLflow's alias while the store is empty), the alias, or the newest."""
    from serve_app.artifacts.mlflow_mirror import Mirror
    from serve_app.artifacts.mlflow_source import MlflowSource
    from serve_app.artifacts.runs_folder import RunsFolder
    from serve_app.artifacts.store import Store
    from serve_app.inference.slot import Slot
    from serve_app.inference.sources import AliasSource

    store, decides = Store(settings.model_dir), settings.iris_model_source
    sources: list[Source] = [store]
    if settings.mlflow_tracking_uri:
        export_mlflow_secrets(settings)
        name, alias = settings.iris_model_name, settings.iris_model_alias
        registry = MlflowSource(
            settings.mlflow_tracking_uri,
            model_name=name,
            alias=alias,
            legacy=settings.model_dir if decides == "store" else None,
            poll_seconds=settings.iris_registry_poll_seconds,
        )
        if decides == "store":
            sources.append(registry)
        else:
            sources = [AliasSource(store, registry, Mirror(store, settings.cache_dir(), name=name, alias=alias), decides=decides)]
        log.info(_FOLLOWED[decides], extra={"model_source": decides, "address": f"models:/{name}@{alias}"})
    sources.append(RunsFolder(settings.model_dir))
    return Slot(*sources, policy=settings.load_policy())


def make_tracing(settings: Settings) -> Tracing | None:
    """The tracing of requests. None when IRIS_OTLP_ENDPOINT is not set; OpenTelemetry's exporter is not imported then."""
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
    """A replica: the ingress and the model run in one process, so a request never leaves it."""

    def __init__(self) -> None:
        from serve_app.rayserve.autoscaling import Usage, assigned_cpus
        from serve_app.rayserve.isolation import bind_replica_to_loopback
        from serve_app.telemetry.logs import configure

        bind_replica_to_loopback()
        keep_loopback_direct()  # MLflow or a trace collector may run on this machine
        self.settings = load_settings()
        configure(level=self.settings.log_level, json=wants_json(self.settings), file=self.settings.iris_log_file)
        warn_about_missing_flags()
        warnings.simplefilter("ignore")  # Python checks every filter for each tree of a forest; the tests turn warnings into errors
        self.slot = make_slot(self.settings)
        self.slot.refresh()
        self.usage = Usage(assigned_cpus() or CPUS)
        tune_allocator()
        tune_interpreter()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app of this replica. The ingress hook of this process calls the app before Serve does."""
        from serve_app.grpc.calls import Calls
        from serve_app.http.app import create_app
        from serve_app.http.gateway import sending_request_ids
        from serve_app.rayserve.metrics_export import Exporter
        from serve_app.rayserve.rate_counter import open_rate_counter
        from serve_app.rayserve.replica_reports import ReplicaReports, replica_name

        options = self.settings.http_options(sends_request_id=False)
        rate_counter = open_rate_counter() if options.rate_limits else None
        tracing = make_tracing(self.settings)
        app = create_app(
            self.slot,
            options,
            on_export=Exporter(),
            rate_counter=rate_counter,
            around=tracing.middleware if tracing else None,
            replica=replica_name(),
            reports=ReplicaReports(),
        )
        self.gateway: Gateway = app.state.gateway
        self.console: Console = app.state.console
        answer = self.gateway.answer
        ingress_hook.answer = tracing.around(answer, self.gateway.route_of) if tracing else answer
        ingress_hook.app = sending_request_ids(app)
        self.calls: Calls = Calls(self.gateway, app.state.service, options)
        grpc_services.serve(self.calls.answer, max_bytes=options.max_body_bytes)
        return app

    async def answer_call(self, call: grpc_services.Call, grpc_context: Any) -> grpc_services.Message:
        """Answer a call from one of Serve's Python proxies. HAProxy sends its calls to the gRPC server of this process instead."""
        return await grpc_services.answer_from_proxy(self.calls.answer, call, grpc_context)

    async def check_health(self) -> None:
        """Return at once. Serve calls this on the event loop that answers requests, so a result shows that the loop runs."""

    async def report(self) -> dict[str, Any]:
        """The data about this replica that every console shows; see `ReplicaReports`."""
        return self.console.report()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The values for the autoscaling policy. Serve's own count does not include requests that the ingress hook answers."""
        return {**self.usage.read(), "in_flight": self.gateway.mean_in_flight()}


def prepare_local_ray() -> None:
    """Set the flags of Ray Serve before this process starts Ray, as `serve run serve_app.deployment:app` does.

    The processes of that Ray inherit this environment. A Ray that already runs keeps its own: see `warn_about_missing_flags`.
    """
    if ray.is_initialized():
        return
    set_flags()
    haproxy = contextlib.ExitStack()
    haproxy.enter_context(isolated_haproxy(DEFAULT_HTTP_PORT))
    atexit.register(haproxy.close)


def __getattr__(name: str) -> Any:
    # The first access binds `app`. A module that only imports this one (a test, or for its types) reads no settings.
    if name == "app":
        settings = load_settings()
        prepare_local_ray()
        deployment: Any = IrisApi
        return deployment.options(num_replicas=settings.iris_replicas).bind()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
