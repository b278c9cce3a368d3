"""Checks of a model in the format of XGBoost or LightGBM, before the library reads it.

The libraries use the positions of children, features and categories from the file without range checks. A wrong position makes them
read outside their memory or run forever. This module checks every position, and refuses every form that the library does not write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.manifest_bounds import MAX_CATEGORIES, MAX_CLASSES
from serve_app.artifacts.names import CATBOOST, LIGHTGBM, XGBOOST
from serve_app.errors import BundleRefused

MAX_DEPTH = 16
"""Maximum depth of nested objects in a file of XGBoost; a model needs seven."""

_CATBOOST_MAGIC = b"CBM1"

Integers = npt.NDArray[np.int64]


class InvalidModel(ValueError):
    """The bytes are not a model in the form that the library writes."""


def check_native(file: str, data: bytes) -> None:
    """Raise BundleRefused `load` for bytes that the library of this file must not read.

    CatBoost verifies the layout of its files itself, so this function checks only the length. CatBoost does not verify every
    number: a malicious file may crash the process that reads it. A replica therefore first tries each model in another process.
    """
    try:
        if file == XGBOOST:
            _check_xgboost(data)
        elif file == LIGHTGBM:
            _check_lightgbm(data)
        elif file == CATBOOST:
            _need(data[:4] == _CATBOOST_MAGIC and int.from_bytes(data[4:8], "little") <= len(data) - 8, "cut off")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        reason = str(error) if isinstance(error, InvalidModel) else type(error).__name__
        raise BundleRefused("load", f"{file} cannot be read ({reason})") from None


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise InvalidModel(what)


def _check_tree(left: Integers, right: Integers, nodes: int) -> None:
    """Raise InvalidModel unless no child is the root and no node has two parents, so every path from the root ends."""
    children = np.concatenate([left, right])
    _need(bool(((children > 0) & (children < nodes)).all()), "a child that does not exist")
    _need(len(np.unique(children)) == len(children), "a node with two parents")


# --- XGBoost: Universal Binary JSON


def _check_xgboost(data: bytes) -> None:
    document = UbjReader(data).document()
    learner = document["learner"]
    parameters = learner["learner_model_param"]
    features = int(parameters["num_feature"])
    outputs = max(1, int(parameters["num_class"]), int(parameters["num_target"]))
    _need(features > 0 and outputs <= MAX_CLASSES, "numbers of features or classes")
    for name in ("feature_names", "feature_types"):
        _need(len(learner.get(name, ())) in (0, features), f"as many {name} as features")
    booster = learner["gradient_booster"]
    if booster["name"] == "gblinear":
        _need(len(booster["model"]["weights"]) == (features + 1) * outputs, "weights of a linear model")
        return
    _need(booster["name"] in ("gbtree", "dart"), "an unknown kind of booster")
    model = booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]
    trees = model["trees"]
    count = int(model["gbtree_model_param"]["num_trees"])
    groups, rounds = np.asarray(model["tree_info"]), np.asarray(model.get("iteration_indptr", [0, count]))
    _need(count == len(trees) == len(groups), "a number of trees")
    _need(bool(((groups >= 0) & (groups < outputs)).all()), "a tree of a class that does not exist")
    _need(len(rounds) > 0 and rounds[0] == 0 and rounds[-1] == count and bool((np.diff(rounds) >= 0).all()), "rounds of trees")
    if booster["name"] == "dart":
        _need(len(booster["weight_drop"]) == count, "weights of trees")
    for tree in trees:
        _check_xgboost_tree(tree, features)


_BY_NODE = ("left_children", "right_children", "parents", "split_indices", "split_conditions", "split_type", "default_left")
_NO_PARENT = 2**31 - 1
_BY_NODE_TOO = ("loss_changes", "sum_hessian", "base_weights")


def _check_xgboost_tree(tree: Mapping[str, Any], features: int) -> None:
    nodes = int(tree["tree_param"]["num_nodes"])
    _need(int(tree["tree_param"]["size_leaf_vector"]) <= 1, "leaves with several values")
    _need(int(tree["tree_param"]["num_feature"]) == features, "a tree of other features")
    _need(nodes > 0 and all(len(tree[name]) == nodes for name in (*_BY_NODE, *_BY_NODE_TOO)), "nodes of a tree")
    left, right, feature, kinds = (
        np.asarray(tree[name]) for name in ("left_children", "right_children", "split_indices", "split_type")
    )
    inner = left != -1
    _need(bool((right[~inner] == -1).all()), "a leaf with a child")
    _check_tree(left[inner], right[inner], nodes)
    parents = np.asarray(tree["parents"])
    above = np.flatnonzero(inner)
    _need(parents[0] == _NO_PARENT and np.array_equal(parents[left[inner]], above), "a node with another parent")
    _need(np.array_equal(parents[right[inner]], above), "a node with another parent")
    _need(bool(((feature[inner] >= 0) & (feature[inner] < features)).all()), "a split of a feature that does not exist")
    owners, starts, sizes = (np.asarray(tree[f"categories_{name}"]) for name in ("nodes", "segments", "sizes"))
    values = np.asarray(tree["categories"])
    _need(len(owners) == len(starts) == len(sizes), "categories of nodes")
    _need(bool((np.diff(owners) > 0).all()) and np.array_equal(owners, np.flatnonzero(inner & (kinds == 1))), "nodes of categories")
    _need(bool((np.isin(kinds, (0, 1))).all()), "an unknown kind of split")
    ends = starts + sizes
    _need(bool(((starts >= 0) & (sizes > 0) & (ends <= len(values))).all()), "a list of categories")
    _need(bool(((values >= 0) & (values < MAX_CATEGORIES)).all()), f"a category beyond {MAX_CATEGORIES}")


_TYPES = {b"d": ">f4", b"D": ">f8", b"i": "i1", b"U": "u1", b"I": ">i2", b"l": ">i4", b"L": ">i8"}


class UbjReader:
    """Reads Universal Binary JSON in the form that XGBoost writes: 64-bit lengths, and arrays with a number of values."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def document(self) -> dict[str, Any]:
        """The only object of the file; raises InvalidModel for other bytes."""
        value = self._value(0)
        _need(isinstance(value, dict) and self._at == len(self._data), "bytes after the model")
        document: dict[str, Any] = value
        return document

    def _take(self, size: int) -> bytes:
        _need(0 <= size <= len(self._data) - self._at, "cut off")
        self._at += size
        return self._data[self._at - size : self._at]

    def _numbers(self, kind: bytes, count: int) -> Any:
        _need(kind in _TYPES, "an unknown type of numbers")
        dtype = np.dtype(_TYPES[kind])
        return np.frombuffer(self._take(count * dtype.itemsize), dtype).astype(np.float64 if kind in b"dD" else np.int64)

    def _length(self) -> int:
        _need(self._take(1) == b"L", "a length that is not a 64-bit number")
        length = int(self._numbers(b"L", 1)[0])
        _need(0 <= length <= len(self._data), "cut off")
        return length

    def _text(self) -> str:
        return self._take(self._length()).decode()

    def _value(self, depth: int) -> Any:
        _need(depth < MAX_DEPTH, "objects that are nested too deeply")
        kind = self._take(1)
        if kind == b"{":
            return self._object(depth)
        if kind == b"[":
            return self._array(depth)
        if kind == b"S":
            return self._text()
        if kind in (b"T", b"F", b"Z"):
            return {b"T": True, b"F": False, b"Z": None}[kind]
        return self._numbers(kind, 1)[0].item()

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._data[self._at : self._at + 1] != b"}":
            name = self._text()
            _need(name not in found, "a repeated key")
            found[name] = self._value(depth + 1)
        self._take(1)
        return found

    def _array(self, depth: int) -> Any:
        kind = self._take(1)
        if kind == b"$":
            kind = self._take(1)
            _need(self._take(1) == b"#", "an array without its number of values")
            return self._numbers(kind, self._length())
        _need(kind == b"#", "an array without its number of values")
        return [self._value(depth + 1) for _ in range(self._length())]


