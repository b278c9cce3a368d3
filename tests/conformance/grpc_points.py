"""What the protocol says of gRPC: its six calls, typed and raw values, statuses, the index, and the health service of gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import grpc

from tests.conformance.grpc_messages import CONTENTS, SERVICE, messages
from tests.conformance.points import Broken, Inapplicable, expect, registry
from tests.conformance.rest_client import RestServer
from tests.conformance.tensors import Tensor, of_document, packed, unpacked

POINTS, point = registry()
INDEX = "model_repository"
HEALTH = "grpc.health.v1.Health"
ABSENT = "no-such-model"
BAD, UNKNOWN = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@dataclass
class GrpcServer:
    """Where the server is, which model is asked, a request in JSON that it answers, and the metadata of every call."""

    address: str
    model: str
    request: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    rest: RestServer | None = None
    timeout: float = 30.0

    @cached_property
    def types(self) -> dict[str, Any]:
        """The classes of the messages by name."""
        return messages()

    @cached_property
    def channel(self) -> grpc.Channel:
        """The connection of all calls."""
        return grpc.insecure_channel(self.address)

    def call(self, rpc: str, request: Any = None, *, service: str = SERVICE, name: str = "") -> Any:
        """The answer to one call. Raises grpc.RpcError."""
        name = name or rpc
        request = self.types[f"{name}Request"]() if request is None else request
        response = self.types[f"{name}Response"]
        method = self.channel.unary_unary(
            f"/{service}/{rpc}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        metadata = [(name.lower(), value) for name, value in self.headers.items()]
        return method(request, metadata=metadata, timeout=self.timeout)

    def named(self, rpc: str, name: str | None = None, version: str = "") -> Any:
        """The answer to a call whose request has name and version of a model."""
        return self.call(rpc, self.types[f"{rpc}Request"](name=self.model if name is None else name, version=version))

    def tensors(self) -> list[Tensor]:
        """The inputs of the example request."""
        return [of_document(each) for each in self.request["inputs"]]

    def infer_request(self, *, raw: bool, tensors: Sequence[Tensor] | None = None, **members: Any) -> Any:
        """The example request, its values raw or in the typed fields."""
        request = self.types["ModelInferRequest"](**{"model_name": self.model, **members})
        for tensor in self.tensors() if tensors is None else tensors:
            message = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if raw:
                request.raw_input_contents.append(packed(tensor))
            else:
                values = [value.encode() if isinstance(value, str) else value for value in tensor.values]
                getattr(message.contents, CONTENTS[tensor.datatype]).extend(values)
        return request

    def infer(self, request: Any) -> dict[str, Tensor]:
        """The outputs of a prediction by name."""
        return outputs(self.call("ModelInfer", request))


def outputs(response: Any) -> dict[str, Tensor]:
    """The outputs of a response: all raw, or all in their typed fields."""
    raws = response.raw_output_contents
    expect(response.outputs, "outputs is empty")
    expect(not raws or len(raws) == len(response.outputs), f"{len(raws)} raw outputs for {len(response.outputs)} outputs")
    found = {}
    for at, each in enumerate(response.outputs):
        if raws:
            expect(not each.HasField("contents") or not each.contents.ByteSize(), f"{each.name} is raw and has contents")
            values = unpacked(raws[at], each.datatype)
        else:
            values = list(getattr(each.contents, CONTENTS[each.datatype]))
            values = [value.decode() for value in values] if each.datatype == "BYTES" else values
        expect(len(values) == prod(each.shape), f"output {each.name} does not fill its shape {list(each.shape)}")
        found[each.name] = Tensor(each.name, each.datatype, tuple(each.shape), values)
    return found


def code_of(server: GrpcServer, rpc: str, request: Any) -> str:
    """The status of a call that ends with an error."""
    try:
        server.call(rpc, request)
    except grpc.RpcError as error:
        return str(error.code().name)
    raise Broken("the call is answered")


# --- health and metadata


@point("grpc", "ServerLive and ServerReady are true")
def live_and_ready(server: GrpcServer) -> None:
    expect(server.call("ServerLive").live, "ServerLive is false")
    expect(server.call("ServerReady").ready, "ServerReady is false")


@point("grpc", "ModelReady is true for the model")
def model_ready(server: GrpcServer) -> None:
    expect(server.named("ModelReady").ready, "ModelReady is false")


@point("grpc", "ModelReady of an unknown model is false, or NOT_FOUND")
def unknown_model_ready(server: GrpcServer) -> None:
    try:
        expect(not server.named("ModelReady", ABSENT).ready, "ModelReady is true")
    except grpc.RpcError as error:
        expect(error.code() == UNKNOWN, f"{error.code().name}")


@point("grpc", "ServerMetadata has name and version")
def server_metadata(server: GrpcServer) -> None:
    answer = server.call("ServerMetadata")
    expect(answer.name and answer.version, "name or version is empty")


@point("grpc", "ModelMetadata has the name of the model")
def model_metadata(server: GrpcServer) -> None:
    expect((name := server.named("ModelMetadata").name) == server.model, f"name is {name!r}")


@point("grpc", "ModelMetadata names at least one input and one output", required=False)
def model_metadata_says_something(server: GrpcServer) -> None:
    answer = server.named("ModelMetadata")
    expect(answer.inputs and answer.outputs, "inputs or outputs is empty")


@point("grpc", "ModelMetadata is that of REST")
def metadata_of_rest(server: GrpcServer) -> None:
    if server.rest is None:
        raise Inapplicable("no --url")
    document, answer = server.rest.metadata(), server.named("ModelMetadata")
    for member in ("inputs", "outputs"):
        wanted = [(each["name"], each["datatype"], list(each["shape"])) for each in document[member]]
        found = [(each.name, each.datatype, list(each.shape)) for each in getattr(answer, member)]
        expect(found == wanted, f"{member} differ")


# --- predictions


@point("grpc", "typed inputs are answered, with typed outputs")
def typed(server: GrpcServer) -> None:
    response = server.call("ModelInfer", server.infer_request(raw=False))
    expect(response.model_name == server.model, f"model_name is {response.model_name!r}")
    outputs(response)
    expect(not response.raw_output_contents, "the outputs are raw")


@point("grpc", "raw inputs are answered, with raw outputs")
def raw(server: GrpcServer) -> None:
    response = server.call("ModelInfer", server.infer_request(raw=True))
    outputs(response)
    expect(response.raw_output_contents, "the outputs are typed")


@point("grpc", "raw and typed inputs have the same answers")
def raw_and_typed(server: GrpcServer) -> None:
    expect(server.infer(server.infer_request(raw=True)) == server.infer(server.infer_request(raw=False)), "the outputs differ")


@point("grpc", "the answers are those of REST")
def answers_of_rest(server: GrpcServer) -> None:
    if server.rest is None:
        raise Inapplicable("no --url")
    wanted = server.rest.infer().outputs()
    expect(server.infer(server.infer_request(raw=True)) == wanted, "the outputs differ")


@point("grpc", "the id of a request is that of its answer")
def echo(server: GrpcServer) -> None:
    found = server.call("ModelInfer", server.infer_request(raw=True, id="r7")).id
    expect(found == "r7", f"id is {found!r}")


@point("grpc", "`outputs` chooses among the outputs")
def chosen_outputs(server: GrpcServer) -> None:
    for name, tensor in server.infer(server.infer_request(raw=True)).items():
        request = server.infer_request(raw=True)
        request.outputs.add(name=name)
        found = server.infer(request)
        expect(found == {name: tensor}, f"outputs {list(found)} in place of {name}")


@point("grpc", "the version of the metadata answers", required=False)
def version(server: GrpcServer) -> None:
    versions = server.named("ModelMetadata").versions
    if not versions:
        raise Inapplicable("the metadata names no version")
    server.infer(server.infer_request(raw=True, model_version=versions[0]))


# --- errors

Calls = Callable[[GrpcServer], Iterator[tuple[str, Any]]]


def error(sentence: str, code: grpc.StatusCode, *, required: bool = True) -> Callable[[Calls], Calls]:
    """Two points: these calls end with an error, and with this status."""

    def add(calls: Calls) -> Calls:
        @point("grpc", f"{sentence} is an error", required=required)
        def is_error(server: GrpcServer) -> None:
            for call in calls(server):
                code_of(server, *call)

        @point("grpc", f"{sentence} is {code.name}", required=False)
        def has_code(server: GrpcServer) -> None:
            for call in calls(server):
                expect((found := code_of(server, *call)) == code.name, found)

        return calls

    return add


@error("an unknown model", UNKNOWN)
def unknown_model(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    yield "ModelInfer", server.infer_request(raw=True, model_name=ABSENT)
    yield "ModelMetadata", server.types["ModelMetadataRequest"](name=ABSENT)


@error("an unknown version", UNKNOWN)
def unknown_version(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    yield "ModelInfer", server.infer_request(raw=True, model_version="987654")


@error("a tensor whose values do not fill its shape", BAD)
def values_and_shape(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    first, *others = server.tensors()
    short = [first._replace(values=first.values[:-1]), *others]
    yield "ModelInfer", server.infer_request(raw=False, tensors=short)
    yield "ModelInfer", server.infer_request(raw=True, tensors=short)


@error("a raw input that ends inside a value", BAD)
def truncated(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    request = server.infer_request(raw=True)
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    yield "ModelInfer", request


@error("a raw input beside a typed one", BAD)
def raw_beside_typed(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    request = server.infer_request(raw=False)
    request.raw_input_contents.extend(server.infer_request(raw=True).raw_input_contents)
    yield "ModelInfer", request


@error("a raw input without its input", BAD)
def raw_without_input(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    request = server.infer_request(raw=True)
    request.raw_input_contents.append(b"\0" * 8)
    yield "ModelInfer", request


@error("a typed value in the field of another datatype", BAD, required=False)
def another_field(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    request = server.infer_request(raw=False)
    first, length = request.inputs[0], len(server.tensors()[0].values)
    first.ClearField("contents")
    first.contents.uint_contents.extend([1] * length)
    yield "ModelInfer", request


@error("a shape that is not the model's", BAD)
def another_shape(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    first, *others = server.tensors()
    yield "ModelInfer", server.infer_request(raw=True, tensors=[first._replace(shape=(1, 1, *first.shape)), *others])


@error("an unknown datatype", BAD)
def unknown_datatype(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    request = server.infer_request(raw=True)
    request.inputs[0].datatype = "FP63"
    yield "ModelInfer", request


@error("a request without inputs", BAD)
def no_inputs(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    yield "ModelInfer", server.types["ModelInferRequest"](model_name=server.model)


@error("an unknown output", BAD)
def unknown_output(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    request = server.infer_request(raw=True)
    request.outputs.add(name="no-such-output")
    yield "ModelInfer", request


@error("a body that is not a message", BAD)
def no_message(server: GrpcServer) -> Iterator[tuple[str, Any]]:
    yield "ModelInfer", b"\xff\xff\xff\xff"


# --- extensions


@point("grpc", "RepositoryIndex lists the model as READY", extension=INDEX)
def index(server: GrpcServer) -> None:
    listed = {each.name: each.state for each in server.call("RepositoryIndex").models}
    expect(listed.get(server.model) == "READY", f"{listed} does not say READY of the model")


@point("grpc", "grpc.health.v1.Health/Check says SERVING", required=False)
def health(server: GrpcServer) -> None:
    status = server.call("Check", service=HEALTH, name="HealthCheck").status
    expect(status == 1, f"status {status}")
