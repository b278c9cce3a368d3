"""The parts of dates as an ONNX graph: `serve_app.inference.date_parts.compute_parts` in float64, operator by operator."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType

from serve_app.inference.date_parts import compute_parts

_VERSIONS = {"Add": 14, "Sub": 14, "Mul": 14, "Div": 14, "Floor": 13, "Gather": 13, "Cast": 19, "Concat": 13}


class _Value:
    """A column of the graph, shape (rows, 1); Python's operators add nodes."""

    def __init__(self, graph: _Graph, name: str) -> None:
        self.graph = graph
        self.name = name

    def __add__(self, other: _Value | float) -> _Value:
        return self.graph.node("Add", self, other)

    def __sub__(self, other: _Value | float) -> _Value:
        return self.graph.node("Sub", self, other)

    def __mul__(self, other: _Value | float) -> _Value:
        return self.graph.node("Mul", self, other)

    def __truediv__(self, other: _Value | float) -> _Value:
        return self.graph.node("Div", self, other)

    def floor(self) -> _Value:
        return self.graph.node("Floor", self)


class _Graph:
    """Adds nodes and constants to a container of skl2onnx."""

    def __init__(self, scope: Any, container: Any) -> None:
        self.scope = scope
        self.container = container

    def node(self, kind: str, *inputs: _Value | float, **attributes: Any) -> _Value:
        names = [value.name if isinstance(value, _Value) else self.constant(value) for value in inputs]
        output = self.scope.get_unique_variable_name(kind.lower())
        name = self.scope.get_unique_operator_name(kind)
        self.container.add_node(kind, names, output, op_version=_VERSIONS[kind], name=name, **attributes)
        return _Value(self, output)

    def constant(self, value: float) -> str:
        name: str = self.scope.get_unique_variable_name("constant")
        self.container.add_initializer(name, TensorProto.DOUBLE, [1], [float(value)])
        return name

    def columns(self, matrix: _Value, positions: list[int]) -> _Value:
        name = self.scope.get_unique_variable_name("positions")
        self.container.add_initializer(name, TensorProto.INT64, [len(positions)], positions)
        return self.node("Gather", matrix, _Value(self, name), axis=1)


def convert_parts(scope: Any, operator: Any, container: Any) -> None:
    """The conversion of `DateParts`, for skl2onnx."""
    step = operator.raw_operator
    graph = _Graph(scope, container)
    matrix = _Value(graph, operator.inputs[0].full_name)
    if not isinstance(operator.inputs[0].type, DoubleTensorType):
        matrix = graph.node("Cast", matrix, to=TensorProto.DOUBLE)
    blocks: list[str] = []
    start = 0
    for column, names, origin in zip(step.columns, step.parts, step.origins, strict=True):
        if column > start:
            blocks.append(graph.columns(matrix, list(range(start, column))).name)
        parts = compute_parts(graph.columns(matrix, [int(column)]), float(origin), _Value.floor)
        blocks += [parts[name].name for name in names]
        start = column + 1
    if start < step.n_features_in_:
        blocks.append(graph.columns(matrix, list(range(start, step.n_features_in_))).name)
    container.add_node("Concat", blocks, operator.outputs[0].full_name, op_version=13, axis=1)


def parse_parts(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """The output of `DateParts` with its shape, which a ColumnTransformer behind it needs, for skl2onnx."""
    operator = scope.declare_local_operator("DateParts", model)
    operator.inputs = inputs
    operator.outputs.append(scope.declare_local_variable("parts", DoubleTensorType([None, _width(model)])))
    return operator.outputs


def parts_shape(operator: Any) -> None:
    """The shape of the output of `DateParts`, for skl2onnx."""
    operator.outputs[0].set_type(DoubleTensorType([operator.inputs[0].get_first_dimension(), _width(operator.raw_operator)]))


def _width(step: Any) -> int:
    return int(step.n_features_in_) - len(step.columns) + sum(map(len, step.parts))
