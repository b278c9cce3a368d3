"""Bundles with an ONNX model that reaches out of itself, never ends, or is none."""

from __future__ import annotations

import gzip
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from serve_app.artifacts.names import ONNX
from tests.support.hostile.cases import Case, anything, case, good, proven
from tests.support.hostile.onnx_models import loop_body
from tests.support.models import iris_signature


def graphs(folder: Path) -> Iterator[Case]:
    """ONNX models that reach out of themselves, never end, or are none."""
    files, _ = good()
    weights = folder / "weights.bin"
    np.arange(12, dtype=np.float64).tofile(weights)
    raw = files[ONNX]
    relative = os.path.relpath(weights)
    for location in (str(weights), relative, "weights.bin", "../weights.bin", "/etc/passwd", "/proc/self/environ"):
        for where, model in {"initializer": _with_weights(location), "constant": _with_constant(location)}.items():
            yield case(f"ONNX: {where} in {location}", "forbidden", proven({**files, ONNX: model}))
        yield case(f"ONNX: behind many numbers in {location}", "forbidden", proven({**files, ONNX: _with_buried(location)}))
        yield case(f"ONNX: branch in {location}", "forbidden", proven({**files, ONNX: _with_branch(location)}))
    for domain in ("evil", "com.microsoft", "ai.onnx.contrib", "ai.onnx.training", "ai.onnx.ml ", "AI.ONNX"):
        yield case(f"ONNX: operator of {domain!r}", "forbidden", proven({**files, ONNX: _with_operator(domain)}))
    yield case("ONNX: a function of its own", "forbidden", proven({**files, ONNX: _with_function()}))
    yield case("ONNX: a loop without end", "forbidden", proven({**files, ONNX: _with_loop()}))
    for length in np.linspace(0, len(raw) - 1, 40, dtype=int).tolist():
        yield case(f"ONNX: cut to {length}", "load", proven({**files, ONNX: raw[:length]}))
    for name, other in {
        "text": b"an ONNX model",
        "zeros": bytes(5000),
        "0xff": b"\xff" * 5000,
        "a pickle": pickle.dumps(raw),
        "gzip": gzip.compress(raw),
        "groups": b"\x3b" * 500,
        "endless number": b"\x38" + b"\xff" * 20,
        "two graphs": raw + raw,
        "no graph": _without_graph(),
        "deep": _deep(200),
    }.items():
        yield case(f"ONNX: {name}", "forbidden" if name == "deep" else "load", proven({**files, ONNX: other}))
    for seed in range(40):
        noise = np.random.default_rng(seed).bytes(len(raw))
        yield case(f"ONNX: noise {seed}", "load forbidden", proven({**files, ONNX: noise}))
    for onnx_facts in anything(None, {}, [], "x"):
        yield case(f"ONNX: facts {onnx_facts!r}", "load manifest", proven(files, onnx=onnx_facts))


def _external(location: str) -> TensorProto:
    tensor = TensorProto(name="W", data_type=TensorProto.DOUBLE, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "96")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _model(nodes: list[Any], *, tensors: list[Any] | None = None, domain: str = "", functions: tuple[Any, ...] = ()) -> bytes:
    width = len(iris_signature().features)
    source = helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, width])
    target = helper.make_tensor_value_info("Y", TensorProto.DOUBLE, [None, 3])
    graph = helper.make_graph(nodes, "graph", [source], [target], initializer=tensors or [])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions)
    model.ir_version = 8
    return bytes(model.SerializeToString())


def _with_weights(location: str) -> bytes:
    return _model([helper.make_node("MatMul", ["X", "W"], ["Y"])], tensors=[_external(location)])


def _with_constant(location: str) -> bytes:
    constant = helper.make_node("Constant", [], ["W"], value=_external(location))
    return _model([constant, helper.make_node("MatMul", ["X", "W"], ["Y"])])


def _with_buried(location: str) -> bytes:
    """The tensor is the last of an attribute with as many numbers and texts as one of a forest."""
    constant = helper.make_node("Constant", [], ["W"], value=_external("weights.bin"))
    buried = constant.attribute[0]
    buried.ClearField("t")
    buried.ints.extend([*range(-3, 5000), 2**62, -(2**62)])
    buried.floats.extend(np.linspace(-1, 1, 5000).tolist())
    buried.strings.extend(b"x" * (length % 40) for length in range(5000))
    buried.tensors.append(_external(location))
    return _model([constant, helper.make_node("MatMul", ["X", "W"], ["Y"])])


def _with_branch(location: str) -> bytes:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["X", "W"], ["Z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("Z", TensorProto.DOUBLE, None)],
        initializer=[_external(location)],
    )
    truth = helper.make_node("Constant", [], ["truth"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    return _model([truth, helper.make_node("If", ["truth"], ["Y"], then_branch=inner, else_branch=inner)])


def _with_operator(domain: str) -> bytes:
    return _model([helper.make_node("Evil", ["X"], ["Y"], domain=domain)], domain=domain)


def _with_function() -> bytes:
    body = [helper.make_node("Identity", ["a"], ["b"])]
    function = helper.make_function("own", "Copy", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    return _model([helper.make_node("Copy", ["X"], ["Y"], domain="own")], domain="own", functions=(function,))


def _with_loop() -> bytes:
    count = helper.make_node("Constant", [], ["n"], value=helper.make_tensor("n", TensorProto.INT64, [], [2**62]))
    truth = helper.make_node("Constant", [], ["t"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    return _model([count, truth, helper.make_node("Loop", ["n", "t", "X"], ["Y"], body=loop_body())])


def _without_graph() -> bytes:
    return bytes(onnx.ModelProto(ir_version=8, producer_name="nobody").SerializeToString())


def _deep(depth: int) -> bytes:
    """A graph in an attribute of a node in a graph, and so on."""
    raw = b""
    for _ in range(depth):
        for tag in (0x32, 0x2A, 0x0A):  # attribute.g, node.attribute, graph.node
            raw = bytes([tag]) + _length(raw) + raw
    return b"\x3a" + _length(raw) + raw


def _length(raw: bytes) -> bytes:
    number, out = len(raw), b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])
