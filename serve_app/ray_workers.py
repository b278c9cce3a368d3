"""A temporary connection to Ray: to the cluster of RAY_ADDRESS, else to processes on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.errors import BackendUnavailable
from serve_app.secret_variables import without_secrets

LOOPBACK_FLAG = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch for clusters of several machines. Linux has it on by default; when it is off, a node has the address 127.0.0.1."""


def listen_on_loopback() -> None:
    """Let every process of a local Ray listen only on 127.0.0.1; call this before the import of Ray.

    `ray.init(_node_ip_address="127.0.0.1")` is not enough, because Ray replaces that address with the machine's own.
    """
    os.environ.setdefault(LOOPBACK_FLAG, "0")


@contextmanager
def workers(**local: Any) -> Iterator[None]:
    """Connect to Ray inside the block; `local` are the arguments of `ray.init` without a cluster. Raises BackendUnavailable."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        listen_on_loopback()
    import ray

    if ray.is_initialized():
        yield
        return
    where = f"at {address} (RAY_ADDRESS)" if address else "on this machine"
    for attempts_left in (1, 0):
        try:
            _connect(address, local)
            break
        except Exception as error:  # Ray raises a bare Exception when it starts too slowly on a busy machine
            if address or not attempts_left:
                raise BackendUnavailable(f"Ray {where} cannot be used: {' '.join(str(error).split())[:200]}") from None
            ray.shutdown()
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None, local: dict[str, Any]) -> None:
    import ray

    if address:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=5).close()  # Ray itself retries for minutes
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    else:
        with without_secrets():  # workers need no key
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, **local)
