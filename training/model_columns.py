"""The columns that a fitted model reads, and the categories of its encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from serve_app.errors import UsageError
from serve_app.inference.booster_estimators import library
from training.boosters import native_categories
from training.coded_booster import CodedBooster

Names = list[str] | None
"""The names of the columns of an object, in their order; None when they are not known."""

MAX_DEPTH = 40


@dataclass(frozen=True, slots=True)
class ModelColumns:
    """The columns of a fitted model.

    `fitted` are all columns of the fit, `used` those that the model reads, both in the order of the fit. `named` is False for a
    model that was fitted without names and takes arrays. `encoders` are the categories of its encoders by column, each a list with
    NaN or None for a known gap. A step takes `texts` as a list of texts; a booster takes `categorical` as categories.
    """

    fitted: list[str]
    used: list[str]
    named: bool
    encoders: dict[str, list[list[Any]]] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()
    categorical: frozenset[str] = frozenset()


def model_columns(model: Any, sample: Sequence[str]) -> ModelColumns:
    """The columns of a model; `sample` are those of the sample without the target. Raises UsageError when they do not match."""
    fitted, width = _fitted_names(model), _width(model)
    named = fitted is not None
    if fitted is None:
        if width is None and len(sample) != 1:
            raise UsageError(
                f"the model does not report how many columns it takes, and the sample has {len(sample)} besides the target: "
                "remove the columns that it does not read"
            )
        if width is not None and width != len(sample):
            raise UsageError(
                f"the model was fitted on {width} columns without names, but the sample has {len(sample)} besides the target: "
                "give the columns of the fit, in their order"
            )
        fitted = list(sample)
    used = set(_used(model, fitted, 0))
    missing = [name for name in fitted if name in used and name not in sample]
    if missing:
        lacking, others = ", ".join(map(repr, missing[:20])), ", ".join(list(sample)[:20])
        raise UsageError(f"the sample has no column {lacking}, which the model reads; its columns are: {others}")
    encoders, texts = _encoders(model, fitted)
    natives = booster_categories(model)
    for at, categories in natives.items():
        if categories is not None:
            encoders.setdefault(fitted[at], []).append(list(categories))
    categorical = frozenset(fitted[at] for at in natives)
    if not named and width is None:
        texts = frozenset(fitted)  # a vectorizer as the first step takes a list of texts
    return ModelColumns(fitted, [name for name in fitted if name in used], named, encoders, texts, categorical)


def _encoders(model: Any, fitted: list[str]) -> tuple[dict[str, list[list[Any]]], frozenset[str]]:
    """The categories of the encoders by column, and the columns that a step takes as a list of texts."""
    encoders: dict[str, list[list[Any]]] = {}
    texts: set[str] = set()
    for part, names in parts(model, fitted):
        for name, categories in zip(names or (), getattr(part, "categories_", ()), strict=False):
            encoders.setdefault(name, []).append(list(categories))
        if isinstance(part, ColumnTransformer) and hasattr(part, "transformers_") and names is not None:
            single = [columns for _, step, columns in part.transformers_ if step != "drop" and np.isscalar(columns)]
            texts |= {_names_of(columns, names)[0] for columns in single}
    return encoders, frozenset(texts)


def read_columns(model: Any) -> frozenset[str]:
    """The columns that a model reads, if it knows their names; empty for an object that is not a model."""
    names = None if isinstance(model, type) else _fitted_names(model)
    try:
        return frozenset() if names is None else frozenset(_used(model, names, 0))
    except Exception:  # any: the attributes of a class of somebody else
        return frozenset()


def text_columns(model: Any) -> list[str]:
    """The columns with texts in the encoders of a model, if the columns have names."""
    found: dict[str, None] = {}
    for part, names in parts(model, _fitted_names(model)):
        for name, categories in zip(names or (), getattr(part, "categories_", ()), strict=False):
            if any(isinstance(value, str) for value in categories):
                found[name] = None
    names = _fitted_names(model) or []
    for at, values in booster_categories(model).items():
        if at < len(names) and (values is None or any(isinstance(value, str) for value in values)):
            found[names[at]] = None
    return list(found)


def booster_categories(model: Any) -> dict[int, tuple[Any, ...] | None]:
    """The columns that a model of a boosting library takes as categories, by position, with their values in the order of the codes.

    None for values that the library does not keep.
    """
    if isinstance(model, CodedBooster):
        return model.categories
    if library(model) not in ("xgboost", "lightgbm", "catboost"):
        return {}
    try:
        return native_categories(model)
    except Exception:  # any: the library has errors of its own
        return {}


def parts(model: Any, names: Names) -> Iterator[tuple[Any, Names]]:
    """Each object inside a fitted model that has columns, with their names, the model first."""
    yield from _parts(model, names, set(), 0)


def _parts(part: Any, names: Names, seen: set[int], depth: int) -> Iterator[tuple[Any, Names]]:
    if id(part) in seen or depth > MAX_DEPTH:
        return
    seen.add(id(part))
    if is_part(part):
        names = _own_names(part, names)
        yield part, names
    for inner, taken in _inside(part, names):
        yield from _parts(inner, taken, seen, depth + 1)


def _inside(part: Any, names: Names) -> Iterator[tuple[Any, Names]]:
    """The objects inside an object that may have columns, each with the names of its columns."""
    if isinstance(part, list | tuple):
        yield from ((item, names) for item in part)
    elif isinstance(part, dict):
        yield from ((item, names) for item in part.values())
    elif isinstance(part, Pipeline):
        for _, step in part.steps:
            if step is not None and not isinstance(step, str):
                yield step, names
                names = _names_after(step, names)
    elif isinstance(part, ColumnTransformer) and hasattr(part, "transformers_"):
        for _, step, columns in part.transformers_:
            if not isinstance(step, str):
                yield step, None if names is None else _names_of(columns, names)
    elif is_part(part):
        yield from ((value, None if name == "final_estimator_" else names) for name, value in vars(part).items())


def is_part(value: Any) -> bool:
    """Whether a value is an estimator, or holds one inside a calibrated classifier."""
    return (isinstance(value, BaseEstimator) or type(value).__module__ == "sklearn.calibration") and not isinstance(value, type)


def _own_names(part: Any, names: Names) -> Names:
    own = vars(part).get("feature_names_in_")
    if own is not None:
        return [str(name) for name in own]
    width = _width(part)
    return names if names is None or width is None or width == len(names) else None


def _names_after(step: Any, names: Names) -> Names:
    """The names of the output of a step that keeps each column in its place."""
    from sklearn.impute import SimpleImputer

    if names is not None and isinstance(step, SimpleImputer) and hasattr(step, "statistics_") and not step.add_indicator:
        gone = {at for at, value in enumerate(step.statistics_) if value is np.nan or value is None}
        return names if not gone or step.keep_empty_features else None
    return None


def positions_of(columns: Any, names: Sequence[str]) -> list[int]:
    """The positions of the columns that a step of a ColumnTransformer takes, in the order of `names`."""
    if isinstance(columns, str):
        return [list(names).index(columns)]
    if isinstance(columns, slice):
        if isinstance(columns.start, str) or isinstance(columns.stop, str):
            start = 0 if columns.start is None else list(names).index(columns.start)
            stop = len(names) if columns.stop is None else list(names).index(columns.stop) + 1
            return list(range(start, stop))[:: columns.step or 1]
        return list(range(len(names)))[columns]
    if np.isscalar(columns):
        return [range(len(names))[int(columns)]]  # type: ignore[arg-type]
    listed = list(columns)
    if listed and isinstance(listed[0], bool | np.bool_):
        return [at for at, chosen in enumerate(listed) if chosen]
    return [list(names).index(each) if isinstance(each, str) else range(len(names))[int(each)] for each in listed]


def _names_of(columns: Any, names: Sequence[str]) -> list[str]:
    return [names[at] for at in positions_of(columns, names)]


def _fitted_names(model: Any) -> list[str] | None:
    for attribute in ("feature_names_in_", "feature_names_"):
        try:
            names = getattr(model, attribute, None)
        except Exception:  # noqa: S112, a property of somebody else's class
            continue
        if names is not None and len(names):
            return [str(name) for name in names]
    return None


def _width(model: Any) -> int | None:
    try:
        width = getattr(model, "n_features_in_", None)
    except Exception:
        return None
    return int(width) if width else None


def _used(part: Any, names: list[str], depth: int) -> set[str]:
    """The columns that a fitted object reads of a table with these columns."""
    if depth > MAX_DEPTH:
        return set(names)
    if isinstance(part, Pipeline):
        for _, step in part.steps:
            if step is not None and not isinstance(step, str):
                return _used(step, names, depth + 1)
        return set(names)
    if isinstance(part, ColumnTransformer) and hasattr(part, "transformers_"):
        own = _own_names(part, names) or names
        return {name for _, step, columns in part.transformers_ if step != "drop" for name in _names_of(columns, own)}
    if isinstance(part, FeatureUnion):
        return set().union(*(_used(step, names, depth + 1) for _, step in part.transformer_list if not isinstance(step, str)))
    if getattr(part, "passthrough", False):
        return set(names)
    inner = list(_inner(part))
    return set().union(*(_used(each, names, depth + 1) for each in inner)) if inner else set(names)


_INNER = ("estimators_", "calibrated_classifiers_", "best_estimator_", "estimator_", "regressor_")


def _inner(part: Any) -> Iterator[Any]:
    """The fitted estimators to which an estimator passes its unchanged table."""
    module = type(part).__module__
    if module.startswith("sklearn.ensemble") and "_voting" not in module and "_stacking" not in module:
        return  # forests, bagging and boosting read every column
    if module in ("sklearn.calibration", "sklearn.frozen._frozen") and not hasattr(part, "calibrated_classifiers_"):
        yield part.estimator  # the estimator of one fold of a calibrated classifier, or a frozen estimator
        return
    for name in _INNER:
        value = vars(part).get(name)
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None and is_part(each):
                yield each
