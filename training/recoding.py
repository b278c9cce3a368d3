"""Rewrites a fitted model for tables to take the coded matrix of decoded requests.

The columns of the matrix are those that the model reads, in the order of the signature. Names of columns become positions, and
texts in encoders and imputers become the codes of the signature. A gap that is a category of an encoder gets a separate code,
because ONNX has no category NaN. The given model does not change. This module does not check the result; `proof` does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline

from serve_app.artifacts.signature import Feature, Signature
from training.boosters import is_booster, on_codes
from training.coded_booster import CodedBooster
from training.model_columns import ModelColumns, Names, is_part, parts, positions_of


class NotRecodable(Exception):
    """A part of the model cannot take codes; the message names the part and the reason."""


def recode(model: Any, columns: ModelColumns, signature: Signature) -> Any:
    """The model for the coded matrix, shape (rows, features of the signature). Raises NotRecodable."""
    if isinstance(model, CodedBooster):
        return on_codes(model.native.estimator, signature)
    model = bare(copy.deepcopy(model))
    if is_booster(model):
        return on_codes(model, signature)
    features = {feature.name: feature for feature in signature.features}
    found = list(parts(model, columns.fitted))
    gaps: dict[int, float] = {}
    for part, names in found:
        if isinstance(part, ColumnTransformer) and hasattr(part, "transformers_"):
            _use_positions(part, columns)
        if hasattr(part, "categories_") and names is not None:
            code = _code_categories(part, names, features)
            if code is not None:
                gaps[id(part)] = code
        if isinstance(part, SimpleImputer) and hasattr(part, "statistics_"):
            _code_statistics(part, names, features)
    _fill_gaps([part for part, _ in found], gaps)
    for part, names in found:
        _forget_names(part, names, columns)
    return model


def bare(model: Any, *, keep_output: bool = False) -> Any:
    """The model without wrappers that only fit, freeze or search, also inside; with one thread, no printed lines, no cache.

    With `keep_output`, steps that return tables still return tables.
    """
    model = _unwrapped(model)
    for part, _ in parts(model, None):
        if not is_part(part):
            continue
        for name, value in list(vars(part).items()):
            vars(part)[name] = _unwrapped_inside(value)
        attributes = vars(part)
        if "n_jobs" in attributes:
            attributes["n_jobs"] = 1
        if isinstance(attributes.get("verbose"), bool | int):
            attributes["verbose"] = 0
        if isinstance(part, Pipeline):
            part.memory = None
        if not keep_output:
            attributes.pop("_sklearn_output_config", None)
    return model


def _unwrapped(model: Any) -> Any:
    for _ in range(10):
        kind = type(model).__name__
        if hasattr(model, "best_estimator_") and kind.endswith("SearchCV"):
            model = model.best_estimator_
        elif kind == "FrozenEstimator":
            model = model.estimator
        else:
            break
    return model


def _unwrapped_inside(value: Any) -> Any:
    if isinstance(value, list):
        return [_unwrapped_inside(item) for item in value]
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_unwrapped_inside(item) for item in value)
    return _unwrapped(value) if isinstance(value, BaseEstimator) else value


def _use_positions(part: ColumnTransformer, columns: ModelColumns) -> None:
    """Let a ColumnTransformer select by position. A transformer of the whole table gets the positions of the used columns."""
    own = [str(name) for name in getattr(part, "feature_names_in_", columns.fitted)]
    whole = own == columns.fitted
    target = columns.used if whole else own

    def positions(selected: Any) -> Any:
        at = [target.index(name) for name in (own[each] for each in positions_of(selected, own)) if name in target]
        return at[0] if np.isscalar(selected) and at else at

    part.transformers_ = [
        (name, step, positions(selected) if step != "drop" else []) for name, step, selected in part.transformers_
    ]
    part._columns = [positions(selected) for selected in part._columns]  # noqa: SLF001
    part.transformers = [(each[0], each[1], selected) for each, selected in zip(part.transformers, part._columns, strict=True)]  # noqa: SLF001
    remainder = part._remainder  # noqa: SLF001
    if remainder[2] is not None and len(remainder[2]):
        part._remainder = (remainder[0], remainder[1], positions(remainder[2]))  # noqa: SLF001
    part._transformer_to_input_indices = {  # noqa: SLF001
        name: selected if isinstance(selected, list) else [selected] for name, _, selected in part.transformers_
    }


def _code_categories(part: Any, names: Sequence[str], features: Mapping[str, Feature]) -> float | None:
    """Put codes into `categories_` of an encoder; returns the code of a gap if a gap is a category."""
    gap = None
    for at, (name, categories) in enumerate(zip(names, part.categories_, strict=False)):
        feature = features.get(name)
        if feature is None:
            continue
        codes = np.array([_code(value, feature) for value in categories], dtype=np.float64)
        known = codes[~np.isnan(codes)]
        if np.any(np.diff(known) <= 0):
            raise NotRecodable(f"{type(part).__name__} has the categories of '{name}' in another order than another step")
        part.categories_[at] = codes
        if np.isnan(codes).any():
            gap = max(gap or 0.0, float(len(feature.categories)), float(known.max(initial=0.0)) + 1.0)
    return gap


def _code(value: Any, feature: Feature) -> float:
    if is_gap(value):
        return math.nan
    if feature.kind == "category":
        try:
            return float(feature.categories.index(str(value)))
        except ValueError:
            raise NotRecodable(f"'{value}' is not a category of '{feature.name}' in the signature") from None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise NotRecodable(f"'{feature.name}' is a {feature.kind}, but a step has texts like '{value}' for it") from None


def is_gap(value: Any) -> bool:
    """Whether a category is a missing value."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType")


