"""ONNX models that hide something from a reader, or that take all memory or time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.support.models import iris_signature

ORT_FORMAT = b"ORTM"
"""The identifier of ONNX Runtime's own format, at byte 4 of a file."""


def varint(number: int) -> bytes:
    """A number as protobuf writes it."""
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def overlong(number: int, size: int) -> bytes:
    """A number in more bytes than it needs."""
    return bytes([number >> 7 * at & 127 | 128 for at in range(size - 1)]) + bytes([number >> 7 * (size - 1) & 127])


def field(number: int, payload: bytes, *, tag: bytes | None = None) -> bytes:
    """A field of bytes; `tag` in another form than the usual."""
    return (tag or varint(number << 3 | 2)) + varint(len(payload)) + payload


def hiding_tag(number: int) -> bytes:
    """A tag whose bit 32 is set: protobuf reads `number`, a reader that keeps the bit reads a number that it does not know."""
    return overlong(number << 3 | 2 | 1 << 32, 5)


def model(nodes: list[NodeProto], *, tensors: list[TensorProto] | None = None, domain: str = "") -> ModelProto:
    """A model from four columns X to three columns Y."""
    source = helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, len(iris_signature().features)])
    target = helper.make_tensor_value_info("Y", TensorProto.DOUBLE, [None, 3])
    graph = helper.make_graph(nodes, "graph", [source], [target], initializer=tensors or [])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    proto = helper.make_model(graph, opset_imports=opsets)
    proto.ir_version = 8
    return proto


def external(location: str, length: int = 96) -> TensorProto:
    """A tensor of four rows and three columns whose numbers are in another file."""
    tensor = TensorProto(name="W", data_type=TensorProto.DOUBLE, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def hidden(proto: ModelProto) -> bytes:
    """The model with the tags of its nodes and tensors in a form that hides them."""
    whole = ModelProto()
    whole.CopyFrom(proto)
    graph = whole.graph
    parts = [field(1, node.SerializeToString(), tag=hiding_tag(1)) for node in graph.node]
    parts += [field(5, tensor.SerializeToString(), tag=hiding_tag(5)) for tensor in graph.initializer]
    graph.ClearField("node")
    graph.ClearField("initializer")
    opsets = [field(8, opset.SerializeToString(), tag=hiding_tag(8)) for opset in whole.opset_import]
    whole.ClearField("opset_import")
    body = graph.SerializeToString() + b"".join(parts)
    whole.ClearField("graph")
    return bytes(whole.SerializeToString() + b"".join(opsets) + field(7, body))


def reads_a_file(location: str) -> ModelProto:
    """Gives the bytes of a file as its scores."""
    return model([helper.make_node("MatMul", ["X", "W"], ["Y"])], tensors=[external(location)])


def foreign() -> ModelProto:
    """Uses an operator of another domain that ONNX Runtime knows."""
    weights = numpy_helper.from_array(np.ones((4, 3)), "W")
    nodes = [
        helper.make_node("MatMul", ["X", "W"], ["H"]),
        helper.make_node("Cast", ["H"], ["F"], to=TensorProto.FLOAT),
        helper.make_node("FastGelu", ["F"], ["G"], domain="com.microsoft"),
        helper.make_node("Cast", ["G"], ["Y"], to=TensorProto.DOUBLE),
    ]
    return model(nodes, tensors=[weights], domain="com.microsoft")


def loop_body() -> GraphProto:
    """The inside of a loop that goes on as long as its count allows."""
    return helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still"]), helper.make_node("Identity", ["before"], ["after"])],
        "inner",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.DOUBLE, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.DOUBLE, None),
        ],
    )


def loop() -> ModelProto:
    """Counts to 2 ** 62."""
    count = helper.make_tensor("n", TensorProto.INT64, [], [2**62])
    truth = helper.make_tensor("t", TensorProto.BOOL, [], [True])
    return model([helper.make_node("Loop", ["n", "t", "X"], ["Y"], body=loop_body())], tensors=[count, truth])


