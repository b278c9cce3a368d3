"""ONNX graphs of models for outliers, clusters and several targets, with one output: the scores in the form of serving.

Forests of several targets and isolation forests compute in float64, like the forests of `training.onnx_float64`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
)

from serve_app.artifacts.signature import Signature
from training.onnx_nodes import add_constant, add_node, add_trees, add_trees_of_outputs, as_tree, round_to_float32

Convert = Callable[[Any, Any, Any], None]
Shape = Callable[[Any], None]


def converters(known: Mapping[type, Convert]) -> dict[type, Convert]:
    """The conversions of estimators with several targets and of isolation forests; `known` are those for one target."""
    classifiers = dict.fromkeys((RandomForestClassifier, ExtraTreesClassifier), _classes_of_forest)
    regressors = dict.fromkeys((RandomForestRegressor, ExtraTreesRegressor), _values_of_forest)
    several: dict[type, Convert] = {**classifiers, **regressors}
    return {**{kind: _by_targets(known[kind], several[kind]) for kind in several}, IsolationForest: _isolation_forest}


def shapes(known: Mapping[type, Shape]) -> dict[type, Shape]:
    """The shapes of the outputs of the same estimators."""
    classifiers = dict.fromkeys((RandomForestClassifier, ExtraTreesClassifier), _shape_of_classes)
    regressors = dict.fromkeys((RandomForestRegressor, ExtraTreesRegressor), _shape_of_values)
    several: dict[type, Shape] = {**classifiers, **regressors}
    return {**{kind: _shape_by_targets(known[kind], several[kind]) for kind in several}, IsolationForest: _shape_of_outliers}


def join_outputs(model: Any, signature: Signature) -> None:
    """Replace the outputs with one output, the scores of this signature, in place; remove unused nodes.

    Converters return the label, then the probabilities, distances or scores; several targets are a sequence.
    """
    graph = model.graph
    if signature.task == "clustering":
        _join_clusters(model, signature)
    elif signature.outputs and signature.task == "classification":
        _join_targets(graph)
    del graph.output[:-1]
    _prune(graph)


def _by_targets(single: Convert, several: Convert) -> Convert:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        (single if operator.raw_operator.n_outputs_ == 1 else several)(scope, operator, container)

    return convert


def _shape_by_targets(single: Shape, several: Shape) -> Shape:
    def shape(operator: Any) -> None:
        (single if operator.raw_operator.n_outputs_ == 1 else several)(operator)

    return shape


# --- forests of several targets: each tree gives its leaf, and the graph looks up the values of all targets for it


def _values_of_forest(scope: Any, operator: Any, container: Any) -> None:
    means = _mean_of_leaves(scope, operator, container, lambda values: values[:, :, 0])
    container.add_node("Identity", [means], operator.outputs[0].full_name, op_version=19)


def _classes_of_forest(scope: Any, operator: Any, container: Any) -> None:
    counts = [int(count) for count in operator.raw_operator.n_classes_]
    means = _mean_of_leaves(
        scope, operator, container, lambda values: np.hstack([values[:, at, :count] for at, count in enumerate(counts)])
    )
    # Serving ignores the label; the graph has it because a classifier has two outputs.
    label = add_node(scope, container, "ArgMax", [means], axis=1, keepdims=0)
    container.add_node("Identity", [label], operator.outputs[0].full_name, op_version=19)
    container.add_node("Identity", [means], operator.outputs[1].full_name, op_version=19)


def _mean_of_leaves(scope: Any, operator: Any, container: Any, columns: Callable[[Any], Any]) -> str:
    """The mean over the trees of what `columns` takes from the values of a leaf, shape (rows, columns)."""
    trees = [as_tree(member.tree_, columns(member.tree_.value)) for member in operator.raw_operator.estimators_]
    rounded = round_to_float32(scope, operator.inputs[0].full_name, container)
    total = add_trees_of_outputs(scope, container, rounded, trees)
    return add_node(scope, container, "Div", [total, add_constant(scope, container, np.array([len(trees)], dtype=np.float64))])


def _shape_of_values(operator: Any) -> None:
    operator.outputs[0].set_type(DoubleTensorType([operator.inputs[0].get_first_dimension(), operator.raw_operator.n_outputs_]))


def _shape_of_classes(operator: Any) -> None:
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].set_type(Int64TensorType([rows]))
    operator.outputs[1].set_type(DoubleTensorType([rows, int(np.sum(operator.raw_operator.n_classes_))]))


# --- isolation forests: the value of a leaf is the length of the path


def _isolation_forest(scope: Any, operator: Any, container: Any) -> None:
    forest = operator.raw_operator
    trees = []
    members = zip(forest.estimators_, forest.estimators_features_, *_path_lengths(forest), strict=True)
    for member, columns, paths, averages in members:
        tree = as_tree(member.tree_, paths + averages - 1.0)
        trees.append(_on_columns(tree, columns))
    rounded = round_to_float32(scope, operator.inputs[0].full_name, container)
    depth = add_trees(scope, container, rounded, trees, [0] * len(trees))
    share = add_node(scope, container, "Div", [depth, add_constant(scope, container, np.array([-_mean_path(forest)]))])
    power, score, less = (scope.get_unique_variable_name(name) for name in ("power", "score", "less"))
    container.add_node("Pow", [add_constant(scope, container, np.array([2.0])), share], power, op_version=15)
    decision = add_node(scope, container, "Sub", [add_constant(scope, container, np.array([-float(forest.offset_)])), power])
    container.add_node("Identity", [decision], score, op_version=19)
    container.add_node("Less", [score, add_constant(scope, container, np.array([0.0]))], less, op_version=13)
    labels = [add_constant(scope, container, np.array([[label]], dtype=np.int64)) for label in (-1, 1)]
    container.add_node("Where", [less, *labels], operator.outputs[0].full_name, op_version=16)
    container.add_node("Identity", [score], operator.outputs[1].full_name, op_version=19)


def _path_lengths(forest: IsolationForest) -> tuple[Any, Any]:
    """The number of nodes on the path to each node, and the mean length of a path below it, by tree.

    The attributes are private; with a release of scikit-learn without them, the forest is not converted.
    """
    return forest._decision_path_lengths, forest._average_path_length_per_tree  # noqa: SLF001


def _mean_path(forest: IsolationForest) -> float:
    """The divisor of the lengths: the sum over the trees of the mean path length in a tree with the same number of rows."""
    rows = float(forest._max_samples)  # noqa: SLF001
    if rows <= 2.0:
        raise NotImplementedError("an isolation forest of trees with two rows")
    mean = 2.0 * (np.log(rows - 1.0) + np.euler_gamma) - 2.0 * (rows - 1.0) / rows
    return float(len(forest.estimators_) * mean)


def _on_columns(tree: Any, columns: Any) -> Any:
    """The tree for the whole matrix, from a tree that was fitted on these columns."""
    from dataclasses import replace

    return replace(tree, feature=np.where(tree.left == -1, 0, np.asarray(columns)[np.maximum(tree.feature, 0)]))


def _shape_of_outliers(operator: Any) -> None:
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].set_type(Int64TensorType([rows, 1]))
    operator.outputs[1].set_type(DoubleTensorType([rows, 1]))


# --- outputs


def _join_clusters(model: Any, signature: Signature) -> None:
    """Join the position of the cluster and the distance to the nearest centre, or the probabilities, in one output."""
    graph = model.graph
    label, scores = graph.output
    if list(signature.classes) != list(range(len(signature.classes))):
        raise NotImplementedError("clusters that are not numbered from 0")
    kind = scores.type.tensor_type.elem_type
    graph.initializer.append(helper.make_tensor("iris_api_column", TensorProto.INT64, [2], [-1, 1]))
    nodes = [
        helper.make_node("Cast", [label.name], ["iris_api_label"], to=kind),
        helper.make_node("Reshape", ["iris_api_label", "iris_api_column"], ["iris_api_cluster"]),
    ]
    behind = scores.name
    if not signature.probabilistic:
        behind = "iris_api_distance"
        nodes.append(_smallest(model, scores.name, behind))
    nodes.append(helper.make_node("Concat", ["iris_api_cluster", behind], ["iris_api_scores"], axis=1))
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info("iris_api_scores", kind, [None, *signature.score_shape]))


def _smallest(model: Any, source: str, output: str) -> Any:
    """The smallest value of each row; the axis is an attribute up to opset 17, and an input from 18 on."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < 18:
        return helper.make_node("ReduceMin", [source], [output], axes=[1], keepdims=1)
    model.graph.initializer.append(helper.make_tensor("iris_api_axis", TensorProto.INT64, [1], [1]))
    return helper.make_node("ReduceMin", [source, "iris_api_axis"], [output], keepdims=1)


def _join_targets(graph: Any) -> None:
    """Replace the sequence with the probabilities of the targets side by side."""
    name = graph.output[-1].name
    for node in graph.node:
        if name in node.output and node.op_type == "SequenceConstruct":
            joined = helper.make_node("Concat", list(node.input), list(node.output), axis=1)
            node.CopyFrom(joined)
            kind = next((value.type.tensor_type.elem_type for value in graph.input), TensorProto.DOUBLE)
            graph.output[-1].CopyFrom(helper.make_tensor_value_info(name, kind, [None, None]))


def _prune(graph: Any) -> None:
    """Remove nodes and constants that no output needs."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [constant for constant in graph.initializer if constant.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)
