"""Decision trees as arrays, the common input of ONNX graphs for trees of all libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Link = Literal["identity", "exp", "sigmoid", "softmax"]
"""The function from the sum of the leaves to a value or to probabilities; `sigmoid` of one output gives those of two classes."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One binary tree as arrays by node, its root at 0.

    `left` is -1 at a leaf. A row goes left when its value is at most the threshold, or below it if the ensemble is strict; at a
    node with `categories`, when its value is one of them. `missing` is 1 if a gap goes left. Only the `value` of leaves counts,
    shape (nodes,) or (nodes, outputs).
    """

    left: npt.NDArray[Any]
    right: npt.NDArray[Any]
    feature: npt.NDArray[Any]
    threshold: npt.NDArray[Any]
    missing: npt.NDArray[Any]
    value: npt.NDArray[Any]
    categories: Mapping[int, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Trees whose leaves are added: `link(base + scale * sum)`.

    `targets` is the output that each tree adds to; trees with values of shape (nodes, outputs) add to all of them, and `targets` is
    empty. With `strict`, a row goes left below a threshold; with `rounded`, values are rounded to float32 first.
    """

    trees: Sequence[Tree]
    targets: Sequence[int]
    base: npt.NDArray[np.float64]
    link: Link
    scale: float = 1.0
    strict: bool = False
    rounded: bool = False

    def thresholds(self) -> dict[int, npt.NDArray[np.float64]]:
        """The thresholds of each column with numeric splits, ascending."""
        found: dict[int, list[npt.NDArray[np.float64]]] = {}
        for tree in self.trees:
            compared = np.flatnonzero(tree.left != -1)
            compared = compared[~np.isin(compared, list(tree.categories))]
            columns = tree.feature[compared]
            for column in np.unique(columns).tolist():
                found.setdefault(int(column), []).append(np.asarray(tree.threshold[compared[columns == column]], dtype=np.float64))
        return {column: np.unique(np.concatenate(values)) for column, values in found.items()}


def from_nodes(nodes: Sequence[Mapping[str, Any]]) -> Tree:
    """A tree from dictionaries with the fields of `Tree` for each node; missing fields get the values of a leaf."""

    def column(name: str, default: float, kind: type) -> npt.NDArray[Any]:
        return np.array([node.get(name, default) for node in nodes], dtype=kind)

    return Tree(
        left=column("left", -1, np.int64),
        right=column("right", -1, np.int64),
        feature=column("feature", 0, np.int64),
        threshold=column("threshold", 0.0, np.float64),
        missing=column("missing", 0, np.int64),
        value=np.array([node.get("value", 0.0) for node in nodes], dtype=np.float64),
        categories={at: np.asarray(node["categories"]) for at, node in enumerate(nodes) if "categories" in node},
    )
