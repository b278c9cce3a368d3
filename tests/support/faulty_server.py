"""A server that takes MLflow's place and fails in one way or another."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

MODES = ("hangs", "fails", "is slow", "is down")
"""What may be wrong with the server."""


class FaultyServer:
    """`mode` is what is wrong now, one of MODES; `requests` counts them by mode (none are counted while it is down)."""

    def __init__(self) -> None:
        self.mode = "hangs"
        self.requests: Counter[str] = Counter()
        self._held: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._address = probe.getsockname()
        self.url = f"http://127.0.0.1:{self._address[1]}"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(10)
        for connection in self._held:
            connection.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            if self.mode == "is down":
                self._stopped.wait(0.1)
                continue
            with socket.create_server(self._address, backlog=100) as listener:
                listener.settimeout(0.1)
                while self.mode != "is down" and not self._stopped.is_set():
                    with contextlib.suppress(TimeoutError):
                        self._answer(listener.accept()[0])

    def _answer(self, connection: socket.socket) -> None:
        self.requests[self.mode] += 1
        if self.mode == "hangs":
            self._held.append(connection)
        elif self.mode == "fails":
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops")
        else:
            threading.Thread(target=self._trickle, args=(connection,), daemon=True).start()

    def _trickle(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.2)  # being slow is what this server is for


@contextlib.contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    server = FaultyServer()
    try:
        yield server
    finally:
        server.close()
