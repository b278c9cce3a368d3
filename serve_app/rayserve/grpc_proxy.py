"""A gRPC server of one of Serve's Python proxies: it bounds what it passes on, and words the errors that replicas did not.

Such a proxy answers where HAProxy does not run, and behind HAProxy while no replica is ready.
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
"""In this time a message must have arrived."""
SENTENCES = {
    grpc.StatusCode.UNAVAILABLE: "No replica answers; try again in a second.",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "Too many requests at once; try again in a second.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "The request was not answered in time.",
    grpc.StatusCode.CANCELLED: "The request was cancelled.",
    grpc.StatusCode.NOT_FOUND: "The application is not deployed.",
}
INTERNAL = "The server failed to answer; its log has the reason."
"""The details of a status are ours: Serve's have the text of exceptions."""
OWN_METADATA = frozenset({"application", "multiplexed_model_id", "session_id", "request_id"})
"""Metadata by which Serve lets a client choose an application and a replica, and the name of its own request id."""


class CallProxy:
    """Passes calls on with `pass_on`, Serve's handler of a call; `call` makes what is passed on, of its path and its message."""

    def __init__(self, pass_on: Callable[[Any, Any], Awaitable[bytes]], call: Callable[[str, bytes], Any]) -> None:
        self._pass_on = pass_on
        self._call = call
        self._budget = BodyBudget(PROXY_BYTES // BUDGET_BODIES)

    async def handle(self, path: str, context: Any) -> bytes:
        """Read the message of a call and let a replica answer it."""

        async def receive() -> dict[str, Any]:
            message = await read_message(context)
            kind = "http.disconnect" if message is None else "http.request"
            return {"type": kind, "body": message or b"", "more_body": False}

        # The size of a message is bounded by the server.
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
    """The context of a call as Serve sees it: without the metadata that is Serve's own."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        """What the client sent."""
        return [pair for pair in self._context.invocation_metadata() or () if pair[0] not in OWN_METADATA]

    def refuse(self, code: grpc.StatusCode) -> None:
        """End the call with the sentence of a status."""
        self._context.set_code(code)
        self._context.set_details(SENTENCES.get(code, INTERNAL))

    def word(self) -> None:
        """Replace the details of an error that no replica has worded."""
        code = self._context.code()
        if code in (None, 0, grpc.StatusCode.OK):
            return
        if all(name != REQUEST_ID for name, _ in self._context.trailing_metadata() or ()):
            self.refuse(code)
