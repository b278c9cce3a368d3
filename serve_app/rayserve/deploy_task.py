"""The start of Serve and of the application as a task in a worker of Ray, which ends afterwards.

The process that waits for Ctrl-C then needs Ray alone: Ray Serve and FastAPI, imported there, would take 30 MB for as long as the
application runs.
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
"""Time between two looks at the state of an application that does not run yet."""


def deploy(module: str, host: str, port: int, grpc_options: dict[str, Any] | None) -> Any:
    """Start Serve with HTTP on `host` and `port`, and the application; the result is there when the application runs.

    `module` is the name of a module with the bound deployment, `app`, and its name in Ray Serve, `APPLICATION`. Serve takes
    gRPC calls as `grpc_options` say, and none when they are None. `ray.get` of what is returned raises what ended the start.
    """
    return ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_deploy).remote(module, host, port, grpc_options)


def _deploy(module: str, host: str, port: int, grpc_options: dict[str, Any] | None) -> None:
    from ray import serve

    root = importlib.import_module(module)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with ThreadPoolExecutor(max_workers=1) as pool:
        # `serve.start` returns after the start of HAProxy. The replica starts beside it.
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
    """Wait until Serve's controller exists, or raise what ended the start."""
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    while not start.done():
        with contextlib.suppress(ValueError):  # there is no such actor yet
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
