"""Checks of an ONNX model, before ONNX Runtime parses it.

A model that training converts consists of operators on arrays and of the numbers that they need. The check refuses everything else
by name: weights in another file, operators of other libraries, loops, branches, functions, and ONNX Runtime's own format.

The reader accepts only the form of each message that protobuf libraries write: known fields with their declared wire type, tags and
numbers without superfluous bytes, and singular fields at most once. Two readers therefore cannot see different models in the same
bytes. The serving image does not contain the package `onnx`; `tests/hostile/test_hostile_onnx.py` compares both readers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from serve_app.errors import BundleRefused

ONNX_DOMAINS = frozenset({"", "ai.onnx"})
ML_DOMAIN = "ai.onnx.ml"
ORT_FORMAT = b"ORTM"
"""The identifier of ONNX Runtime's own format, at byte 4 of a file. ONNX Runtime has another parser for this format."""


def _names(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


_CORE = _names(
    "Abs Add ArgMax ArgMin Cast Clip Concat ConstantOfShape CumSum Div Equal Exp Flatten Floor Gather GatherElements Gemm Greater",
    "Identity IsNaN Less Log MatMul Mul Neg Not Pow Reciprocal ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum",
    "ReduceSumSquare Relu Reshape Shape Sigmoid Softmax Sqrt Sub Sum Tanh TopK Transpose Where",
)
_ML = _names(
    "ArrayFeatureExtractor Binarizer Imputer LabelEncoder LinearClassifier LinearRegressor Normalizer OneHotEncoder",
    "SVMClassifier SVMRegressor Scaler TreeEnsemble TreeEnsembleClassifier TreeEnsembleRegressor",
)
OPERATORS: Mapping[str, frozenset[str]] = {**dict.fromkeys(ONNX_DOMAINS, _CORE), ML_DOMAIN: _ML}
"""The operators by domain that converted models of training and of other scikit-learn estimators use. A test converts the
estimators of `tests/support/converted.py` and compares. Estimators that need a loop (nearest neighbours, kernels) or functions are
excluded."""


class InvalidProtobuf(ValueError):
    """The bytes are not a protocol buffer in the form that protobuf libraries write."""


def check_onnx(model: bytes) -> None:
    """Raise BundleRefused: `forbidden` for content that a model must not have, `load` for bytes that are not an ONNX model."""
    if model[4:8] == ORT_FORMAT:
        raise BundleRefused("forbidden", "the ONNX model is in ONNX Runtime's own format; convert it to ONNX")
    try:
        _read(memoryview(model), _MODEL)
    except InvalidProtobuf as error:
        raise BundleRefused("load", f"the ONNX model cannot be read ({error})") from None


# --- messages and their fields, with the numbers of onnx.proto

Value = memoryview | int
Check = Callable[[Value], None]
"""Raises InvalidProtobuf or BundleRefused for a forbidden value."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class _Field:
    wire: int
    check: Check
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class _Message:
    """The rules for a message. `required` are the mandatory fields; `skip` matches runs of fields that need no further check."""

    fields: Mapping[int, _Field]
    required: frozenset[int] = frozenset()
    skip: re.Pattern[bytes] | None = None
    check: Callable[[dict[int, Value]], None] | None = None
    """Checks the singular fields of the whole message."""


def _read(view: memoryview, message: _Message) -> None:
    """Check a message field by field, without building objects."""
    at, end = 0, len(view)
    singular: dict[int, Value] = {}
    while at < end:
        run = message.skip.match(view, at) if message.skip is not None else None
        if run is not None:
            at = run.end()
            continue
        number, value, at = _next(view, at, message)
        field = message.fields[number]
        if not field.repeated:
            if number in singular:
                raise InvalidProtobuf(f"field {number} is repeated")
            singular[number] = value
        field.check(value)
    if not message.required <= singular.keys():
        raise InvalidProtobuf("a field is missing")
    if message.check is not None:
        message.check(singular)


def _next(view: memoryview, at: int, message: _Message) -> tuple[int, Value, int]:
    """Number and value of the field at a position, and the position after it."""
    tag, at = _varint(view, at)
    number, wire = tag >> 3, tag & 7
    field = message.fields.get(number)
    if field is None or field.wire != wire:
        raise InvalidProtobuf(f"an unknown field {number} of wire type {wire}")
    if wire == _VARINT:
        value, at = _varint(view, at)
        return number, value, at
    size = 8 if wire == _FIXED64 else 4
    if wire == _BYTES:
        size, at = _varint(view, at)
    if size > len(view) - at:
        raise InvalidProtobuf("cut off")
    return number, view[at : at + size], at + size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number of at most 64 bits in its shortest form, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            raise InvalidProtobuf("cut off")
        byte = view[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if (byte == 0 and shift) or value >> 64:
                raise InvalidProtobuf("a number in more bytes than it needs")
            return value, at
    raise InvalidProtobuf("a number without end")


# --- values

_NUMBER = rb"(?:[\x00-\x7f]|[\x80-\xff]{1,8}[\x01-\x7f]|[\x80-\xff]{9}\x01)"
_NUMBERS = re.compile(rb"(?s)(?:%b){1,4000}+" % _NUMBER)
_SHORT = b"|".join(b"\\x%02x.{%d}" % (size, size) for size in range(32))
_VALUES = re.compile(rb"(?s)(?:\x3d.{4}|\x40" + _NUMBER + rb"|\x4a(?:" + _SHORT + rb")){1,2000}+")
"""Numbers and short texts of an attribute, one field each: a forest has millions of them, too many for a check of each. One match
takes at most a millisecond, because other requests wait meanwhile."""


def _any(_: Value) -> None:
    """Accept every value."""


def _text(value: Value) -> None:
    _string(value)


def _string(value: Value) -> str:
    try:
        return str(_bytes(value), "utf-8")
    except UnicodeDecodeError:
        raise InvalidProtobuf("a name that is not UTF-8") from None


def _bytes(value: Value) -> memoryview:
    assert isinstance(value, memoryview)
    return value


def _up_to(limit: int) -> Check:
    """A check for numbers of an enumeration or of 31 bits."""

    def check(value: Value) -> None:
        assert isinstance(value, int)
        if value > limit:
            raise InvalidProtobuf("a number that is too large")

    return check


def _packed(value: Value) -> None:
    """Check consecutive numbers of variable length."""
    view, at = _bytes(value), 0
    while at < len(view):
        run = _NUMBERS.match(view, at)
        if run is None:
            raise InvalidProtobuf("a wrong list of numbers")
        at = run.end()


def _fixed(size: int) -> Check:
    """A check for consecutive numbers of `size` bytes."""

    def check(value: Value) -> None:
        if len(_bytes(value)) % size:
            raise InvalidProtobuf("cut off")

    return check


def _forbidden(text: str) -> Check:
    def check(_: Value) -> NoReturn:
        raise BundleRefused("forbidden", f"the ONNX model {text}")

    return check


def _inner(message: _Message) -> Check:
    return lambda value: _read(_bytes(value), message)


def _data_location(value: Value) -> None:
    if value != 0:
        _OUTSIDE(value)


def _domain(value: Value) -> None:
    if (domain := _string(value)) not in OPERATORS:
        raise BundleRefused("forbidden", f"the ONNX model needs operators of the domain {domain[:40]!r}, which are not allowed")


def _operator(fields: dict[int, Value]) -> None:
    operator, domain = _string(fields[4]), _string(fields[7]) if 7 in fields else ""
    if operator not in OPERATORS[domain]:
        raise BundleRefused("forbidden", f"the ONNX model uses the operator {operator[:40]!r}, which is not allowed")


_OUTSIDE = _forbidden("keeps weights in another file")
_GRAPH_INSIDE = _forbidden("holds a loop or a branch")
_SPARSE = _forbidden("holds a sparse tensor")
_FUNCTIONS = _forbidden("has its own functions")

_NAME = _Field(_BYTES, _text)
_NAMES = _Field(_BYTES, _text, repeated=True)
_INT64 = _Field(_VARINT, _any)
_INT31 = _Field(_VARINT, _up_to(2**31 - 1))

_PROPERTIES = _Field(_BYTES, _inner(_Message({1: _NAME, 2: _NAME})), repeated=True)
_OPSET = _Message({1: _Field(_BYTES, _domain), 2: _INT64})
_DIMENSION = _Message({1: _INT64, 2: _NAME, 3: _NAME}, check=lambda fields: _one_of(fields, 1, 2))
_SHAPE = _Message({1: _Field(_BYTES, _inner(_DIMENSION), repeated=True)})
_TENSOR_TYPE = _Message({1: _INT31, 2: _Field(_BYTES, _inner(_SHAPE))})
_TYPE = _Message({1: _Field(_BYTES, _inner(_TENSOR_TYPE)), 6: _NAME})
_VALUE_INFO = _Field(_BYTES, _inner(_Message({1: _NAME, 2: _Field(_BYTES, _inner(_TYPE)), 3: _NAME})), repeated=True)
_TENSOR = _Message(
    {
        1: _Field(_VARINT, _any, repeated=True),  # dims
        2: _INT31,
        4: _Field(_BYTES, _fixed(4)),
        5: _Field(_BYTES, _packed),
        6: _Field(_BYTES, _any, repeated=True),  # string_data
        7: _Field(_BYTES, _packed),
        8: _NAME,
        9: _Field(_BYTES, _any),  # raw_data
        10: _Field(_BYTES, _fixed(8)),
        11: _Field(_BYTES, _packed),
        12: _NAME,
        13: _Field(_BYTES, _OUTSIDE, repeated=True),
        14: _Field(_VARINT, _data_location),
    }
)
_ATTRIBUTE = _Message(
    {
        1: _NAME,
        2: _Field(_FIXED32, _any),
        3: _INT64,
        4: _Field(_BYTES, _any),
        5: _Field(_BYTES, _inner(_TENSOR)),
        6: _Field(_BYTES, _GRAPH_INSIDE),
        7: _Field(_FIXED32, _any, repeated=True),
        8: _Field(_VARINT, _any, repeated=True),
        9: _Field(_BYTES, _any, repeated=True),
        10: _Field(_BYTES, _inner(_TENSOR), repeated=True),
        11: _Field(_BYTES, _GRAPH_INSIDE, repeated=True),
        13: _NAME,
        20: _Field(_VARINT, _up_to(14)),
        21: _Field(_BYTES, _FUNCTIONS),
        22: _Field(_BYTES, _SPARSE),
        23: _Field(_BYTES, _SPARSE, repeated=True),
    },
    skip=_VALUES,
)
_NODE = _Message(
    {
        1: _NAMES,
        2: _NAMES,
        3: _NAME,
        4: _NAME,
        5: _Field(_BYTES, _inner(_ATTRIBUTE), repeated=True),
        6: _NAME,
        7: _Field(_BYTES, _domain),
        8: _Field(_BYTES, _FUNCTIONS),
    },
    required=frozenset({4}),
    check=_operator,
)
_GRAPH = _Message(
    {
        1: _Field(_BYTES, _inner(_NODE), repeated=True),
        2: _NAME,
        5: _Field(_BYTES, _inner(_TENSOR), repeated=True),
        10: _NAME,
        11: _VALUE_INFO,
        12: _VALUE_INFO,
        13: _VALUE_INFO,
        15: _Field(_BYTES, _SPARSE, repeated=True),
    }
)
_MODEL = _Message(
    {
        1: _INT64,
        2: _NAME,
        3: _NAME,
        4: _NAME,
        5: _INT64,
        6: _NAME,
        7: _Field(_BYTES, _inner(_GRAPH)),
        8: _Field(_BYTES, _inner(_OPSET), repeated=True),
        14: _PROPERTIES,
        20: _Field(_BYTES, _FUNCTIONS, repeated=True),
        25: _Field(_BYTES, _FUNCTIONS, repeated=True),
    },
    required=frozenset({7}),
)


def _one_of(fields: dict[int, Value], *alternatives: int) -> None:
    if sum(number in fields for number in alternatives) > 1:
        raise InvalidProtobuf("two values in place of one")