# --- LightGBM: lines of text

END_OF_TREES = "end of trees\n"
"""The end of a model of LightGBM in a bundle; the library also writes the parameters of the training after it."""

_BY_INNER = ("split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child")
_BY_INNER_TOO = ("internal_value", "internal_weight", "internal_count")
_BY_LEAF = ("leaf_value", "leaf_weight", "leaf_count", "leaf_const", "num_features")
_SINGLE = ("num_leaves", "num_cat", "is_linear", "shrinkage")
_LISTS = ("cat_boundaries", "cat_threshold", "leaf_features", "leaf_coeff")
_NUMBERS = re.compile(r" *(?:-?(?:[0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?|inf|nan)(?: +|\Z))*")
_HEAD = re.compile(r"tree\n(?:[a-z_]+(?:=[^\x00-\x1f]*)?\n)*[a-z_]+(?:=[^\x00-\x1f]*)?")


def _check_lightgbm(data: bytes) -> None:
    raw, separator, blocks = data.partition(b"\n\n")
    head = raw.decode()
    _need(bool(separator) and _HEAD.fullmatch(head) is not None, "no header of a model")
    fields = _fields(head.split("\n"))
    classes, per_round = int(fields["num_class"]), int(fields["num_tree_per_iteration"])
    features = int(fields["max_feature_idx"]) + 1
    _need(1 <= classes <= MAX_CLASSES and per_round in (1, classes), "numbers of classes")
    for name in ("feature_names", "feature_infos"):
        _need(features > 0 and len(fields[name].split(" ")) == features, f"as many {name} as features")
    _need(_NUMBERS.fullmatch(fields["tree_sizes"]) is not None, "sizes of trees")
    sizes = _integers(fields["tree_sizes"])
    _need(bool((sizes > 0).all()) and bool((sizes <= len(blocks)).all()) and len(sizes) % per_round == 0, "sizes of trees")
    at = 0
    for number, size in enumerate(sizes.tolist()):
        lines = blocks[at : at + size].decode("ascii").split("\n")
        _need(lines[0] == f"Tree={number}", "a tree in the wrong place")
        _check_lightgbm_tree(_fields(lines[1:]), features)
        at += size
    _need(blocks[at:] == END_OF_TREES.encode(), "data after the last tree")


