"""Nodes of an ONNX graph for converters: trees with weights in float64, constants, and plain operators.

`scope` and `container` are the arguments that skl2onnx passes to a converter. Functions that add a node return the name of its
output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, numpy_helper

from training.trees import Tree

DOMAIN = "ai.onnx.ml"

_NODE_ATTRIBUTES = (
    "nodes_truenodeids",
    "nodes_falsenodeids",
    "nodes_trueleafs",
    "nodes_falseleafs",
    "nodes_featureids",
    "nodes_missing_value_tracks_true",
)
"""Attributes of TreeEnsemble with one entry for each split."""

_LESS_OR_EQUAL, _LESS, _MEMBER = 0, 1, 6
"""Modes of a node of TreeEnsemble."""


def as_tree(tree: Any, value: npt.NDArray[Any]) -> Tree:
    """The `tree_` of an estimator of scikit-learn with these values, shape (nodes,) or (nodes, outputs)."""
    missing = np.asarray(getattr(tree, "missing_go_to_left", np.zeros(tree.node_count)), dtype=np.int64)
    return Tree(tree.children_left, tree.children_right, tree.feature, tree.threshold, missing, value)


def add_trees(
    scope: Any, container: Any, source: str, trees: Iterable[Tree], targets: Iterable[int], *, strict: bool = False
) -> str:
    """The sums of the trees' leaves by target, shape (rows, targets)."""
    roots: list[int] = []
    attributes: dict[str, Any] = {name: [] for name in _NODE_ATTRIBUTES}
    splits: list[float] = []
    modes: list[int] = []
    memberships: list[float] = []
    weights: list[float] = []
    leaf_targets: list[int] = []
    for tree, target in zip(trees, targets, strict=True):
        roots.append(len(splits))
        inner, leaf = np.flatnonzero(tree.left != -1), np.flatnonzero(tree.left == -1)
        index = np.zeros(len(tree.left), dtype=np.int64)
        index[inner] = np.arange(len(inner)) + len(splits)
        index[leaf] = np.arange(len(leaf)) + len(weights)
        weights += tree.value[leaf].tolist()
        leaf_targets += [target] * len(leaf)
        if not len(inner):  # a single leaf: the operator needs a split, both branches of which end in this leaf
            only = int(index[leaf[0]])
            for name, value in zip(_NODE_ATTRIBUTES, (only, only, 1, 1, 0, 0), strict=True):
                attributes[name].append(value)
            splits.append(0.0)
            modes.append(_LESS_OR_EQUAL)
            continue
        left, right = tree.left[inner], tree.right[inner]
        columns = (
            index[left],
            index[right],
            tree.left[left] == -1,
            tree.left[right] == -1,
            tree.feature[inner],
            tree.missing[inner],
        )
        for name, column in zip(_NODE_ATTRIBUTES, columns, strict=True):
            attributes[name] += np.asarray(column).astype(np.int64).tolist()
        splits += tree.threshold[inner].tolist()
        for node in inner.tolist():
            known = tree.categories.get(node)
            modes.append((_LESS if strict else _LESS_OR_EQUAL) if known is None else _MEMBER)
            if known is not None:
                memberships += [*known.tolist(), math.nan]
    if memberships:
        attributes["membership_values"] = numpy_helper.from_array(np.array(memberships), "memberships")
    output: str = scope.get_unique_variable_name("trees")
    container.add_node(
        "TreeEnsemble",
        [source],
        output,
        op_domain=DOMAIN,
        op_version=3,  # the version that skl2onnx accepts; see onnx_float64.raise_opset
        name=scope.get_unique_operator_name("TreeEnsemble"),
        n_targets=max(leaf_targets) + 1,
        aggregate_function=1,
        post_transform=0,
        tree_roots=roots,
        leaf_targetids=leaf_targets,
        leaf_weights=numpy_helper.from_array(np.array(weights, dtype=np.float64), "weights"),
        nodes_splits=numpy_helper.from_array(np.array(splits, dtype=np.float64), "splits"),
        nodes_modes=numpy_helper.from_array(np.array(modes, dtype=np.uint8), "modes"),
        **attributes,
    )
    return output


def add_trees_of_outputs(scope: Any, container: Any, source: str, trees: Iterable[Tree], *, strict: bool = False) -> str:
    """The sums of leaves that have a value for each output, shape (rows, outputs)."""
    numbered, values, leaves = [], [], 0
    for tree in trees:
        leaf = np.flatnonzero(tree.left == -1)
        numbers = np.zeros(len(tree.left))
        numbers[leaf] = np.arange(len(leaf)) + leaves
        leaves += len(leaf)
        values.append(tree.value[leaf])
        numbered.append(replace(tree, value=numbers))
    reached = add_trees(scope, container, source, numbered, range(len(numbered)), strict=strict)
    indexes = add_node(scope, container, "Cast", [reached], to=TensorProto.INT64)
    by_tree = add_node(scope, container, "Gather", [add_constant(scope, container, np.vstack(values)), indexes], axis=0)
    axis = add_constant(scope, container, np.array([1], dtype=np.int64))
    return add_node(scope, container, "ReduceSum", [by_tree, axis], keepdims=0)


def round_to_float32(scope: Any, source: str, container: Any) -> str:
    """The input rounded to float32: a forest compares these values with its thresholds."""
    rounded = add_node(scope, container, "Cast", [source], to=TensorProto.FLOAT)
    return add_node(scope, container, "Cast", [rounded], to=TensorProto.DOUBLE)


def add_constant(scope: Any, container: Any, value: npt.NDArray[Any]) -> str:
    """An array as a constant of the graph: int64 stays, everything else is float64."""
    name: str = scope.get_unique_variable_name("constant")
    kind = TensorProto.INT64 if value.dtype == np.int64 else TensorProto.DOUBLE
    container.add_initializer(name, kind, list(value.shape), value.ravel().tolist())
    return name


def add_node(scope: Any, container: Any, kind: str, inputs: list[str], **attributes: Any) -> str:
    """An operator of the domain of ONNX itself, of the version that skl2onnx accepts."""
    output: str = scope.get_unique_variable_name(kind.lower())
    version = {"Cast": 19, "Gather": 13, "ReduceSum": 13, "Div": 14, "Softmax": 13, "Sigmoid": 13}
    version |= {"Sub": 14, "Mul": 14, "Neg": 13, "Concat": 13, "Add": 14, "ArgMax": 13, "IsNaN": 20}
    container.add_node(kind, inputs, output, op_version=version[kind], name=scope.get_unique_operator_name(kind), **attributes)
    return output