def _code_statistics(part: SimpleImputer, names: Names, features: Mapping[str, Feature]) -> None:
    """Put codes into the fill values of an imputer; an imputer of numbers or of free texts does not change."""
    if part.statistics_.dtype.kind not in "OUS":
        return
    if names is None:
        raise NotRecodable("an imputer of texts takes columns whose names are not known")
    known = [features.get(name) for name in names]
    if all(feature is not None and feature.kind == "text" for feature in known):
        return  # texts stay texts in the matrix
    codes = [
        math.nan if is_gap(value) or feature is None else _code(value, feature)
        for value, feature in zip(part.statistics_, known, strict=True)
    ]
    part.statistics_ = np.array(codes, dtype=np.float64)
    part.missing_values = np.nan
    for name in ("_fill_dtype", "_fit_dtype"):
        if hasattr(part, name):
            setattr(part, name, np.dtype(np.float64))
    if part.strategy == "constant":
        part.fill_value = codes[0] if codes else None
    else:
        part.strategy = "most_frequent"


def _fill_gaps(found: Sequence[Any], gaps: Mapping[int, float]) -> None:
    """Replace a gap with its code before each encoder that has a gap as category, wherever the encoder is a step."""
    if not gaps:
        return

    def filled(step: Any) -> Any:
        if id(step) not in gaps or type(step).__name__ != "OneHotEncoder":
            return step
        code = gaps[id(step)]
        width = len(step.categories_)
        step.categories_ = [np.where(np.isnan(codes), code, codes) for codes in step.categories_]
        imputer = SimpleImputer(strategy="constant", fill_value=code, keep_empty_features=True).fit(np.zeros((1, width)))
        return Pipeline([("gaps", imputer), ("codes", step)])

    for part in found:
        if isinstance(part, Pipeline):
            part.steps = [(name, filled(step)) for name, step in part.steps]
        elif isinstance(part, ColumnTransformer) and hasattr(part, "transformers_"):
            part.transformers_ = [(name, filled(step), selected) for name, step, selected in part.transformers_]


def _forget_names(part: Any, names: Names, columns: ModelColumns) -> None:
    attributes = vars(part)
    attributes.pop("feature_names_in_", None)
    if names == columns.fitted and attributes.get("n_features_in_") == len(columns.fitted):
        attributes["n_features_in_"] = len(columns.used)
