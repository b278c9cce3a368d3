"""Launcher of the application on one machine: starts Ray and Serve, reports the first answer, stops everything on a signal."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from serve_app.errors import IrisApiError
from serve_app.loopback import direct_opener, names_proxy
from serve_app.rayserve.call_host import choose_call_host
from serve_app.rayserve.deploy_task import deploy
from serve_app.rayserve.example import command
from serve_app.rayserve.grpc_services import grpc_options
from serve_app.rayserve.local_node import local_nodes
from serve_app.rayserve.scrape_targets import targets_file, write_targets
from serve_app.settings import Settings

START_SECONDS = 120.0
"""Time limit from the start of the application to its first answer."""
LOGS = "/tmp/ray/session_latest/logs"  # noqa: S108, Ray's folder
SERVE_WORKERS = 4
"""Ray workers beside the replicas: the task that starts Serve, the controller, the Python proxy, and the owner of HAProxy."""
METRICS_SOURCES = ("metrics", "haproxy")
SILENCED_LOGGERS = ("ray._private.authentication.authentication_token_setup",)
"""Loggers whose lines need no action by the user: this logger reports that Ray created a token for its own processes."""


class StartError(IrisApiError):
    """The application did not start; the message names the fix."""


def serve_until_stopped(settings: Settings, *, module: str, host: str, port: int, dashboard: bool) -> None:
    """Serve the application of `module` (see `deploy_task`) on `host` and `port` until SIGINT or SIGTERM, then stop every process.

    With `dashboard`, every process of Ray runs, else only those of `local_node`. Raises StartError when Ray or Serve do not start,
    and when the application does not answer within `START_SECONDS`. The caller has checked that the port is free.
    """
    stop = threading.Event()
    _set_signal_handlers(stop)
    started = time.monotonic()
    echo(f"starting Ray Serve with {settings.iris_replicas} replica(s), models from {settings.model_dir.absolute()} …")
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104, compared, not bound
    aside = tempfile.TemporaryDirectory(prefix="iris-api-")
    try:
        _set_environment(settings)
        with _failing_as_start_error():
            choose_call_host(host)
            session = _start_ray(settings, dashboard=dashboard)
            _set_signal_handlers(stop)  # again: Ray sets its own handler for SIGTERM, which leaves Serve's processes behind
            ports = (session.address_info["metrics_export_port"], int(os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"]))
            write_targets(port, **dict(zip(METRICS_SOURCES, ports, strict=True)))
            calls = grpc_options(settings.iris_grpc_port, reflection=settings.environment == "development")
            _wait_until_live(url, deploy(module, host, port, calls), stop)
        if not stop.is_set():
            echo(f"ready after {time.monotonic() - started:.1f} s: {url}  (docs: {url}/docs, stop: Ctrl-C)")
            if settings.iris_grpc_port is not None:
                echo(f"gRPC: {url.removeprefix('http://').rpartition(':')[0]}:{settings.iris_grpc_port}")
            _print_example(url, settings, Path(aside.name))
        while not stop.wait(0.5):
            pass
    finally:
        echo("stopping …")
        for source in METRICS_SOURCES:
            targets_file(port, source).unlink(missing_ok=True)
        _shut_down()
        aside.cleanup()
    echo("stopped")


def echo(text: str) -> None:
    """Print a line of the application to standard output, at once."""
    sys.stdout.write(f"iris-api: {text}\n")
    sys.stdout.flush()


def _set_signal_handlers(stop: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())


def _set_environment(settings: Settings) -> None:
    """Set the environment that Ray's processes inherit, and configure the logging of this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for logger in SILENCED_LOGGERS:
        logging.getLogger(logger).setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # programs read the output
    os.environ["IRIS_TERMINAL"] = "1" if sys.stderr.isatty() else "0"
    # Ray's processes have another working directory, and import this package.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    for setting, value in settings:
        if isinstance(value, Path):
            os.environ[setting.upper()] = str(value.absolute())  # a replica has another working directory


@contextlib.contextmanager
def _failing_as_start_error() -> Iterator[None]:
    """Raise StartError with the last line of an error in the block."""
    try:
        yield
    except StartError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise StartError(f"the application did not start ({reason[:200]}); the logs are in {LOGS}") from error


def _start_ray(settings: Settings, *, dashboard: bool) -> Any:
    """Start a local Ray, with one retry: Ray gives its node 30 s to start, which is too short on a busy machine."""
    for last in (False, True):
        try:
            with contextlib.nullcontext() if dashboard else local_nodes():
                return ray.init(
                    address="local",  # never join a cluster that already runs on this machine
                    num_cpus=settings.iris_replicas + SERVE_WORKERS,  # Ray starts one worker for each CPU in advance
                    include_dashboard=dashboard,
                    logging_level=logging.WARNING,
                    object_store_memory=100 * 1024 * 1024,
                )
        except Exception as error:
            ray.shutdown()
            if last:
                raise
            echo(f"Ray did not start ({' '.join(str(error).split())[:80]}); trying again …")
    raise AssertionError


def _wait_until_live(url: str, deployed: Any, stop: threading.Event) -> None:
    """Wait until the application answers, also without a model. Raises the error that ended the task `deployed`."""
    deadline = time.monotonic() + START_SECONDS
    while not stop.is_set():
        try:
            with direct_opener().open(f"{url}/livez", timeout=2):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise StartError(f"no answer after {START_SECONDS:.0f} s ({error}); the logs are in {LOGS}") from None
        if ray.wait([deployed], timeout=0)[0]:
            ray.get(deployed)
        stop.wait(0.05)


def _print_example(url: str, settings: Settings, folder: Path) -> None:
    """Print a request for the served model, or the reason why there is no model; a long row goes into a file in `folder`."""
    try:
        with direct_opener().open(f"{url}/readyz", timeout=5):
            pass
    except urllib.error.HTTPError as error:
        echo(f"{json.load(error)['detail']} The application loads a model as soon as you publish one: make train")
        return
    needs_key = bool(settings.api_key or settings.iris_api_keys_file)
    line = command(url, _example(url, settings), needs_key=needs_key, folder=folder, proxied=names_proxy())
    echo(f"try it: {line}")


def _example(url: str, settings: Settings) -> Any:
    """The example row in the OpenAPI document; `{}` when the document needs a key and this process knows only its hash."""
    headers = {"X-API-Key": settings.api_key.get_secret_value()} if settings.api_key else {}
    request = urllib.request.Request(f"{url}/openapi.json", headers=headers)  # noqa: S310, the address of this application
    try:
        with direct_opener().open(request, timeout=5) as response:
            return json.load(response)["components"]["schemas"]["Row"].get("example", {})
    except urllib.error.HTTPError:
        return {}


def _shut_down() -> None:
    """Stop Serve, then Ray, because HAProxy is a process of Serve, and an orphan would keep the port."""
    if not ray.is_initialized():
        return
    from ray import serve

    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        serve.shutdown()  # Ray logs the end of its own controller as a failure
        ray.shutdown()
