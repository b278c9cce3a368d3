"""A server that takes MLflow's place and is not well, in one way or another."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

SICK = ("hangs", "fails", "is slow", "is down")


class Unwell:
    """`mode` is what is wrong now, one of SICK; `asked` counts requests by mode (none are counted while it is down)."""

    def __init__(self) -> None:
        self.mode = "hangs"
        self.asked: Counter[str] = Counter()
        self._kept: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._address = probe.getsockname()
        self.url = f"http://127.0.0.1:{self._address[1]}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)
        for connection in self._kept:
            connection.close()

    def _run(self) -> None:
        while not self._over.is_set():
            if self.mode == "is down":
                self._over.wait(0.1)
                continue
            with socket.create_server(self._address, backlog=100) as listener:
                listener.settimeout(0.1)
                while self.mode != "is down" and not self._over.is_set():
                    with contextlib.suppress(TimeoutError):
                        self._answer(listener.accept()[0])

    def _answer(self, connection: socket.socket) -> None:
        self.asked[self.mode] += 1
        if self.mode == "hangs":
            self._kept.append(connection)
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
def unwell() -> Iterator[Unwell]:
    server = Unwell()
    try:
        yield server
    finally:
        server.close()
