"""Connections that stay open after their response because the client still sends. Their number is limited."""

from __future__ import annotations

import asyncio

from serve_app.http.body import Body
from serve_app.http.responses import Send

LINGER_CONNECTIONS = 32
"""Most connections of one process that are read after their response. A further one is closed soon; its client may see a reset."""
FLUSH_SECONDS = 0.1
"""Seconds before a connection above this limit is closed. A close with unread bytes resets the connection. HAProxy then loses a
response that it has not read yet and sends 500 to its client."""


class Lingering:
    """Ends responses that were sent before their bodies had arrived. An application has one object, used by one event loop."""

    def __init__(self) -> None:
        self.connections = 0

    async def end(self, body: Body, send: Send) -> None:
        """Discard the rest of the body, unless LINGER_CONNECTIONS already do, and end a response with `Connection: close`."""
        if self.connections < LINGER_CONNECTIONS:
            self.connections += 1
            try:
                await body.linger()
            finally:
                self.connections -= 1
        else:
            await asyncio.sleep(FLUSH_SECONDS)
        await send({"type": "http.response.body"})