def _check_lightgbm_tree(fields: Mapping[str, str], features: int) -> None:
    for name, text in fields.items():
        _need(name in _KNOWN or not (name or text), "an unknown line")
        _need(_NUMBERS.fullmatch(text) is not None, "a value that is not a number")
    _need(all(len(fields[name].split()) == 1 for name in _SINGLE if name in fields), "two numbers in place of one")
    leaves, categories = int(fields["num_leaves"]), int(fields["num_cat"])
    _need(leaves >= 1 and categories >= 0, "numbers of leaves")
    for names, count in (((*_BY_INNER, *_BY_INNER_TOO), leaves - 1), (_BY_LEAF, leaves)):
        columns = [fields[name].split() for name in names if name in fields]
        # A tree of one leaf has an empty list or a single number instead of one number for each node.
        _need(all(len(column) == count or (leaves == 1 and len(column) <= 1) for column in columns), "nodes of a tree")
    _need(len(fields["leaf_value"].split()) == leaves, "values of leaves")
    if fields.get("is_linear", "0") != "0":
        _check_linear(fields, leaves, features)
    if leaves == 1:
        return
    left, right, feature = (_integers(fields[name]) for name in ("left_child", "right_child", "split_feature"))
    kinds, thresholds = _integers(fields["decision_type"]), np.array(fields["threshold"].split(), dtype=np.float64)
    inner = leaves - 1
    _need(bool((np.concatenate([left, right]) >= -leaves).all() and (np.concatenate([left, right]) < inner).all()), "a wrong child")
    # A negative number is a leaf: -1 is the first leaf.
    _check_tree(np.where(left < 0, inner - 1 - left, left), np.where(right < 0, inner - 1 - right, right), inner + leaves)
    _need(bool(((feature >= 0) & (feature < features)).all()), "a split of a feature that does not exist")
    _need(bool(((kinds >= 0) & (kinds < 16)).all()), "an unknown kind of split")
    chosen = thresholds[(kinds & 1) == 1]
    _need(bool(((chosen >= 0) & (chosen < categories) & (chosen % 1 == 0)).all()), "a list of categories")
    if categories:
        bounds, words = _integers(fields["cat_boundaries"]), _integers(fields["cat_threshold"])
        _need(len(bounds) == categories + 1 and bounds[0] == 0 and bool((np.diff(bounds) > 0).all()), "lists of categories")
        _need(bounds[-1] == len(words) and bool(((words >= 0) & (words < 2**32)).all()), "lists of categories")
        _need(int(np.diff(bounds).max()) * 32 <= MAX_CATEGORIES + 32, f"a category beyond {MAX_CATEGORIES}")


_KNOWN = frozenset((*_BY_INNER, *_BY_INNER_TOO, *_BY_LEAF, *_SINGLE, *_LISTS))


def _check_linear(fields: Mapping[str, str], leaves: int, features: int) -> None:
    counts, columns = _integers(fields["num_features"]), _integers(fields["leaf_features"])
    _need(len(counts) == len(fields["leaf_const"].split()) == leaves and bool((counts >= 0).all()), "linear leaves")
    _need(int(counts.sum()) == len(columns) == len(fields["leaf_coeff"].split()), "linear leaves")
    _need(bool(((columns >= 0) & (columns < features)).all()), "a leaf of a feature that does not exist")


def _fields(lines: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition("=")
        _need(name not in found or not separator, "a repeated key")
        found[name] = value
    return found


def _integers(text: str) -> Integers:
    return np.array(text.split(), dtype=np.int64)
