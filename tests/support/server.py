"""The application as a user starts it: `python -m serve_app` in a process of its own, on real Ray Serve."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.support.waiting import until

KEY = "an-api-key-of-the-tests-0123456789abcdef"
HEADERS = {"X-API-Key": KEY}
ROOT = Path(__file__).parents[2]
PYTHON = str(Path(os.environ.get("SERVE_PYTHON") or sys.executable).absolute())
"""The environment of the application; make gives the one that has only what serving needs."""
START_SECONDS = 150.0
"""A busy machine with two cores takes most of a minute."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running application: its address, its process, and the file its output goes to."""

    url: str
    process: subprocess.Popen[bytes]
    output: Path

    def versions(self) -> set[str]:
        """The versions that answer now; each request opens a new connection, so all replicas are asked."""
        return {self._version() for _ in range(8)}

    def _version(self) -> str:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/readyz")
            found: str = json.load(connection.getresponse()).get("model_version", "")
            return found


def free_port() -> int:
    """A port below those that the system gives to outgoing connections, one of which could take it before it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(model_dir: Path, **more: str) -> dict[str, str]:
    """The environment of an application in a test: no port that another one on this machine could have."""
    first, first_for_calls = free_port(), free_port()
    return {
        **os.environ,
        "MODEL_DIR": str(model_dir),
        "API_KEY": KEY,
        "PYTHONPATH": str(ROOT),
        "IRIS_LOG_FORMAT": "json",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 100),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first_for_calls),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first_for_calls + 100),
        **more,
    }


@contextlib.contextmanager
def serving(
    model_dir: Path, folder: Path, *, replicas: int = 1, ready: str = "/readyz", options: Sequence[str] = (), **more: str
) -> Iterator[Server]:
    """Serve `model_dir` until the block ends; `folder` takes the output. Fails with that output when it does not start."""
    port = free_port()
    output = folder / f"serve-{port}.log"
    command = [PYTHON, "-m", "serve_app", "--port", str(port), "--replicas", str(replicas), *options]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment(model_dir, **more), cwd=folder, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", process, output)
    try:
        until(lambda: _answers(server, ready), seconds=START_SECONDS)
        yield server
    except BaseException:
        sys.stderr.write(output.read_text(errors="replace")[-8000:])
        raise
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes], *, seconds: float = 60.0) -> None:
    """Ctrl-C, and no mercy for what does not follow it."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(server: Server, path: str) -> bool:
    if server.process.poll() is not None:
        raise AssertionError(f"the application ended with {server.process.returncode}")
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.get(server.url + path, timeout=5).status_code == 200
    return False
