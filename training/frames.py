"""The serving form of a fitted model that needs a pandas frame: the frame of the manifest, and the text columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer

from serve_app.artifacts.frame_columns import fits
from serve_app.artifacts.manifest import Frame
from serve_app.artifacts.signature import Feature, Label, Signature, label_text
from serve_app.errors import UsageError
from serve_app.inference.backends.frame_backend import FrameBackend

_DEPTH = 12
"""Most levels of nested estimators that are searched."""


def frame_model(estimator: Any, sample: pd.DataFrame, signature: Signature) -> tuple[FrameBackend, Frame]:
    """The backend that calls `estimator` with frames, and the manifest's `frame`, which a bundle with the pickled estimator needs.

    `sample` has the columns of the features with the dtypes of the fit. Like every backend, this one takes coded rows, so it can be
    compared with the estimator's own answers to the sample. Raises UsageError with all columns whose dtype no request can have, and
    BundleRefused for an estimator that does not match the signature.
    """
    frame = frame_of(sample, signature)
    return FrameBackend(estimator, signature, frame), frame


def frame_of(sample: pd.DataFrame, signature: Signature) -> Frame:
    """The manifest's `frame` for a sample with the dtypes of the fit; raises UsageError with all unusable columns."""
    dtypes: dict[str, str] = {}
    values: dict[str, tuple[Label, ...]] = {}
    order: dict[str, tuple[int, ...]] = {}
    ordered: list[str] = []
    problems: list[str] = []
    for feature in signature.features:
        if feature.name not in sample.columns:
            problems.append(f"the sample has no column '{feature.name}'")
            continue
        column = sample[feature.name]
        dtypes[feature.name] = dtype = str(column.dtype)
        if not fits(feature, dtype):
            problems.append(f"column '{feature.name}' has the dtype {dtype}, which cannot hold a {feature.kind} from a request")
        elif feature.kind == "category":
            own = _values(feature, column)
            if list(own) != list(feature.categories):
                values[feature.name] = own
            if isinstance(column.dtype, pd.CategoricalDtype):
                codes = _order(own, column.dtype)
                if codes != tuple(range(len(own))):
                    order[feature.name] = codes
                if column.dtype.ordered:
                    ordered.append(feature.name)
    if problems:
        raise UsageError(f"{'; '.join(problems)}: convert the columns of the sample, or fit the model on other dtypes")
    return Frame(dtypes=dtypes, values=values, order=order, ordered=tuple(ordered))


def text_features(estimator: Any, sample: pd.DataFrame) -> tuple[str, ...]:
    """The text columns that the model takes unchanged, in the order of the sample.

    These are columns of dtype str, string or object with texts, unless an encoder inside the model lists their categories: columns
    of a vectorizer, columns for the user's code, and categories of CatBoost, which keeps no list and answers any text.
    """
    listed = set(_listed_columns(estimator))
    return tuple(str(name) for name in sample.columns if name not in listed and _holds_texts(sample[name]))


def _holds_texts(column: pd.Series[Any]) -> bool:
    if isinstance(column.dtype, pd.StringDtype):
        return True
    if column.dtype != object:
        return False
    filled = column.dropna()
    return bool(len(filled)) and all(isinstance(value, str) for value in filled)


def _listed_columns(estimator: Any) -> Iterator[Any]:
    """The names of columns whose categories an encoder inside the estimator lists."""
    for part in _parts(estimator):
        if hasattr(part, "categories_"):
            yield from getattr(part, "feature_names_in_", ())
        if isinstance(part, ColumnTransformer):
            names = getattr(part, "feature_names_in_", None)
            for _, transformer, columns in getattr(part, "transformers_", ()):
                if names is not None and any(hasattr(inner, "categories_") for inner in _parts(transformer)):
                    yield from _names(columns, names)


def _names(columns: Any, names: Sequence[Any]) -> Iterator[Any]:
    """The names of columns from a name, names, positions, or a mask."""
    columns = [columns] if isinstance(columns, str | int) else list(columns)
    if columns and all(isinstance(column, bool) for column in columns):
        columns = [at for at, chosen in enumerate(columns) if chosen]
    for column in columns:
        yield column if isinstance(column, str) else names[int(column)]


def _parts(part: Any, depth: int = 0, seen: set[int] | None = None) -> Iterator[Any]:
    """The estimator and the estimators inside it, fitted or not."""
    seen = set() if seen is None else seen
    if depth > _DEPTH or id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, Mapping):
        inner: Any = part.values()
    elif isinstance(part, list | tuple):
        inner = part
    elif isinstance(part, BaseEstimator) or type(part).__module__.startswith("sklearn."):
        yield part
        inner = vars(part).values() if hasattr(part, "__dict__") else ()
    else:
        return
    for value in inner:
        yield from _parts(value, depth + 1, seen)


def _values(feature: Feature, column: pd.Series[Any]) -> tuple[Label, ...]:
    """The values of the categories, from the sample or its dtype; missing values get the same type."""
    source = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column.dropna().unique()
    known: list[Label] = source.tolist()
    by_text = {**{str(value): value for value in known}, **{label_text(value): value for value in known}}
    types = {type(value) for value in known}
    return tuple(by_text[text] if text in by_text else _parsed(text, types) for text in feature.categories)


def _parsed(text: str, types: set[type]) -> Label:
    if types == {bool}:
        return text.lower() == "true"
    if types and types <= {int, float}:
        try:
            return int(text) if types == {int} else float(text)
        except ValueError:
            return text
    return text


def _order(values: Sequence[Label], dtype: pd.CategoricalDtype) -> tuple[int, ...]:
    """The codes in the order of the dtype; categories outside the dtype come last."""
    places = {value: at for at, value in enumerate(dtype.categories.tolist())}
    return tuple(sorted(range(len(values)), key=lambda code: (places.get(values[code], len(places)), code)))
