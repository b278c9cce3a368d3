"""Isolation of applications on one machine: each one gets its own ports and its own folder of HAProxy files.

Ray Serve's default ports are fixed and opened with SO_REUSEPORT, so that a second HAProxy shares them without an error. Its
default folder below /tmp belongs to the user who started the first application.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serve_app.settings import SettingsError

FREE_PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
MIN_PORT, MAX_PORT = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"
FIRST_PORT, BLOCKS, BLOCK_SIZE = 20_000, 120, 100
"""The replicas of an application listen on a block of ports of its own, below the kernel's ephemeral ports. A replica on a
port that the HAProxy of another application still knows would answer the clients of that application."""
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}


@contextlib.contextmanager
def isolated_environment(port: int) -> Iterator[None]:
    """Set the environment of an application on `port`; variables that the user has set stay.

    Enter it before Ray Serve is imported, because Ray Serve reads the variables at its import. The folder of HAProxy's files
    is removed at the end.
    """
    folder = Path(tempfile.mkdtemp(prefix="iris-api-", dir="/tmp"))  # the path of a socket may have 107 bytes
    for name, file in FILES.items():
        os.environ.setdefault(name, str(folder / file))
    choose_ports(port)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def choose_ports(port: int) -> None:
    """Set free ports for HAProxy's pages and the fallback proxy, and the block of ports for the replicas of `port`."""
    with contextlib.ExitStack() as probes:
        for name in FREE_PORTS:
            if not os.environ.get(name):
                probe = probes.enter_context(socket.socket())  # open until the last one is chosen, so that the ports differ
                probe.bind(("", 0))
                os.environ[name] = str(probe.getsockname()[1])
    if not os.environ.get(MIN_PORT) and not os.environ.get(MAX_PORT):
        first = FIRST_PORT + port % BLOCKS * BLOCK_SIZE
        os.environ |= {MIN_PORT: str(first), MAX_PORT: str(first + BLOCK_SIZE - 1)}


def check_port(host: str, port: int) -> None:
    """Raise SettingsError when `host`:`port` cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(f"{host}:{port} cannot be used ({error.strerror}); choose another, e.g. PORT={port + 1}") from None
