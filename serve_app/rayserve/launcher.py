"""The application on one machine: start Ray and Serve, say when it answers, stop everything on a signal."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve

from serve_app.errors import IrisApiError
from serve_app.rayserve import scrape_targets as targets
from serve_app.rayserve.isolation import check_port
from serve_app.settings import Settings

START_SECONDS = 120.0
LOGS = "/tmp/ray/session_latest/logs"  # noqa: S108, where Ray puts them
NOTES = ("metrics", "haproxy")
QUIET = ("ray._private.authentication.authentication_token_setup",)
"""Tells of Ray's own token, which protects what it starts here and asks nothing of the user."""


class StartError(IrisApiError):
    """The application could not be started; the message says what to change."""


def serve_until_stopped(application: Callable[[], Any], settings: Settings, *, name: str, host: str, port: int) -> None:
    """Serve what `application` builds, as `name`, until SIGINT or SIGTERM; then stop every process. Raises StartError."""
    check_port(host, port)
    stop = threading.Event()
    _listen(stop)
    started = time.monotonic()
    say(f"starting Ray Serve with {settings.iris_replicas} replica(s), models from {settings.model_dir.absolute()} …")
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104, compared, not bound
    try:
        _start(application, settings, name, host, port, stop)
        _wait(url, stop)
        if not stop.is_set():
            say(f"ready after {time.monotonic() - started:.1f} s: {url}  (docs: {url}/docs, stop: Ctrl-C)")
            _say_how(url, settings)
        while not stop.wait(0.5):
            pass
    finally:
        say("stopping …")
        for what in NOTES:
            targets.note(port, what).unlink(missing_ok=True)
        _stop()
    say("stopped")


def say(text: str) -> None:
    sys.stdout.write(f"iris-api: {text}\n")
    sys.stdout.flush()


def _listen(stop: threading.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())


def _start(application: Callable[[], Any], settings: Settings, name: str, host: str, port: int, stop: threading.Event) -> None:
    """Ray, Serve and the application; StartError when one of them does not come up."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for logger in QUIET:
        logging.getLogger(logger).setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # a file is read by programs
    os.environ["IRIS_TERMINAL"] = "1" if sys.stderr.isatty() else "0"
    # Ray's processes import this package wherever they run.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    for setting, value in settings:
        if isinstance(value, Path):
            os.environ[setting.upper()] = str(value.absolute())  # a replica's working directory is another
    try:
        session = _start_ray(settings, host)
        _listen(stop)  # again: Ray puts a handler of its own on SIGTERM, which leaves Serve's processes behind
        ports = (session.address_info["metrics_export_port"], int(os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"]))
        targets.write_notes(port, **dict(zip(NOTES, ports, strict=True)))
        serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
        serve.run(application(), name=name, blocking=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise StartError(f"the application did not start ({reason[:200]}); the logs are in {LOGS}") from error


def _start_ray(settings: Settings, host: str) -> Any:
    """A Ray of our own; tried twice, because Ray gives its node 30 s to start, too few on a busy machine."""
    for last in (False, True):
        try:
            return ray.init(
                address="local",  # a cluster that runs here already is somebody else's
                num_cpus=max(os.cpu_count() or 1, settings.iris_replicas),
                include_dashboard=False,
                logging_level=logging.WARNING,
                object_store_memory=100 * 1024 * 1024,
                _node_ip_address="127.0.0.1" if host == "127.0.0.1" else None,
            )
        except Exception as error:
            ray.shutdown()
            if last:
                raise
            say(f"Ray did not start ({' '.join(str(error).split())[:80]}); once more …")
    raise AssertionError


def _wait(url: str, stop: threading.Event) -> None:
    """Until the proxy answers; a model may still be missing then, and is said so."""
    deadline = time.monotonic() + START_SECONDS
    while not stop.is_set():
        try:
            with urllib.request.urlopen(f"{url}/livez", timeout=2):  # noqa: S310, our own address
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise StartError(f"no answer after {START_SECONDS:.0f} s ({error}); the logs are in {LOGS}") from None
        stop.wait(0.05)


def _say_how(url: str, settings: Settings) -> None:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310
            pass
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=5) as response:  # noqa: S310
            row = json.load(response)["components"]["schemas"]["Row"]
    except urllib.error.HTTPError as error:
        say(f"{json.load(error)['detail']} It is picked up as soon as it is there: make train")
        return
    key = ' -H "X-API-Key: $API_KEY"' if settings.api_key or settings.iris_api_keys_file else ""
    say(f"try it: curl {url}/predict{key} -H 'Content-Type: application/json' -d '{json.dumps(row.get('example', {}))}'")


def _stop() -> None:
    """Serve first, then Ray: HAProxy belongs to Serve, and an orphan would hold the port."""
    if not ray.is_initialized():
        return
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        serve.shutdown()  # Ray reports the end of its own controller as a failure
        ray.shutdown()
