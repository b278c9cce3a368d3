"""What Ray Serve would share with another one on this machine, made the application's own: ports, and HAProxy's files.

Ray's fixed ports are opened so that a second HAProxy shares them in silence, and its folder under /tmp belongs to who came first.
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

FREE = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT")
LEAST, MOST = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"
FIRST, BLOCKS, SIZE = 20_000, 120, 100
"""Replicas listen on a block of their own, below the ports that the kernel gives out: a replica on the port that another
application's HAProxy still knows would answer that one's clients."""
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}


@contextlib.contextmanager
def isolated_environment(port: int) -> Iterator[None]:
    """Set the environment for an application on `port`, to be entered before Ray Serve is imported; what the user set stays."""
    folder = Path(tempfile.mkdtemp(prefix="iris-api-", dir="/tmp"))  # a socket's path must be short
    for name, file in FILES.items():
        os.environ.setdefault(name, str(folder / file))
    choose_ports(port)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def choose_ports(port: int) -> None:
    """Free ports for HAProxy's pages and the fallback proxy, and a block for the replicas that follows from `port`."""
    with contextlib.ExitStack() as held:
        for name in FREE:
            if not os.environ.get(name):
                probe = held.enter_context(socket.socket())  # held until all are chosen, so that they differ
                probe.bind(("", 0))
                os.environ[name] = str(probe.getsockname()[1])
    if not os.environ.get(LEAST) and not os.environ.get(MOST):
        least = FIRST + port % BLOCKS * SIZE
        os.environ |= {LEAST: str(least), MOST: str(least + SIZE - 1)}


def check_port(host: str, port: int) -> None:
    """Raise SettingsError when `host`:`port` cannot be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(f"{host}:{port} cannot be used ({error.strerror}); choose another, e.g. PORT={port + 1}") from None
