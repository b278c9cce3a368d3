"""Starts Serve and the application in a task of a Ray worker, which ends afterwards.

So the process that waits for Ctrl-C imports only Ray: Ray Serve and FastAPI would take 30 MB there while the application runs.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray

CONTROLLER_POLL_SECONDS = 0.02
STATUS_SECONDS = 0.2
"""Seconds between two checks of an application that does not run yet."""


def deploy(module: str, host: str, port: int, grpc_options: dict[str, Any] | None) -> Any:
    """Start Serve with HTTP on `host` and `port`, and the application; returns a reference that is ready when the application runs.

    `module` is the name of a module with the bound deployment `app` and its name in Ray Serve, `APPLICATION`. `grpc_options` are
    the gRPC options of Serve, None for no gRPC. `ray.get` of the reference raises the error that ended the start.
    """
    return ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_deploy).remote(module, host, port, grpc_options)


def _deploy(module: str, host: str, port: int, grpc_options: dict[str, Any] | None) -> None:
    from ray import serve

    root = importlib.import_module(module)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with ThreadPoolExecutor(max_workers=1) as pool:
        # `serve.start` returns after the start of HAProxy; meanwhile, the replica starts.
        start = pool.submit(
            serve.start,
            http_options={"host": host, "port": port},
            grpc_options=grpc_options,
            logging_config={"log_level": "ERROR"},
        )
        _wait_for_controller(start)
        target = serve.RunTarget(root.app, name=root.APPLICATION)
        serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        start.result()
    _wait_until_running(root.APPLICATION)


def _wait_for_controller(start: Future[Any]) -> None:
    """Wait until Serve's controller exists, or raise the error that ended the start."""
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    while not start.done():
        with contextlib.suppress(ValueError):  # the actor does not exist yet
            ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            return
        time.sleep(CONTROLLER_POLL_SECONDS)
    start.result()


def _wait_until_running(name: str) -> None:
    """Wait until the application runs; raise RuntimeError with Serve's message when Serve has given up."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    while True:
        application = serve.status().applications.get(name)
        if application is not None and application.status == ApplicationStatus.RUNNING:
            return
        if application is not None and application.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(application.message)
        time.sleep(STATUS_SECONDS)