def endless(steps: int = 140, size: int = 4000) -> ModelProto:
    """Small on the disk; multiplies large matrices of a constant, one after the other."""
    shape = numpy_helper.from_array(np.array([size, size], dtype=np.int64), "shape")
    one = helper.make_tensor("value", TensorProto.DOUBLE, [1], [1e-4])
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["M0"], value=one)]
    nodes += [helper.make_node("MatMul", [f"M{at}", "M0"], [f"M{at + 1}"]) for at in range(steps)]
    return model([*nodes, *_to_scores(f"M{steps}")], tensors=[shape, *_weights()])


def swelling(columns: int = 420_000_000) -> ModelProto:
    """A few hundred bytes that become gigabytes."""
    shape = numpy_helper.from_array(np.array([columns], dtype=np.int64), "shape")
    one = helper.make_tensor("value", TensorProto.DOUBLE, [1], [1.0])
    return model([helper.make_node("ConstantOfShape", ["shape"], ["M"], value=one), *_to_scores("M")], tensors=[shape, *_weights()])


def expanding(steps: int = 140, size: int = 4000) -> ModelProto:
    """The same as `endless`, of operators that training uses too: the constant is stretched by adding a row to a column."""
    row, column = np.full((1, size), 1e-4), np.full((size, 1), 1e-4)
    tensors = [numpy_helper.from_array(row, "row"), numpy_helper.from_array(column, "column")]
    nodes = [helper.make_node("Add", ["row", "column"], ["M0"])]
    nodes += [helper.make_node("MatMul", [f"M{at}", "M0"], [f"M{at + 1}"]) for at in range(steps)]
    return model([*nodes, *_to_scores(f"M{steps}")], tensors=[*tensors, *_weights()])


def broadcasting(size: int = 20_000) -> ModelProto:
    """Like `swelling`, of operators that training uses too: a row and a column of this many numbers are added."""
    row, column = np.zeros((1, size), dtype=np.float64), np.zeros((size, 1), dtype=np.float64)
    tensors = [numpy_helper.from_array(row, "row"), numpy_helper.from_array(column, "column")]
    return model([helper.make_node("Add", ["row", "column"], ["M"]), *_to_scores("M")], tensors=[*tensors, *_weights()])


def _weights() -> list[TensorProto]:
    return [numpy_helper.from_array(np.ones((4, 3)), "W")]


def _to_scores(source: str) -> list[NodeProto]:
    return [
        helper.make_node("ReduceMean", [source], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["X", "W"], ["H"]),
        helper.make_node("Add", ["H", "mean"], ["Y"]),
    ]


def in_ort_format(raw: bytes, folder: Path) -> bytes:
    """A model in ONNX Runtime's own format, as ONNX Runtime writes it."""
    target = folder / "model.ort"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    return target.read_bytes()


def polyglot(ort: bytes, harmless: ModelProto) -> bytes:
    """Bytes that ONNX Runtime reads as the model in its own format, and a lenient reader of protobuf as the harmless one.

    The file begins with the offset of the root table and with ORTM. Here the bytes of the offset are, as protobuf, a number
    (field 5) and the tag and length of a text, the O; R and T are tag and length of a field of 84 bytes. Such an offset is larger
    than 16 MB, so the table is moved behind zeros. Offsets inside the format are relative; what follows the table is not read.
    """
    offset = int.from_bytes(b"\x28\x00\x12\x01", "little")
    moved = offset - int.from_bytes(ort[:4], "little")
    assert moved % 16 == 0
    filler, table = bytearray(moved), ort[8:]
    filler[83:88] = b"\x12" + varint(moved - 88 + len(table))
    assert len(filler) == moved
    return offset.to_bytes(4, "little") + ORT_FORMAT + bytes(filler) + table + bytes(harmless.SerializeToString())


def plain() -> ModelProto:
    """The sum of the columns, three times."""
    weights = numpy_helper.from_array(np.ones((4, 3)), "W")
    return model([helper.make_node("MatMul", ["X", "W"], ["Y"])], tensors=[weights])
