"""The address on which Serve's Python gRPC servers listen; Serve's code has a fixed address, all interfaces.

Every process of Ray Serve imports this module, so keep it small.
"""

from __future__ import annotations

import os

CALL_HOST = "IRIS_GRPC_HOST"
"""A variable that the launcher sets: the host on which the gRPC servers of Serve's processes listen."""


def choose_call_host(host: str) -> None:
    """Let all Python gRPC servers of Serve listen on 127.0.0.1, or on `host` when clients connect to them without HAProxy."""
    os.environ[CALL_HOST] = "127.0.0.1" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else host


def bind_calls() -> None:
    """Let the gRPC server that Serve starts in this process listen on the launcher's host.

    Serve's code has a fixed address, all interfaces.
    """
    host = os.environ.get(CALL_HOST)
    if not host:
        return
    from ray.serve._private import default_impl

    add_address = default_impl.add_grpc_address
    default_impl.add_grpc_address = lambda server, address: add_address(server, address.replace("[::]", host))
