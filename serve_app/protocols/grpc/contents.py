"""Values of tensors in the typed fields of InferTensorContents and as little-endian bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from serve_app.protocols.grpc.open_inference_pb2 import InferTensorContents
from serve_app.protocols.grpc.wire import field, head, varint
from serve_app.protocols.tensor_outputs import Output, Written, binary_data
from serve_app.protocols.tensors import BYTES, NUMBERS, Tensor, problem

FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""The field that holds the values of a datatype. FP16 has no field; its values are sent as raw bytes."""
_NUMBERS_OF = {name: InferTensorContents.DESCRIPTOR.fields_by_name[name].number for name in FIELDS.values()}
BYTES_FIELD = _NUMBERS_OF["bytes_contents"]


def check_contents(tensor: Tensor, contents: InferTensorContents) -> None:
    """Raise InvalidInput unless the field of the datatype, and no other field, holds the values that the shape requires."""
    name = FIELDS.get(tensor.datatype)
    if name is None:
        raise problem(tensor, "datatype", "datatype", "has no typed field; send the values in raw_input_contents")
    others = [each.name for each, _ in contents.ListFields() if each.name != name]
    if others:
        raise problem(tensor, f"contents.{others[0]}", "datatype", f"must be {name} for the datatype {tensor.datatype}")
    if len(getattr(contents, name)) != tensor.length:
        raise problem(tensor, f"contents.{name}", "shape", f"must hold the {tensor.length} values that the shape requires")


def raw_values(tensor: Tensor, contents: InferTensorContents) -> memoryview:
    """The values of checked contents as little-endian bytes. Raises InvalidInput for numbers outside the range of the datatype."""
    name = FIELDS[tensor.datatype]
    values: Any = getattr(contents, name)
    if tensor.datatype == BYTES:
        return memoryview(b"".join([len(text).to_bytes(4, "little") + text for text in values]))
    kind = NUMBERS[tensor.datatype]
    numbers = np.array(values)
    if numbers.dtype != kind and tensor.datatype != "BOOL":
        converted = numbers.astype(kind)
        if not np.array_equal(converted, numbers):
            raise problem(tensor, f"contents.{name}", "out_of_range", f"must hold numbers in the range of {tensor.datatype}")
        numbers = converted
    return memoryview(numbers.astype(kind, copy=False).tobytes())


def written_labels(output: Output, writing: Written) -> tuple[bytes, ...]:
    """Each label of an output as in the typed field; computed once for a model version."""
    if output.datatype == BYTES:
        return tuple(field(BYTES_FIELD, raw[4:]) for raw in writing.raw)
    if output.datatype == "INT64":
        return tuple(varint(int.from_bytes(raw, "little")) for raw in writing.raw)
    return tuple(writing.raw)


def typed_values(output: Output, writing: Written, labels: tuple[bytes, ...], scores: Any) -> bytes:
    """The values as InferTensorContents. Raises NotFinite."""
    if output.labels:
        values = b"".join([labels[position] for position in output.values(scores).tolist()])
        if output.datatype == BYTES:
            return values
    else:
        assert output.datatype in ("BOOL", "FP64")  # the packed field has the same bytes as the raw values
        values = binary_data(output, writing, scores)
    return head(_NUMBERS_OF[FIELDS[output.datatype]], len(values)) + values


def typed_texts(texts: list[str]) -> bytes:
    """Texts as InferTensorContents."""
    return b"".join([field(BYTES_FIELD, text.encode()) for text in texts])
