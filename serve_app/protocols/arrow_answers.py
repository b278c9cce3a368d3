"""The answers to many rows as columns of Arrow. The numbers are equal to the numbers in the JSON answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from serve_app.artifacts.decision import interval, outliers, predicted_positions, prediction_sets, single_value
from serve_app.artifacts.matrix import Scores
from serve_app.artifacts.signature import Signature, label_text
from serve_app.protocols.encode import as_printed


def answer_types(signature: Signature) -> list[tuple[str, pa.DataType]]:
    """The columns of an answer with their types, one column for each number:

    - classification: `prediction`, `confidence`, `probability_CLASS`; with a coverage `in_set_CLASS`
    - regression: `prediction`; with a coverage `interval_low` and `interval_high`; `quantile_LEVEL`
    - outlier detection: `outlier`, `score`
    - clustering: `cluster`, and `distance` or `probability_CLUSTER`
    - several targets: these columns for each target, with `_TARGET` after the first word of the name
    """
    if signature.outputs:
        return [(_of_target(name, part), kind) for _, part in signature.parts for name, kind in answer_types(part)]
    numbers: list[str] = []
    if signature.task == "outlier detection":
        return [("outlier", pa.bool_()), ("score", pa.float64())]
    if signature.task == "clustering":
        numbers = ["distance"] if signature.distance else []
    elif signature.task == "classification":
        numbers = ["confidence"]
    elif signature.quantiles:
        numbers = [f"quantile_{label_text(level)}" for level in signature.quantiles]
    if signature.classes and signature.probabilistic:
        numbers += [f"probability_{name}" for name in signature.class_names]
    first = [("cluster" if signature.task == "clustering" else "prediction", _label_type(signature))]
    types = [*(first if single_value(signature) is not None else []), *((name, pa.float64()) for name in numbers)]
    if signature.coverage is not None and signature.task == "regression":
        types += [("interval_low", pa.float64()), ("interval_high", pa.float64())]
    elif signature.coverage is not None:
        types += [(f"in_set_{name}", pa.bool_()) for name in signature.class_names]
    return types


def prediction_columns(scores: Scores, signature: Signature) -> dict[str, Any]:
    """The predicted columns by name: those of `answer_types`, except columns that the model cannot compute."""
    if signature.outputs:
        return {
            _of_target(name, part): column
            for at, part in signature.parts
            for name, column in prediction_columns(scores[:, at], part).items()
        }
    if signature.task == "outlier detection":
        return {"outlier": pa.array(outliers(scores)), "score": pa.array(as_printed(scores))}
    if signature.task == "regression":
        return _value_columns(scores, signature)
    kind = _label_type(signature)
    labels = pa.array([label_text(label) if kind == pa.string() else label for label in signature.classes], kind)
    best = predicted_positions(scores, signature)
    predicted = labels.take(pa.array(best))
    if signature.task == "clustering":
        numbers = as_printed(scores[:, 1:])
        if not signature.probabilistic:
            return {"cluster": predicted, **({"distance": pa.array(numbers[:, 0])} if signature.distance else {})}
        return {"cluster": predicted, **_probability_columns(numbers, signature)}
    if not signature.probabilistic:
        return {"prediction": predicted}
    printed = as_printed(scores)
    columns = {
        "prediction": predicted,
        "confidence": pa.array(printed[np.arange(len(best)), best]),
        **_probability_columns(printed, signature),
    }
    if signature.coverage is not None:
        members = prediction_sets(scores, signature, signature.coverage)
        columns |= {f"in_set_{name}": pa.array(members[:, at]) for at, name in enumerate(signature.class_names)}
    return columns


def _of_target(name: str, part: Signature) -> str:
    """`probability_yes` of the target `a` is `probability_a_yes`."""
    first, separator, rest = name.partition("_")
    return f"{first}_{part.target}{separator}{rest}"


def _value_columns(scores: Scores, signature: Signature) -> dict[str, Any]:
    printed = as_printed(scores).reshape(len(scores), -1)
    position = single_value(signature)
    columns = {} if position is None else {"prediction": pa.array(printed[:, position])}
    columns |= {f"quantile_{label_text(level)}": pa.array(printed[:, at]) for at, level in enumerate(signature.quantiles)}
    if signature.coverage is not None:
        ends = zip(("interval_low", "interval_high"), interval(scores, signature.coverage), strict=True)
        columns |= {name: pa.array(as_printed(values)) for name, values in ends}
    return columns


def _probability_columns(printed: Any, signature: Signature) -> dict[str, Any]:
    return {f"probability_{name}": pa.array(printed[:, at]) for at, name in enumerate(signature.class_names)}


def _label_type(signature: Signature) -> pa.DataType:
    if signature.task == "regression":
        return pa.float64()
    kinds = {type(label) for label in signature.classes}
    return (
        {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(kinds.pop(), pa.string()) if len(kinds) == 1 else pa.string()
    )
