"""A web server with files, which answers ranges, breaks connections, redirects, packs and refuses as a test says."""

from __future__ import annotations

import contextlib
import gzip
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(slots=True)
class Served:
    """A file and how it is sent. `breaks` are the bytes after which each of the first connections is cut."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str = '"one"'
    ranges: bool = True
    length: bool = True
    packed: bool = False
    breaks: list[int] = field(default_factory=list)
    changes: bytes = b""
    """The content after the first break, with another tag."""


class FileServer:
    """`files` by path, `fallback` for others; `requests` are the paths and headers in the order of their arrival."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.files: dict[str, Served] = {}
        self.fallback = Served(status=404)
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://localhost:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def ranges(self) -> list[str | None]:
        """The header `Range` of each request."""
        return [headers.get("Range") for _, headers in self.requests]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, dict(self.headers)))
                served = server.files.get(unquote(urlsplit(self.path).path), server.fallback)
                with contextlib.suppress(OSError):
                    _send(self, served)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None: ...

        return Handler


def _send(handler: BaseHTTPRequestHandler, served: Served) -> None:
    handler.close_connection = True
    if served.status != 200:
        handler.send_response(served.status)
        for name, value in {"Content-Length": "0", **served.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        return
    body = gzip.compress(served.body) if served.packed else served.body
    wanted = handler.headers.get("Range")
    start = 0
    if wanted and served.ranges and handler.headers.get("If-Range") == served.etag:
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
    handler.send_response(206 if start else 200)
    headers = {"ETag": served.etag, "Last-Modified": formatdate(1.7e9, usegmt=True), **served.headers}
    if served.length:
        headers["Content-Length"] = str(len(body) - start)
    if served.packed:
        headers["Content-Encoding"] = "gzip"
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    for name, value in headers.items():
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    if served.breaks:
        handler.wfile.write(body[start : start + served.breaks.pop(0)])
        if served.changes:
            served.body, served.etag, served.changes = served.changes, '"two"', b""
        return
    handler.wfile.write(body[start:])


@contextlib.contextmanager
def file_server(certificate: Path | None = None) -> Iterator[FileServer]:
    server = FileServer(certificate)
    try:
        yield server
    finally:
        server.close()
