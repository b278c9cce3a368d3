"""The services that Ray Serve's gRPC servers offer; Serve imports `add` by the name in its `grpc_options`.

A replica has its own server behind HAProxy. Like the ingress hook for HTTP, it answers before Serve's request wrapper, because the
wrapper takes only whole messages, and its errors show clients the names of methods and the texts of exceptions. In all other
processes, the server belongs to one of Serve's Python proxies, which forwards calls to `answer_call` of a replica. Both servers
read messages with limits. These processes import this module, so keep it small.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from serve_app.grpc.handlers import AnswerCall

answer: AnswerCall | None = None
"""The function that answers a call; the replica in this process sets it."""

PATHS = (
    *(
        f"/inference.GRPCInferenceService/{method}"
        for method in (
            *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
            *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
        )
    ),
    "/grpc.health.v1.Health/Check",
)
METHOD = "/iris-api/answer_call"
"""Serve calls the method of a replica with the name after the last slash."""


class Call(NamedTuple):
    """A call that a proxy forwards to a replica."""

    path: str
    message: bytes


class Message(NamedTuple):
    """A message in the form that Serve takes from a replica."""

    content: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802, the method name of protobuf messages
        """Return the bytes of the message."""
        return self.content


def grpc_options(port: int | None, *, reflection: bool) -> dict[str, Any] | None:
    """The options of Ray Serve for these services on `port`; None for no gRPC. Serve's own reflection cannot describe them."""
    if port is None:
        return None
    functions = [f"{__name__}.add", *([f"{__name__}.add_reflection"] if reflection else [])]
    return {"port": port, "grpc_servicer_functions": functions, "enable_reflection": False}


def serve(answer_call: AnswerCall, *, max_bytes: int) -> None:
    """Answer the calls of the gRPC server that this replica starts next; a request has at most `max_bytes`."""
    global answer
    from ray.serve._private import grpc_util

    answer = answer_call
    name = "grpc.max_receive_message_length"
    grpc_util.DEFAULT_GRPC_SERVER_OPTIONS[:] = [
        *(option for option in grpc_util.DEFAULT_GRPC_SERVER_OPTIONS if option[0] != name),
        (name, max_bytes),
    ]


def add(_: Any, server: Any) -> None:
    """Add the services to one of Serve's gRPC servers. Serve calls this right before the server starts."""
    from serve_app.grpc.handlers import add_handlers, answer_here

    for service in {path.split("/")[1] for path in PATHS}:
        server.add_passthrough_service(service)
    add_handlers(server, PATHS, _proxy(server) if answer is None else partial(answer_here, answer))


def add_reflection(_: Any, server: Any) -> None:
    """Let clients list the services and messages of the server, for development."""
    from grpc_reflection.v1alpha import reflection

    from serve_app.protocols.grpc import health_pb2, open_inference_pb2

    server.add_passthrough_service(reflection.SERVICE_NAME)
    names = sorted({path.split("/")[1] for path in PATHS})
    pools = (open_inference_pb2.DESCRIPTOR.pool, health_pb2.DESCRIPTOR.pool)
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server, pool=_Pools(pools))


async def answer_from_proxy(answer_call: AnswerCall, call: Call, context: Any) -> Message:
    """Answer a call: return the message, and write the status into Serve's context."""
    from serve_app.grpc.handlers import set_status

    async def read() -> bytes:
        return call.message

    reply = await answer_call(call.path, context.invocation_metadata(), context.peer(), read)
    set_status(reply, context)
    return Message(reply.message)


def _proxy(server: Any) -> Any:
    """The handler that forwards calls to replicas."""
    from ray.serve._private.grpc_util import gRPCStreamingType

    from serve_app.rayserve.grpc_proxy import CallProxy

    pass_on = server.service_handler_factory(service_method=METHOD, streaming_type=gRPCStreamingType.UNARY_UNARY)
    return CallProxy(pass_on, Call).handle


class _Pools:
    """Several descriptor pools with the interface of one, for reflection."""

    def __init__(self, pools: tuple[Any, ...]) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> Any:
        def find(*arguments: Any) -> Any:
            for pool in self._pools[:-1]:
                try:
                    return getattr(pool, name)(*arguments)
                except KeyError:
                    continue
            return getattr(self._pools[-1], name)(*arguments)

        return find
