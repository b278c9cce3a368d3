"""Uvicorn's HTTP protocol with a list of headers that is closed when the head of a request is complete.

Uvicorn's parser reports the trailers of a chunked body as further headers of its request, and HAProxy passes them on. A trailer
must not become a header: it would replace the key or the client's address after the head of the request was checked.
"""

from __future__ import annotations

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_complete = HttpToolsProtocol.on_headers_complete


class HttpProtocol(HttpToolsProtocol):
    """Uvicorn's protocol; the application gets a copy of the headers, which trailers do not reach."""

    def on_headers_complete(self) -> None:
        """The head of a request is complete."""
        self.scope["headers"] = self.headers.copy()
        _complete(self)


def install() -> None:
    """Make this the protocol of the servers that are started in this process from now on; Serve takes uvicorn's default."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{HttpProtocol.__name__}"
