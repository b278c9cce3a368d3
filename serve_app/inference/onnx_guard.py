"""What an ONNX model may hold, checked before ONNX Runtime parses it.

A file of weights elsewhere on the disk, an operator of a library, a loop without end: none of them is part of a model that training
converts. The protocol buffer is walked field by field; nothing of it is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from serve_app.errors import BundleRefused

DOMAINS = frozenset({b"", b"ai.onnx", b"ai.onnx.ml"})
REFUSED_OPERATORS = frozenset({b"Loop", b"If"})
"""They run as long as the model says; Scan ends with its input."""
MAX_DEPTH = 16

# Numbers of the fields, from onnx.proto.
_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 20, 25
_OPSET_DOMAIN = 1
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_SPARSE_TENSORS = (1, 2)

_SHORT = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(32))
_VALUES = re.compile(rb"(?s)(?:\x3d.{4}|\x40[\x80-\xff]{0,9}[\x00-\x7f]|\x4a(?:" + _SHORT + rb")){1,2000}+")
"""Numbers and short texts of an attribute, one field each: a forest has millions, too many to look at one by one. No more at a time
than take a millisecond, because other requests wait meanwhile."""
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14


def check_onnx(model: bytes) -> None:
    """Raises BundleRefused `forbidden` for what a served model must not hold, `load` for bytes that are not an ONNX model."""
    try:
        graphs = _model(memoryview(model))
    except InvalidProtobuf as error:
        raise BundleRefused("load", f"the ONNX model cannot be read ({error})") from None
    if graphs != 1:
        raise BundleRefused("load", "the ONNX model does not hold one graph")


class InvalidProtobuf(ValueError):
    """The bytes are not a protocol buffer."""


def _model(view: memoryview) -> int:
    """Check the fields of a model; the number of its graphs."""
    graphs = 0
    for number, value in _fields(view):
        if number == _MODEL_GRAPH:
            graphs += 1
            _graph(_message(value), 0)
        elif number == _MODEL_OPSETS:
            for inner, domain in _fields(_message(value)):
                if inner == _OPSET_DOMAIN:
                    _domain(domain)
        elif number in (_MODEL_FUNCTIONS, _MODEL_TRAINING):
            raise BundleRefused("forbidden", "the ONNX model brings functions of its own")
    return graphs


def _graph(view: memoryview, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidProtobuf("too deep")
    for number, value in _fields(view):
        if number == _GRAPH_NODE:
            _node(_message(value), depth)
        elif number == _GRAPH_TENSOR:
            _tensor(_message(value))
        elif number == _GRAPH_SPARSE:
            _sparse(_message(value))


def _node(view: memoryview, depth: int) -> None:
    for number, value in _fields(view):
        if number == _NODE_OPERATOR and bytes(_message(value)) in REFUSED_OPERATORS:
            raise BundleRefused("forbidden", "the ONNX model holds a loop or a branch")
        if number == _NODE_DOMAIN:
            _domain(value)
        elif number == _NODE_ATTRIBUTE:
            _attribute(_message(value), depth)


def _attribute(view: memoryview, depth: int) -> None:
    for number, value in _fields(view, skip=_VALUES):
        if number in _ATTRIBUTE_TENSORS:
            _tensor(_message(value))
        elif number in _ATTRIBUTE_GRAPHS:
            _graph(_message(value), depth + 1)
        elif number in _ATTRIBUTE_SPARSE:
            _sparse(_message(value))


def _sparse(view: memoryview) -> None:
    for number, value in _fields(view):
        if number in _SPARSE_TENSORS:
            _tensor(_message(value))


def _tensor(view: memoryview) -> None:
    for number, value in _fields(view):
        if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
            raise BundleRefused("forbidden", "the ONNX model keeps weights in another file")


def _domain(value: memoryview | int) -> None:
    if bytes(_message(value)) not in DOMAINS:
        raise BundleRefused("forbidden", "the ONNX model needs operators that are not ONNX's own")


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise InvalidProtobuf("a number where a message belongs")
    return value


def _fields(view: memoryview, *, skip: re.Pattern[bytes] | None = None) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field: bytes, or an integer; fixed-width numbers and what `skip` matches are passed over."""
    at, end = 0, len(view)
    while at < end:
        run = skip.match(view, at) if skip is not None else None
        if run is not None:
            at = run.end()
            continue
        tag, at = _varint(view, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(view, at)
            yield number, value
        elif kind == 2:
            size, at = _varint(view, at)
            if size > end - at:
                raise InvalidProtobuf("cut off")
            yield number, view[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise InvalidProtobuf("an unknown kind of field")
    if at != end:
        raise InvalidProtobuf("cut off")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise InvalidProtobuf("cut off")
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise InvalidProtobuf("a number without end")
