"""Forests, boosted trees of four libraries and filled gaps as ONNX graphs that compute in float64, as scikit-learn does.

The converters of skl2onnx write the weights of trees as float32: 0.97 becomes 0.96999997, and a tie between two classes may be
broken the other way. The operator TreeEnsemble (ai.onnx.ml 5) holds float64. Its leaves add to one output only. So the graph of a
forest of classes computes the leaf that each tree ends in, looks up the probabilities of these leaves, and adds them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer

from serve_app.inference.booster_estimators import BoosterClassifier, BoosterRegressor
from training.booster_trees import LIBRARY_CLASSES, read_ensemble
from training.onnx_nodes import DOMAIN, add_constant, add_node, add_trees, add_trees_of_outputs, as_tree, round_to_float32
from training.trees import Ensemble, Tree

OPSET = {"": 21, DOMAIN: 3}
"""The versions that skl2onnx writes; `raise_opset` then declares the version of TreeEnsemble, which skl2onnx does not know yet."""


def raise_opset(model: Any) -> None:
    """Declare ai.onnx.ml 5, in place, if the graph has a TreeEnsemble; its other operators are the same in both versions."""
    if any(node.op_type == "TreeEnsemble" for node in model.graph.node):
        for entry in model.opset_import:
            if entry.domain == DOMAIN:
                entry.version = 5


def converters() -> Mapping[type, Callable[..., None]]:
    """The conversion by estimator class, for `skl2onnx.convert_sklearn(custom_conversion_functions=...)`."""
    return {
        RandomForestClassifier: _forest_classifier,
        ExtraTreesClassifier: _forest_classifier,
        RandomForestRegressor: _forest_regressor,
        ExtraTreesRegressor: _forest_regressor,
        HistGradientBoostingClassifier: _boosted_classifier,
        HistGradientBoostingRegressor: _boosted_regressor,
        SimpleImputer: _imputer,
    }


def shapes() -> Mapping[type, Callable[..., None]]:
    """The shape of the output by estimator class, for `skl2onnx.convert_sklearn(custom_shape_calculators=...)`."""
    classifiers = (RandomForestClassifier, ExtraTreesClassifier, HistGradientBoostingClassifier)
    regressors = (RandomForestRegressor, ExtraTreesRegressor, HistGradientBoostingRegressor)
    return {
        **dict.fromkeys(classifiers, _classifier_shape),
        **dict.fromkeys(regressors, _regressor_shape),
        SimpleImputer: _imputer_shape,
    }


def register_boosters() -> None:
    """Register the conversion of boosters with skl2onnx, also for boosters inside a model.

    Libraries that this process has not imported are skipped, because no model can contain their classes.
    """
    from skl2onnx import update_registered_converter

    kinds: list[tuple[type, bool]] = [(BoosterClassifier, True), (BoosterRegressor, False)]
    for library, names in LIBRARY_CLASSES.items():
        if library in sys.modules:
            kinds += [(getattr(sys.modules[library], name), name.endswith("Classifier")) for name in names]
    for kind, classifies in kinds:
        if classifies:
            options: dict[str, list[Any]] = {"zipmap": [True, False, "columns"], "output_class_labels": [False, True]}
            options["nocl"] = [True, False]
            if hasattr(kind, "decision_function"):  # where there is one, a calibration learns from it
                options["raw_scores"] = [True, False]
            update_registered_converter(
                kind,
                f"IrisApi{kind.__name__}",
                _classifier_shape,
                _booster_classifier,
                parser=_parse_booster_classifier,
                options=options,
            )
        else:
            update_registered_converter(kind, f"IrisApi{kind.__name__}", _regressor_shape, _booster_regressor)


def _forest_classifier(scope: Any, operator: Any, container: Any) -> None:
    forest = operator.raw_operator
    if forest.n_outputs_ != 1:
        raise NotImplementedError("several outputs")
    trees = [as_tree(member.tree_, member.tree_.value[:, 0, :]) for member in forest.estimators_]
    rounded = round_to_float32(scope, operator.inputs[0].full_name, container)
    total = add_trees_of_outputs(scope, container, rounded, trees)
    count = add_constant(scope, container, np.array([len(trees)], dtype=np.float64))
    _classes(scope, operator, container, add_node(scope, container, "Div", [total, count]))


def _forest_regressor(scope: Any, operator: Any, container: Any) -> None:
    forest = operator.raw_operator
    if forest.n_outputs_ != 1:
        raise NotImplementedError("several outputs")
    trees = [as_tree(member.tree_, member.tree_.value[:, 0, 0]) for member in forest.estimators_]
    rounded = round_to_float32(scope, operator.inputs[0].full_name, container)
    total = add_trees(scope, container, rounded, trees, [0] * len(trees))
    count = add_constant(scope, container, np.array([len(trees)], dtype=np.float64))
    container.add_node("Div", [total, count], operator.outputs[0].full_name, op_version=14)


def _boosted_classifier(scope: Any, operator: Any, container: Any) -> None:
    raw = _boosted(scope, operator, container)
    if operator.raw_operator.n_trees_per_iteration_ > 1:
        _classes(scope, operator, container, add_node(scope, container, "Softmax", [raw], axis=1))
        return
    positive = add_node(scope, container, "Sigmoid", [raw])
    negative = add_node(scope, container, "Sub", [add_constant(scope, container, np.array([1.0])), positive])
    _classes(scope, operator, container, add_node(scope, container, "Concat", [negative, positive], axis=1))


def _boosted_regressor(scope: Any, operator: Any, container: Any) -> None:
    if operator.raw_operator.loss not in ("squared_error", "absolute_error", "quantile"):
        raise NotImplementedError("a loss with a link function")
    raw = _boosted(scope, operator, container)
    container.add_node("Identity", [raw], operator.outputs[0].full_name, op_version=19)


def _boosted(scope: Any, operator: Any, container: Any) -> str:
    model = operator.raw_operator
    if getattr(model, "is_categorical_", None) is not None:
        raise NotImplementedError("splits by category")
    trees, targets = [], []
    for iteration in model._predictors:  # noqa: SLF001
        for target, predictor in enumerate(iteration):
            nodes = predictor.nodes
            left = np.where(nodes["is_leaf"], -1, nodes["left"].astype(np.int64))
            missing = nodes["missing_go_to_left"].astype(np.int64)
            right, feature = nodes["right"].astype(np.int64), nodes["feature_idx"].astype(np.int64)
            trees.append(Tree(left, right, feature, nodes["num_threshold"], missing, nodes["value"]))
            targets.append(target)
    total = add_trees(scope, container, operator.inputs[0].full_name, trees, targets)
    base = np.asarray(model._baseline_prediction, dtype=np.float64).reshape(1, -1)  # noqa: SLF001
    return add_node(scope, container, "Add", [total, add_constant(scope, container, base)])


def _parse_booster_classifier(scope: Any, model: Any, inputs: list[Any], custom_parsers: Any = None) -> list[Any]:
    """The outputs of a classifier, because skl2onnx does not recognize every class of the libraries as a classifier."""
    from skl2onnx._supported_operators import _get_sklearn_operator_name
    from skl2onnx.common.data_types import Int64TensorType

    operator = scope.declare_local_operator(_get_sklearn_operator_name(type(model)), model)
    operator.inputs = inputs
    operator.outputs.append(scope.declare_local_variable("label", Int64TensorType()))  # the shape function corrects the type
    operator.outputs.append(scope.declare_local_variable("probabilities", DoubleTensorType()))
    outputs: list[Any] = operator.outputs
    return outputs


def _booster_classifier(scope: Any, operator: Any, container: Any) -> None:
    ensemble = read_ensemble(operator.raw_operator)
    raw = _raw_scores(scope, operator, container, ensemble)
    options = container.get_options(operator.raw_operator, {"raw_scores": False}, fail=False) or {}
    if options.get("raw_scores"):
        if len(ensemble.base) == 1:
            negated = add_node(scope, container, "Neg", [raw])
            raw = add_node(scope, container, "Concat", [negated, raw], axis=1)
        _classes(scope, operator, container, raw)
        return
    if ensemble.link == "softmax":
        _classes(scope, operator, container, add_node(scope, container, "Softmax", [raw], axis=1))
        return
    if ensemble.link != "sigmoid":
        raise NotImplementedError(f"a classifier with the link {ensemble.link}")
    positive = add_node(scope, container, "Sigmoid", [raw])
    if len(ensemble.base) > 1:
        _classes(scope, operator, container, positive)
        return
    negative = add_node(scope, container, "Sub", [add_constant(scope, container, np.array([1.0])), positive])
    _classes(scope, operator, container, add_node(scope, container, "Concat", [negative, positive], axis=1))


def _booster_regressor(scope: Any, operator: Any, container: Any) -> None:
    ensemble = read_ensemble(operator.raw_operator)
    if len(ensemble.base) > 1 or ensemble.link not in ("identity", "exp"):
        raise NotImplementedError("a regression with several values" if len(ensemble.base) > 1 else f"the link {ensemble.link}")
    raw = _raw_scores(scope, operator, container, ensemble)
    link, version = ("Exp", 13) if ensemble.link == "exp" else ("Identity", 19)
    container.add_node(link, [raw], operator.outputs[0].full_name, op_version=version)


def _raw_scores(scope: Any, operator: Any, container: Any, ensemble: Ensemble) -> str:
    """The scores before the link function, shape (rows, outputs)."""
    source = operator.inputs[0].full_name
    if ensemble.rounded:
        source = round_to_float32(scope, source, container)
    if ensemble.targets:
        total = add_trees(scope, container, source, ensemble.trees, ensemble.targets, strict=ensemble.strict)
    else:
        total = add_trees_of_outputs(scope, container, source, ensemble.trees, strict=ensemble.strict)
    if ensemble.scale != 1.0:
        total = add_node(scope, container, "Mul", [total, add_constant(scope, container, np.array([ensemble.scale]))])
    if ensemble.base.any():
        total = add_node(scope, container, "Add", [total, add_constant(scope, container, ensemble.base.reshape(1, -1))])
    return total


def _imputer(scope: Any, operator: Any, container: Any) -> None:
    imputer = operator.raw_operator
    values = np.asarray(imputer.statistics_, dtype=np.float64)
    if imputer.add_indicator or len(values) != operator.inputs[0].type.shape[1] or np.isnan(values).any():
        raise NotImplementedError("an imputer that changes the columns")
    source = operator.inputs[0].full_name
    gaps = add_node(scope, container, "IsNaN", [source])
    fill = add_constant(scope, container, values.reshape(1, -1))
    container.add_node("Where", [gaps, fill, source], operator.outputs[0].full_name, op_version=16)


def _classes(scope: Any, operator: Any, container: Any, probabilities: str) -> None:
    """Add both outputs of a classifier, label and probabilities."""
    classes = np.asarray(operator.raw_operator.classes_)
    best = add_node(scope, container, "ArgMax", [probabilities], axis=1, keepdims=0)
    known = classes.astype(np.int64) if classes.dtype.kind in "iub" else classes.astype(object)
    name = scope.get_unique_variable_name("classes")
    if known.dtype == object:
        container.add_initializer(name, TensorProto.STRING, [len(known)], [str(label).encode() for label in known])
    else:
        container.add_initializer(name, TensorProto.INT64, [len(known)], known.tolist())
    container.add_node("Gather", [name, best], operator.outputs[0].full_name, op_version=13, axis=0)
    container.add_node("Identity", [probabilities], operator.outputs[1].full_name, op_version=19)


def _classifier_shape(operator: Any) -> None:
    from skl2onnx.common.data_types import Int64TensorType, StringTensorType

    classes = np.asarray(operator.raw_operator.classes_)
    rows = operator.inputs[0].get_first_dimension()
    operator.outputs[0].set_type(Int64TensorType([rows]) if classes.dtype.kind in "iub" else StringTensorType([rows]))
    operator.outputs[1].set_type(DoubleTensorType([rows, len(classes)]))


def _imputer_shape(operator: Any) -> None:
    operator.outputs[0].set_type(DoubleTensorType(operator.inputs[0].type.shape))


def _regressor_shape(operator: Any) -> None:
    operator.outputs[0].set_type(DoubleTensorType([operator.inputs[0].get_first_dimension(), 1]))
