"""The address on which Serve's gRPC servers in Python listen. It is fixed in Serve's code: all interfaces.

Every process of Ray Serve imports this module, so it stays small.
"""

from __future__ import annotations

import os

CALL_HOST = "IRIS_GRPC_HOST"
"""Variable of the launcher: where the gRPC servers of Serve's processes listen."""


def choose_call_host(host: str) -> None:
    """Let all of Serve's gRPC servers in Python listen on 127.0.0.1, and without HAProxy on `host`, where clients are."""
    os.environ[CALL_HOST] = "127.0.0.1" if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1" else host


def bind_calls() -> None:
    """Let the server that Serve starts for gRPC calls in this process listen on the host that the launcher has chosen.

    Its address is fixed in Serve's code: all interfaces.
    """
    host = os.environ.get(CALL_HOST)
    if not host:
        return
    from ray.serve._private import default_impl

    add_address = default_impl.add_grpc_address
    default_impl.add_grpc_address = lambda server, address: add_address(server, address.replace("[::]", host))
