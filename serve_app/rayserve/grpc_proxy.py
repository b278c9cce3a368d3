"""The gRPC server of Serve's Python proxies: it limits the messages that it forwards, and writes the details of other errors.

These proxies answer where HAProxy does not run, and behind HAProxy while no replica is ready.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from starlette.requests import ClientDisconnect

from serve_app.grpc.handlers import REQUEST_ID, read_message
from serve_app.http.body import BUDGET_BODIES, BodyBudget, BodyBudgetExceeded, BodyTimeout, MessageBody
from serve_app.rayserve.proxy_bounds import PROXY_BYTES

log = logging.getLogger("ray.serve")

MESSAGE_SECONDS = 15.0
"""Seconds in which a message must arrive."""
SENTENCES = {
    grpc.StatusCode.UNAVAILABLE: "No replica answers; try again in a second.",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "Too many requests at once; try again in a second.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "The request was not answered in time.",
    grpc.StatusCode.CANCELLED: "The request was cancelled.",
    grpc.StatusCode.NOT_FOUND: "The application is not deployed.",
}
INTERNAL = "The server failed to answer; its log has the reason."
"""Details of a status for clients, in place of Serve's details, which contain the text of exceptions."""
OWN_METADATA = frozenset({"application", "multiplexed_model_id", "session_id", "request_id"})
"""Metadata with which Serve lets clients choose an application and a replica, and Serve's own request id."""


class CallProxy:
    """Forwards calls with `pass_on`, Serve's handler; `call` builds the forwarded object from the path and the message."""

    def __init__(self, pass_on: Callable[[Any, Any], Awaitable[bytes]], call: Callable[[str, bytes], Any]) -> None:
        self._pass_on = pass_on
        self._call = call
        self._budget = BodyBudget(PROXY_BYTES // BUDGET_BODIES)

    async def handle(self, path: str, context: Any) -> bytes:
        """Read the message of a call, and forward it to a replica."""

        async def receive() -> dict[str, Any]:
            message = await read_message(context)
            kind = "http.disconnect" if message is None else "http.request"
            return {"type": kind, "body": message or b"", "more_body": False}

        # The server limits the size of a message.
        body = MessageBody(
            receive, limit=PROXY_BYTES, seconds=MESSAGE_SECONDS, budget=self._budget, unread=PROXY_BYTES // BUDGET_BODIES
        )
        own = _Context(context)
        try:
            message = await body.read()
            reply = await self._pass_on(self._call(path, bytes(message)), own)
        except BodyBudgetExceeded:
            own.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED)
        except BodyTimeout:
            own.refuse(grpc.StatusCode.DEADLINE_EXCEEDED)
        except ClientDisconnect:
            own.refuse(grpc.StatusCode.CANCELLED)
        except Exception:
            log.exception("call was not passed on")
            own.refuse(grpc.StatusCode.INTERNAL)
        else:
            own.word()
            return reply
        finally:
            body.release()
        return b""


class _Context:
    """The context of a call as Serve sees it: without the metadata that controls Serve."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        """Return the client's metadata without the keys that control Serve."""
        return [pair for pair in self._context.invocation_metadata() or () if pair[0] not in OWN_METADATA]

    def refuse(self, code: grpc.StatusCode) -> None:
        """End the call with a status and its details."""
        self._context.set_code(code)
        self._context.set_details(SENTENCES.get(code, INTERNAL))

    def word(self) -> None:
        """Replace the details of an error that does not come from a replica."""
        code = self._context.code()
        if code in (None, 0, grpc.StatusCode.OK):
            return
        if all(name != REQUEST_ID for name, _ in self._context.trailing_metadata() or ()):
            self.refuse(code)
