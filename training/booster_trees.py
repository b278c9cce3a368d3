"""The trees of XGBoost, LightGBM and CatBoost, read from the documented JSON of each library.

NotImplementedError refuses models that do not add leaves; the format of the library serves such a model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.inference.booster_estimators import Booster, library
from training.trees import Ensemble, Link, Tree, from_nodes

LIBRARY_CLASSES: Mapping[str, tuple[str, ...]] = {
    "xgboost": ("XGBClassifier", "XGBRegressor", "XGBRFClassifier", "XGBRFRegressor"),
    "lightgbm": ("LGBMClassifier", "LGBMRegressor"),
    "catboost": ("CatBoostClassifier", "CatBoostRegressor"),
}
"""The estimators whose trees can be read, by library."""


def own_object(estimator: Any) -> Any:
    """The object of the library inside its estimator: the Booster of XGBoost and of LightGBM; CatBoost has no such object."""
    if hasattr(estimator, "get_booster"):
        return estimator.get_booster()
    return getattr(estimator, "booster_", estimator)


def read_ensemble(estimator: Any) -> Ensemble:
    """The trees of a fitted estimator of a boosting library; raises NotImplementedError for other models than sums of leaves."""
    inner = estimator.estimator_ if isinstance(estimator, Booster) else estimator
    reader = _READERS.get(library(inner))
    if reader is None:
        raise NotImplementedError(f"the trees of {type(inner).__name__}")
    return reader(inner)


# --- XGBoost

_XGBOOST_LINKS: Mapping[str, Link] = {
    "binary:logistic": "sigmoid",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "reg:squarederror": "identity",
    "reg:absoluteerror": "identity",
    "reg:pseudohubererror": "identity",
    "reg:quantileerror": "identity",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
}
_TO_MARGIN: Mapping[Link, Callable[[Any], Any]] = {
    "sigmoid": lambda base: np.log(base / (1.0 - base)),
    "softmax": lambda base: base,
    "identity": lambda base: base,
    "exp": np.log,
}
"""The functions from the base score, which is a probability or a value, to the value to which the trees add."""


def _xgboost(estimator: Any) -> Ensemble:
    booster = own_object(estimator)
    best = booster.attr("best_iteration")
    if best is not None:
        booster = booster[: int(best) + 1]
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    objective = learner["objective"]["name"]
    link = _XGBOOST_LINKS.get(objective)
    gradient = learner["gradient_booster"]
    if link is None:
        raise NotImplementedError(f"the objective {objective} of XGBoost")
    if gradient["name"] not in ("gbtree", "dart"):
        raise NotImplementedError(f"the booster {gradient['name']} of XGBoost")
    if not np.isnan(getattr(estimator, "missing", np.nan)):
        raise NotImplementedError("a missing value other than NaN")
    parameters = learner["learner_model_param"]
    outputs = max(1, int(parameters["num_class"]), int(parameters["num_target"]))
    base = np.array(json.loads(parameters["base_score"]), dtype=np.float64).reshape(-1)
    model = (gradient["gbtree"] if gradient["name"] == "dart" else gradient)["model"]
    weights = gradient.get("weight_drop", [1.0] * len(model["trees"]))
    return Ensemble(
        trees=[_xgboost_tree(tree, weight) for tree, weight in zip(model["trees"], weights, strict=True)],
        targets=model["tree_info"],
        base=np.broadcast_to(_TO_MARGIN[link](base), outputs).astype(np.float64),
        link=link,
        strict=True,
        rounded=True,
    )


def _xgboost_tree(tree: Mapping[str, Any], weight: float) -> Tree:
    if int(tree["tree_param"]["size_leaf_vector"]) > 1:
        raise NotImplementedError("leaves with several values")
    left, right = np.array(tree["left_children"], dtype=np.int64), np.array(tree["right_children"], dtype=np.int64)
    missing = np.array(tree["default_left"], dtype=np.int64)
    conditions = np.array(tree["split_conditions"], dtype=np.float32)
    categories = {}
    for node, start, size in zip(tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True):
        # The categories of a node go right, except gaps.
        categories[int(node)] = np.array(tree["categories"][start : start + size], dtype=np.float64)
        left[node], right[node], missing[node] = right[node], left[node], 1 - missing[node]
    feature = np.array(tree["split_indices"], dtype=np.int64)
    return Tree(left, right, feature, conditions.astype(np.float64), missing, conditions * np.float64(weight), categories)


# --- LightGBM

_LIGHTGBM_LINKS: Mapping[str, Link] = {
    "binary": "sigmoid",
    "cross_entropy": "sigmoid",
    "multiclass": "softmax",
    "multiclassova": "sigmoid",
    **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape"), "identity"),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), "exp"),
}
_ZERO = float(np.float32(1e-35))


def _lightgbm(estimator: Any) -> Ensemble:
    model = own_object(estimator).dump_model()
    objective, *arguments = str(model.get("objective", "none")).split()
    link = _LIGHTGBM_LINKS.get(objective)
    if link is None or "sqrt" in arguments:
        raise NotImplementedError(f"the objective {' '.join((objective, *arguments))} of LightGBM")
    outputs, trees = int(model["num_tree_per_iteration"]), model["tree_info"]
    slopes = [float(argument.partition(":")[2]) for argument in arguments if argument.startswith("sigmoid:")]
    scale = outputs / len(trees) if model.get("average_output") else 1.0
    return Ensemble(
        trees=[_lightgbm_tree(tree["tree_structure"]) for tree in trees],
        targets=[at % outputs for at in range(len(trees))],
        base=np.zeros(outputs),
        link=link,
        scale=scale * (slopes[0] if slopes else 1.0),
    )


def _lightgbm_tree(root: Mapping[str, Any]) -> Tree:
    nodes: list[dict[str, Any]] = []
    _add_lightgbm_node(root, nodes)
    return from_nodes(nodes)


def _add_lightgbm_node(source: Mapping[str, Any], nodes: list[dict[str, Any]]) -> int:
    at = len(nodes)
    nodes.append({})
    if "split_index" not in source:
        if "leaf_coeff" in source or "leaf_const" in source:
            raise NotImplementedError("leaves that are linear models")
        nodes[at] = {"value": source["leaf_value"]}
        return at
    node: dict[str, Any] = {"feature": source["split_feature"]}
    if source["decision_type"] == "==":
        node["categories"] = np.array([float(value) for value in source["threshold"].split("||")])
    else:
        node["threshold"] = _around_zero(float(source["threshold"]))
        kind = source["missing_type"]
        if kind == "Zero":
            raise NotImplementedError("zero as a missing value")
        # Without gaps in training, LightGBM reads a gap as 0.
        node["missing"] = int(source["default_left"] if kind == "NaN" else node["threshold"] >= 0.0)
    node["left"] = _add_lightgbm_node(source["left_child"], nodes)
    node["right"] = _add_lightgbm_node(source["right_child"], nodes)
    nodes[at] = node
    return at


def _around_zero(threshold: float) -> float:
    """The threshold for the original numbers, because LightGBM reads numbers up to _ZERO as 0 before it compares."""
    if 0.0 <= threshold <= _ZERO:
        return _ZERO
    return float(np.nextafter(-_ZERO, -np.inf)) if -_ZERO <= threshold < 0.0 else threshold


# --- CatBoost

_CATBOOST_LINKS: Mapping[str, Link] = {
    **dict.fromkeys(("Logloss", "CrossEntropy", "MultiClassOneVsAll"), "sigmoid"),
    "MultiClass": "softmax",
    **dict.fromkeys(("RMSE", "MAE", "Quantile", "MAPE", "Huber", "Lq", "Expectile", "LogCosh"), "identity"),
    **dict.fromkeys(("Poisson", "Tweedie"), "exp"),
}


def _catboost(estimator: Any) -> Ensemble:
    if estimator.get_cat_feature_indices():
        raise NotImplementedError("splits by category of CatBoost")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.json")
        estimator.save_model(str(path), format="json")
        model = json.loads(path.read_bytes())
    loss = str(estimator.get_all_params().get("loss_function", "")).partition(":")[0]
    link = _CATBOOST_LINKS.get(loss)
    if link is None:
        raise NotImplementedError(f"the loss {loss} of CatBoost")
    columns = {
        feature["feature_index"]: (feature["flat_feature_index"], int(feature["nan_value_treatment"] != "AsTrue"))
        for feature in model["features_info"]["float_features"]
    }
    scale, base = model["scale_and_bias"]
    if "oblivious_trees" in model:
        trees = [_oblivious_tree(tree, columns, len(base)) for tree in model["oblivious_trees"]]
    else:
        trees = [_unbalanced_tree(tree, columns) for tree in model["trees"]]
    return Ensemble(
        trees=trees,
        targets=[] if len(base) > 1 else [0] * len(trees),
        base=np.array(base, dtype=np.float64),
        link=link,
        scale=float(scale),
        rounded=True,
    )


def _oblivious_tree(tree: Mapping[str, Any], columns: Mapping[int, tuple[int, int]], outputs: int) -> Tree:
    """A tree with the same split at all nodes of one depth: the last is at the root, the first gives the leaf's lowest bit."""
    splits = list(reversed(tree["splits"] or []))
    values = np.array(tree["leaf_values"], dtype=np.float64).reshape(-1, outputs)
    nodes: list[dict[str, Any]] = []
    for depth, split in enumerate(splits):
        first = 2 ** (depth + 1) - 1
        node = {**_catboost_split(split, columns), "value": np.zeros(outputs) if outputs > 1 else 0.0}
        nodes += [{**node, "left": first + 2 * at, "right": first + 2 * at + 1} for at in range(2**depth)]
    return from_nodes([*nodes, *({"value": row if outputs > 1 else row[0]} for row in values)])


def _unbalanced_tree(root: Mapping[str, Any], columns: Mapping[int, tuple[int, int]]) -> Tree:
    nodes: list[dict[str, Any]] = []

    def add(source: Mapping[str, Any]) -> int:
        at = len(nodes)
        nodes.append({})
        if "split" in source:
            nodes[at] = {**_catboost_split(source["split"], columns), "left": add(source["left"]), "right": add(source["right"])}
        else:
            nodes[at] = {"value": source["value"]}
        return at

    add(root)
    width = max(np.size(node.get("value", 0.0)) for node in nodes)
    if width > 1:
        nodes = [{**node, "value": node.get("value", np.zeros(width))} for node in nodes]
    return from_nodes(nodes)


def _catboost_split(split: Mapping[str, Any], columns: Mapping[int, tuple[int, int]]) -> dict[str, Any]:
    if split["split_type"] != "FloatFeature":
        raise NotImplementedError("splits by category of CatBoost")
    column, missing = columns[split["float_feature_index"]]
    return {"feature": column, "threshold": float(np.float32(split["border"])), "missing": missing}


_READERS: Mapping[str, Callable[[Any], Ensemble]] = {"xgboost": _xgboost, "lightgbm": _lightgbm, "catboost": _catboost}
