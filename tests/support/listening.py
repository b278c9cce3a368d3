"""An app behind uvicorn as Ray Serve runs it, in the event loop of a test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import uvicorn


@dataclass(slots=True)
class Server:
    """An app under uvicorn as Ray Serve runs it: how many requests it has begun and ended, and how many bytes of bodies it read."""

    app: Any
    port: int
    begun: int = 0
    ended: int = 0
    read: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted() -> Any:
            message = await receive()
            self.read += len(message.get("body", b""))
            return message

        self.begun += 1
        try:
            await self.app(scope, counted, send)
        finally:
            self.ended += 1


@contextlib.asynccontextmanager
async def listening(app: Any, http: str = "httptools") -> AsyncIterator[Server]:
    """Listen on a free port until the block ends; `http` is uvicorn's protocol."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watched = Server(app, listener.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(watched, http=http, loop="uvloop", lifespan="off", log_level="error"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield watched
        finally:
            server.should_exit = True
            server.force_exit = True
            await running
