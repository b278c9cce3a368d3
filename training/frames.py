"""A fitted model that needs a pandas frame, as a bundle serves it: the frame of the manifest, and which columns are texts."""

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
"""Estimators inside estimators that are looked into."""


def frame_model(estimator: Any, sample: pd.DataFrame, signature: Signature) -> tuple[FrameBackend, Frame]:
    """The backend that calls `estimator` with frames, and the manifest's `frame`, which a bundle of the pickled estimator needs.

    `sample` has the columns of the features with the dtypes of fit. The backend takes coded rows, like every other, so that it can
    be compared with the estimator's own answers to the sample. Raises UsageError for a dtype that no request can become, all
    columns at once, and BundleRefused for an estimator that does not fit the signature.
    """
    frame = frame_of(sample, signature)
    return FrameBackend(estimator, signature, frame), frame


def frame_of(sample: pd.DataFrame, signature: Signature) -> Frame:
    """The manifest's `frame` of a sample with the dtypes of fit; raises UsageError, all columns at once."""
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
            problems.append(f"column '{feature.name}' is of dtype {dtype}, which cannot hold a {feature.kind} of a request")
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
    """The columns of texts that the model takes as they are, in the order of the sample.

    A column of dtype str, string or object with texts is one unless an encoder inside the model lists its categories. So the
    columns of a vectorizer are texts, those that code of the user reads, and the categories of CatBoost, which keeps no list of
    them: any text has an answer there.
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
    """The names of the columns whose categories an encoder inside the estimator lists."""
    for part in _parts(estimator):
        if hasattr(part, "categories_"):
            yield from getattr(part, "feature_names_in_", ())
        if isinstance(part, ColumnTransformer):
            names = getattr(part, "feature_names_in_", None)
            for _, transformer, columns in getattr(part, "transformers_", ()):
                if names is not None and any(hasattr(inner, "categories_") for inner in _parts(transformer)):
                    yield from _names(columns, names)


def _names(columns: Any, names: Sequence[Any]) -> Iterator[Any]:
    """The names of columns that are given as a name, names, positions, or a mask."""
    columns = [columns] if isinstance(columns, str | int) else list(columns)
    if columns and all(isinstance(column, bool) for column in columns):
        columns = [at for at, chosen in enumerate(columns) if chosen]
    for column in columns:
        yield column if isinstance(column, str) else names[int(column)]


def _parts(part: Any, depth: int = 0, seen: set[int] | None = None) -> Iterator[Any]:
    """The estimator and those inside it, fitted or not."""
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
    """The values of the categories in the sample, or in its dtype; those that it lacks are of the same type."""
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
    """The codes in the order of the dtype; categories that it lacks come last."""
    places = {value: at for at, value in enumerate(dtype.categories.tolist())}
    return tuple(sorted(range(len(values)), key=lambda code: (places.get(values[code], len(places)), code)))
