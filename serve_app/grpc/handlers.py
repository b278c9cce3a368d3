"""The handlers of a gRPC server: each handler reads one message and ends the call with an answer.

On the wire, a call with one message looks like a call with a stream of messages. The handlers take the stream, because such a call
begins before its message arrives. The gateway then checks keys and limits first and bounds the time and the memory of a message.

Serve's proxies import this module, so keep its imports few.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import grpc
from grpc.aio import EOF, BaseError

REQUEST_ID = "x-request-id"
"""Metadata of a call and of every answer."""

Metadata = Iterable[tuple[str, str | bytes]]
Read = Callable[[], Awaitable[bytes | None]]
"""Reads the message of a call; None when the client sent no message or has disconnected."""


class Answer(NamedTuple):
    """The end of a call: status, details of an error, metadata, and the message (empty for an error)."""

    code: grpc.StatusCode
    details: str
    metadata: tuple[tuple[str, str], ...]
    message: bytes


AnswerCall = Callable[[str, Metadata, str, Read], Awaitable[Answer]]
Handle = Callable[[str, Any], Awaitable[bytes]]
"""From the path of a call and its context to the message of the response."""


def add_handlers(server: Any, paths: Iterable[str], handle: Handle) -> None:
    """Register `handle` with a server for the calls `/SERVICE/METHOD`."""
    services: dict[str, dict[str, Any]] = defaultdict(dict)
    for path in paths:
        _, service, method = path.split("/")
        services[service][method] = grpc.stream_unary_rpc_method_handler(partial(_handler, handle, path))
    for service, handlers in services.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        server.add_registered_method_handlers(service, handlers)


async def answer_here(answer: AnswerCall, path: str, context: Any) -> bytes:
    """End a call with the answer of this process."""
    reply = await answer(path, context.invocation_metadata() or (), context.peer(), partial(read_message, context))
    set_status(reply, context)
    return reply.message


async def read_message(context: Any) -> bytes | None:
    """The message of a call; None when the client sent no message or a message above the server's limit."""
    try:
        message = await context.read()
    except BaseError:
        return None  # the library already ended the call
    return None if message is EOF else bytes(message)


def set_status(answer: Answer, context: Any) -> None:
    """Write status and metadata of an answer into the context of its call."""
    context.set_trailing_metadata(list(answer.metadata))
    if answer.code is not grpc.StatusCode.OK:
        context.set_code(answer.code)
        context.set_details(answer.details)


async def _handler(handle: Handle, path: str, _: Any, context: Any) -> bytes:
    return await handle(path, context)
