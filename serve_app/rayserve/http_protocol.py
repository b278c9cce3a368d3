"""Uvicorn's HTTP protocol with a list of headers that does not change after the head of a request.

Uvicorn's parser reports the trailers of a chunked body as further headers of the request, and HAProxy forwards them. A trailer must
not become a header: it could replace the key or the client's address after the checks of the head.
"""

from __future__ import annotations

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_complete = HttpToolsProtocol.on_headers_complete


class HttpProtocol(HttpToolsProtocol):
    """Uvicorn's protocol; the application gets a copy of the headers, so trailers do not change them."""

    def on_headers_complete(self) -> None:
        """Give the application a copy of the headers."""
        self.scope["headers"] = self.headers.copy()
        _complete(self)


def install() -> None:
    """Use this protocol in servers that this process starts from now on; Serve uses uvicorn's default."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{HttpProtocol.__name__}"
