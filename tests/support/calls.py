"""Messages and calls of the Open Inference Protocol over gRPC, and a server for them in this process, without Ray."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import grpc
import numpy as np
from google.protobuf.message import Message

from serve_app.artifacts.fields import Unknown
from serve_app.artifacts.signature import Signature
from serve_app.artifacts.store import Store
from serve_app.grpc.calls import Calls
from serve_app.grpc.handlers import add_handlers, answer_here
from serve_app.http.app import create_app
from serve_app.inference.slot import Slot
from serve_app.protocols.codec import CodecContext
from serve_app.protocols.grpc import health_pb2
from serve_app.protocols.grpc import open_inference_pb2 as oip
from serve_app.protocols.grpc.contents import FIELDS
from serve_app.protocols.grpc.message_codec import InferMessageCodec
from tests.support.apps import KEY, http_options
from tests.support.oip import NUMPY, packed, unpacked
from tests.support.policies import ALLOW_ALL

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
MODEL = "IrisClassifier"
ANSWERS = {
    **{name: getattr(oip, f"{name}Response") for name in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata")},
    **{name: getattr(oip, f"{name}Response") for name in ("ModelMetadata", "ModelInfer", "RepositoryIndex")},
    "Check": health_pb2.HealthCheckResponse,
}


def message_codec(signature: Signature, *, max_rows: int = 1000, unknown: Unknown = "refuse") -> InferMessageCodec:
    """The codec of one model version with this signature."""
    return InferMessageCodec(
        CodecContext(
            signature=signature,
            model_name=MODEL,
            model_version="1",
            max_rows=max_rows,
            max_row_bytes=65536,
            max_body_bytes=16 * 1024 * 1024,
            unknown=unknown,
            unknown_fields="ignore",
        )
    )


def infer(
    *inputs: Mapping[str, Any], raw: bool = False, outputs: Sequence[Mapping[str, Any]] = (), **members: Any
) -> oip.ModelInferRequest:
    """A request with inputs as `tests.support.oip.tensor` makes them: values in typed fields, or as raw bytes."""
    message = oip.ModelInferRequest(**{"model_name": MODEL, **members})
    for each in inputs:
        added = message.inputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        values = np.ravel(np.array(each["data"], object)).tolist()
        if raw:
            message.raw_input_contents.append(packed(values, each["datatype"]))
            continue
        if each["datatype"] == "BYTES":
            values = [value if isinstance(value, bytes) else value.encode() for value in values]
        getattr(added.contents, FIELDS[each["datatype"]]).extend(values)
    for each in outputs:
        output = message.outputs.add(name=each["name"])
        for name, value in each.get("parameters", {}).items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
            setattr(output.parameters[name], kind, value)
    return message


def values_of(response: oip.ModelInferResponse) -> dict[str, Any]:
    """The outputs of a response by name, as arrays of their shape."""
    found, is_raw = {}, bool(response.raw_output_contents)
    assert not is_raw or len(response.raw_output_contents) == len(response.outputs)
    for at, each in enumerate(response.outputs):
        if is_raw:
            assert not each.contents.ListFields()
            raw = response.raw_output_contents[at]
            values: Any = unpacked(raw) if each.datatype == "BYTES" else np.frombuffer(raw, NUMPY[each.datatype])
        else:
            assert [field.name for field, _ in each.contents.ListFields()] == [FIELDS[each.datatype]]
            values = list(getattr(each.contents, FIELDS[each.datatype]))
            values = [value.decode() for value in values] if each.datatype == "BYTES" else values
        found[each.name] = np.array(values).reshape(list(each.shape))
    return found


class Reply(NamedTuple):
    """The end of a call: its status, the details of an error, the metadata, and the message."""

    code: str
    details: str
    metadata: dict[str, str]
    message: Any


class Client:
    """Calls one server by hand."""

    def __init__(self, channel: grpc.aio.Channel, key: str | None = KEY) -> None:
        self.channel = channel
        self._key = key

    async def call(
        self, method: str, message: Message | bytes = b"", *, service: str = INFERENCE, key: str | None = "", **metadata: str
    ) -> Reply:
        """The end of one call; `key` is that of the client unless told, None for none."""
        key = self._key if key == "" else key
        pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()] + ([("x-api-key", key)] if key else [])
        content = message if isinstance(message, bytes) else message.SerializeToString()
        call = self.channel.unary_unary(f"/{service}/{method}")(content, metadata=pairs, timeout=60)
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            return Reply(error.code().name, error.details() or "", _texts(error.trailing_metadata()), None)
        kind = ANSWERS.get(method)
        return Reply("OK", "", _texts(await call.trailing_metadata()), reply if kind is None else kind.FromString(reply))


def _texts(metadata: Any) -> dict[str, str]:
    return dict(metadata or ())


class Served(NamedTuple):
    """A server in this process: a client with the right key, the application behind it, and its address."""

    client: Client
    app: Any
    address: str


@contextlib.asynccontextmanager
async def served(store: Store, **options: Any) -> AsyncIterator[Served]:
    """A server for the model of a store, on a port of its own."""
    slot = Slot(store, policy=ALLOW_ALL)
    slot.refresh()
    chosen = http_options(**{"api_key": KEY, **options})
    app = create_app(slot, chosen)
    app.state.slot = slot
    calls = Calls(app.state.gateway, app.state.service, chosen)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", chosen.max_body_bytes)])
    add_handlers(server, calls.paths, partial(answer_here, calls.answer))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
            yield Served(Client(channel), app, address)
    finally:
        await server.stop(None)
