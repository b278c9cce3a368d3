"""The HTTP side of one replica in a process of its own, under uvicorn with httptools and uvloop as Ray Serve runs it.

python -m tests.support.replica FOLDER PORT
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from serve_app.artifacts.store import Store
from serve_app.fast_path import tune_allocator, tune_interpreter
from tests.support.apps import KEY, client_of
from tests.support.processes import resident
from tests.support.server import ROOT, free_port
from tests.support.waiting import until


@dataclass(frozen=True, slots=True)
class Replica:
    """The port of a running replica and the id of its process."""

    port: int
    pid: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        """Status and body of the response to one POST on a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            return post(connection, path, body, **headers)

    def resident(self) -> int:
        """Bytes of memory in use."""
        return resident(self.pid)


def post(connection: http.client.HTTPConnection, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Status and body of the response to one POST."""
    connection.request("POST", path, body, {"X-API-Key": KEY, **{name.replace("_", "-"): text for name, text in headers.items()}})
    response = connection.getresponse()
    return response.status, response.read()


@contextlib.contextmanager
def replica(folder: Path) -> Iterator[Replica]:
    """Serve the store in `folder`, with the default settings, until the block ends."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.support.replica", str(folder), str(port)], cwd=ROOT)
    running = Replica(port, process.pid)
    try:
        until(lambda: _answers(running, process), seconds=60)
        yield running
    finally:
        process.kill()
        process.wait()


def _answers(running: Replica, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the replica ended"
    with contextlib.suppress(ConnectionError), contextlib.closing(running.connect()) as connection:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def main() -> None:
    app = client_of(Store(Path(sys.argv[1]))).app
    tune_allocator()
    tune_interpreter()
    uvicorn.run(app, port=int(sys.argv[2]), http="httptools", loop="uvloop", lifespan="off", log_level="error")


if __name__ == "__main__":
    main()
