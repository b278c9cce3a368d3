"""Connections that stay open after their response because their clients are still sending: bounded in number."""

from __future__ import annotations

import asyncio

from serve_app.http.body import Body
from serve_app.http.responses import Send

LINGER_CONNECTIONS = 32
"""Connections of one process that are read on after their response; one more is closed soon, and its client may see a reset."""
FLUSH_SECONDS = 0.1
"""Time of a connection that is not read on. A close with unread bytes is a reset, which takes from HAProxy a response that it has
not read yet: its client would get 500 instead."""


class Lingering:
    """Ends responses that did not wait for their bodies; one object for an application, used by one event loop."""

    def __init__(self) -> None:
        self.connections = 0

    async def end(self, body: Body, send: Send) -> None:
        """Read on for a while, unless too many others do, and complete a response that said `Connection: close`."""
        if self.connections < LINGER_CONNECTIONS:
            self.connections += 1
            try:
                await body.linger()
            finally:
                self.connections -= 1
        else:
            await asyncio.sleep(FLUSH_SECONDS)
        await send({"type": "http.response.body"})
