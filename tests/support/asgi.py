"""One request to an ASGI app with exactly these bytes, as no client library would send it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; `starts` and `ends` are one each when the app kept to the protocol."""

    status: int
    headers: Headers
    body: bytes
    starts: int
    ends: int

    def header(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key.lower() == name), b"")


async def ask(
    app: Any,
    method: str,
    path: str,
    headers: Headers = (),
    pieces: Sequence[bytes] = (b"",),
    *,
    query: bytes = b"",
    leaves: bool = False,
) -> Reply:
    """`pieces` are the body as it arrives; with `leaves` the client is gone after them."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": leaves or number < len(pieces) - 1}
        for number, piece in enumerate(pieces)
    ]
    messages.append({"type": "http.disconnect"})
    waiting = iter(messages)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return next(waiting, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(errors="surrogateescape"),
        "root_path": "",
        "query_string": query,
        "headers": list(headers),
        "client": ("203.0.113.7", 4711),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    starts = [message for message in sent if message["type"] == "http.response.start"]
    bodies = [message for message in sent if message["type"] == "http.response.body"]
    return Reply(
        starts[0]["status"] if starts else 0,
        list(starts[0].get("headers", ())) if starts else [],
        b"".join(message.get("body", b"") for message in bodies),
        len(starts),
        sum(not message.get("more_body", False) for message in bodies),
    )
