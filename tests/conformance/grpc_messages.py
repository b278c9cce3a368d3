"""The messages of the protocol over gRPC, made at run time in a pool of their own.

Each package of a server or a client registers messages of the same names in the default pool of protobuf, where the second one is
an error; a pool of its own gets along with all of them.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
PACKAGE = "inference"

_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool",
    "ModelReadyRequest": "name:string version:string",
    "ModelReadyResponse": "ready:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name:string version:string extensions:string*",
    "ModelMetadataRequest": "name:string version:string",
    "TensorMetadata": "name:string datatype:string shape:int64*",
    "ModelMetadataResponse": "name:string versions:string* platform:string inputs:TensorMetadata* outputs:TensorMetadata*",
    "InferParameter": "bool_param:bool int64_param:int64 string_param:string",
    "InferTensorContents": "bool_contents:bool* int_contents:int32* int64_contents:int64* uint_contents:uint32* "
    "uint64_contents:uint64* fp32_contents:float* fp64_contents:double* bytes_contents:bytes*",
    "InferInputTensor": "name:string datatype:string shape:int64* parameters:map contents:InferTensorContents",
    "InferRequestedOutputTensor": "name:string parameters:map",
    "ModelInferRequest": "model_name:string model_version:string id:string parameters:map inputs:InferInputTensor* "
    "outputs:InferRequestedOutputTensor* raw_input_contents:bytes*",
    "InferOutputTensor": "name:string datatype:string shape:int64* parameters:map contents:InferTensorContents",
    "ModelInferResponse": "model_name:string model_version:string id:string parameters:map outputs:InferOutputTensor* "
    "raw_output_contents:bytes*",
    "RepositoryIndexRequest": "repository_name:string ready:bool",
    "ModelIndex": "name:string version:string state:string reason:string",
    "RepositoryIndexResponse": "models:ModelIndex*",
    "HealthCheckRequest": "service:string",
    "HealthCheckResponse": "status:int32",
}
"""The fields of each message in the order of their numbers from 1; `*` marks a list, `map` parameters by name.

The status of a health check is an enumeration, which is a number on the wire.
"""

CONTENTS = {
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
}
"""The field of the typed values of each datatype."""


def messages() -> dict[str, Any]:
    """The classes of all messages by name."""
    file = descriptor_pb2.FileDescriptorProto(name="conformance/inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field in enumerate(fields.split(), 1):
            _add(message, number, *field.split(":"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES}


def _add(message: Any, number: int, name: str, kind: str) -> None:
    types = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=number)
    field.label = types.LABEL_REPEATED if kind.endswith("*") or kind == "map" else types.LABEL_OPTIONAL
    kind = kind.removesuffix("*")
    if kind == "map":
        entry = message.nested_type.add(name="".join(word.title() for word in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add(entry, 1, "key", "string")
        _add(entry, 2, "value", "InferParameter")
        field.type, field.type_name = types.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    elif kind in _MESSAGES:
        field.type, field.type_name = types.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(types, f"TYPE_{kind.upper()}")
