"""The flags of Ray Serve in `serve.env`. Each process of Serve reads them from its environment at the import of Serve."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

FILE = Path(__file__).with_name("serve.env")
FAST = "serve run serve_app/rayserve/serve.yaml"
"""The command that starts the application with its flags, also on a Ray that runs without them."""

DECISIVE = (
    "RAY_SERVE_ENABLE_HA_PROXY",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
)
"""The flags that decide the speed of requests and the limit of their bodies."""

ONE_MACHINE = {
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # no other HAProxy sends requests to a replica that stops
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",  # the start waits for several rounds of the controller
    # Sometimes Ray's node connects to its object store before the store listens, and tries again a second later. The product of the
    # two values stays 10 s.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
    # Ray shows similar lines of several replicas within five seconds once; each line of `routes.console_actions` must be shown.
    "RAY_DEDUP_LOGS_ALLOW_REGEX": "the served version",
}
"""Flags of an application on one machine, which precede those of `serve.env`."""

_logger = logging.getLogger("iris_api.flags")


def read_flags() -> dict[str, str]:
    """Name and value of each flag, for this operating system."""
    pairs = (line.partition("=") for line in FILE.read_text().splitlines() if line and not line.startswith("#"))
    flags = {name: value.strip('"') for name, _, value in pairs}
    if sys.platform != "linux":
        flags["RAY_SERVE_ENABLE_HA_PROXY"] = "0"  # Ray ships HAProxy only for Linux
    return flags


def set_flags() -> None:
    """Set the flags that the environment does not set already, for the processes that this process starts."""
    for name, value in read_flags().items():
        os.environ.setdefault(name, value)


def set_one_machine_flags() -> None:
    """Set the flags for one machine and those of `serve.env`, except flags that the environment sets already."""
    for name, value in ONE_MACHINE.items():
        os.environ.setdefault(name, value)
    set_flags()


def missing_flags(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The names of the flags that are not set. A flag with another value counts as set on purpose."""
    return [name for name in read_flags() if name not in environment]


def warn_about_missing_flags() -> None:
    """Log one warning when a decisive flag is missing, because this replica is slow then, or reads bodies without a limit."""
    missing = missing_flags()
    if set(DECISIVE) & set(missing):
        _logger.warning(
            "Ray Serve runs without %d of the %d flags in serve_app/rayserve/serve.env (%s is one): requests take many times "
            "longer, and their bodies are read without a limit. Stop Serve (Ctrl-C, or `serve shutdown`), then start it with the "
            "flags: %s",
            len(missing),
            len(read_flags()),
            next(name for name in DECISIVE if name in missing),
            FAST,
        )
