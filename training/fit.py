"""From a signature to an unfitted scikit-learn model of the right shape.

A request reaches the model as a coded matrix (serve_app.protocols.decode). A table of more than plain numbers is turned into that
very matrix by the first step, `encode`, which serving takes off; all that follows works on the matrix. Only classes of
scikit-learn and functions of numpy are used: the pickle loads wherever those are.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from serve_app.artifacts.signature import UNSEEN, Signature, Task
from serve_app.errors import UsageError
from serve_app.inference.backends.sklearn_backend import ENCODE

ESTIMATORS = ("random-forest", "logistic-regression", "hist-gradient-boosting")
"""Names that need no import path; a regression gets the twin (logistic regression: ridge)."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "random-forest": {"n_estimators": 200, "max_depth": 10},
    "logistic-regression": {"max_iter": 1000},
    "hist-gradient-boosting": {},
}

THREADED_ROWS = 2000

_MISSING = -2.0  # the code that a gap gets before one-hot: a category of its own, apart from an unseen one


def build(signature: Signature, estimator: str, params: Mapping[str, Any], *, random_state: int) -> Any:
    """An unfitted model for tables of this signature; UsageError when there is none of that name or it takes no such parameter."""
    core = _core(signature.task, estimator, params, random_state)
    steps = _prepare(signature, estimator)
    steps.append(("model", core))
    if any(feature.kind != "number" or feature.nullable for feature in signature.features):
        steps.insert(0, (ENCODE, encoder(signature)))
    return core if len(steps) == 1 else Pipeline(steps)


def encoder(signature: Signature) -> ColumnTransformer:
    """A table as the coded matrix, column for column."""
    # Neighbours of one treatment share a transformer: the columns come out in the order of the transformers.
    runs: list[tuple[str, Any, list[str]]] = []
    for category, group in groupby(signature.features, key=lambda feature: feature.kind == "category"):
        features = list(group)
        names = [feature.name for feature in features]
        if category:
            known = [np.array([*feature.categories, *([np.nan] if feature.nullable else [])], dtype=object) for feature in features]
            coder: Any = OrdinalEncoder(
                categories=known, handle_unknown="use_encoded_value", unknown_value=int(UNSEEN), encoded_missing_value=np.nan
            )
        else:
            coder = FunctionTransformer(np.asarray, kw_args={"dtype": np.float64})
        runs.append((f"columns_{len(runs)}", coder, names))
    return ColumnTransformer(runs)


def fit(model: Any, frame: pd.DataFrame, target: npt.NDArray[Any]) -> tuple[str, ...]:
    """Fit in place; gives what scikit-learn warned of. UsageError when the estimator cannot learn this table."""
    core = model.steps[-1][1] if isinstance(model, Pipeline) else model
    # A forest keeps the number of threads that it was given, and answers one row best with one: only while fitting.
    threads = len(frame) >= THREADED_ROWS and "n_jobs" in core.get_params(deep=False) and core.n_jobs is None
    if threads:
        core.set_params(n_jobs=-1)
    try:
        with threads_for(len(frame)), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(frame, target)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{type(core).__name__} cannot learn this table: {' '.join(str(error).split())[:300]}") from error
    if threads:
        core.set_params(n_jobs=None)
    return tuple(dict.fromkeys(" ".join(str(warning.message).split())[:300] for warning in caught))


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """One thread for a small table: on a busy machine many wait for each other far longer than they work."""
    if rows >= THREADED_ROWS:
        yield
        return
    with threadpool_limits(1):
        yield


def parameters(model: Any) -> dict[str, Any]:
    """The parameters of the estimator itself, as JSON can hold them."""
    core = model.steps[-1][1] if isinstance(model, Pipeline) else model
    found = core.get_params(deep=False) if hasattr(core, "get_params") else {}
    return {
        name: value if isinstance(value, str | int | float | bool | None) else str(value) for name, value in sorted(found.items())
    }


def model_type(model: Any) -> str:
    core = model.steps[-1][1] if isinstance(model, Pipeline) else model
    return type(core).__name__


def _prepare(signature: Signature, estimator: str) -> list[tuple[str, Any]]:
    """What comes before the estimator on the coded matrix: no gaps, no codes that pretend an order, one scale."""
    numbers = [at for at, feature in enumerate(signature.features) if feature.kind == "number" and feature.nullable]
    booleans = [at for at, feature in enumerate(signature.features) if feature.kind == "boolean" and feature.nullable]
    categories = [at for at, feature in enumerate(signature.features) if feature.kind == "category"]
    parts: list[tuple[str, Any, list[int]]] = []
    if estimator != "hist-gradient-boosting":  # which takes gaps as they are
        if numbers:
            parts.append(("numbers", SimpleImputer(strategy="median", keep_empty_features=True), numbers))
        if booleans:
            parts.append(("booleans", SimpleImputer(strategy="most_frequent", keep_empty_features=True), booleans))
    if categories:
        known = [np.arange(len(signature.features[at].categories), dtype=np.float64) for at in categories]
        known = [
            np.concatenate([[_MISSING], codes]) if signature.features[at].nullable else codes
            for at, codes in zip(categories, known, strict=True)
        ]
        one_hot = OneHotEncoder(categories=known, handle_unknown="ignore", sparse_output=False)
        if any(signature.features[at].nullable for at in categories):
            one_hot = Pipeline([("gaps", SimpleImputer(strategy="constant", fill_value=_MISSING)), ("one_hot", one_hot)])
        parts.append(("categories", one_hot, categories))
    steps: list[tuple[str, Any]] = []
    if parts:
        steps.append(("prepare", ColumnTransformer(parts, remainder="passthrough")))
    if estimator == "logistic-regression":
        steps.append(("scale", StandardScaler()))
    return steps


def _core(task: Task, estimator: str, params: Mapping[str, Any], random_state: int) -> Any:
    if estimator not in ESTIMATORS:
        return _own(task, estimator, params, random_state)
    known = _known(task, estimator)
    given = {**DEFAULTS[estimator], **params}
    if estimator == "hist-gradient-boosting" and "n_estimators" in given:
        given["max_iter"] = given.pop("n_estimators")
    accepted = inspect.signature(known).parameters
    for name in list(given):
        if name not in accepted and name not in params:
            del given[name]  # a default that the regression's twin does not know
        elif name not in accepted:
            raise UsageError(f"{estimator} has no parameter {name}: leave --{name.replace('_', '-')} out")
    if "random_state" in accepted:
        given["random_state"] = random_state
    return known(**given)


def _known(task: Task, estimator: str) -> Callable[..., Any]:
    from sklearn import ensemble, linear_model

    classifier, regressor = {
        "random-forest": (ensemble.RandomForestClassifier, ensemble.RandomForestRegressor),
        "logistic-regression": (linear_model.LogisticRegression, linear_model.Ridge),
        "hist-gradient-boosting": (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor),
    }[estimator]
    chosen: Callable[..., Any] = classifier if task == "classification" else regressor
    return chosen


def _own(task: Task, path: str, params: Mapping[str, Any], random_state: int) -> Any:
    """An estimator of the caller's: `package.module:factory`; the factory is given whatever it has a parameter for."""
    module_name, separator, name = path.partition(":")
    if not separator or not module_name or not name:
        raise UsageError(f"there is no estimator '{path}': use {', '.join(ESTIMATORS)} or package.module:factory")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise UsageError(f"the module of --estimator {path} cannot be imported: {error}") from None
    except AttributeError:
        raise UsageError(f"the module of --estimator {path} has no '{name}'") from None
    if not callable(factory):
        raise UsageError(f"--estimator {path} is not a function that returns an estimator")
    try:
        accepted = inspect.signature(factory).parameters
    except ValueError:
        raise UsageError(f"--estimator {path} is not a function written in Python that returns an estimator") from None
    for given in params:
        if given not in accepted:
            raise UsageError(f"the factory {path} has no parameter {given}: leave --{given.replace('_', '-')} out")
    offered = {"task": task, "random_state": random_state, **params}
    try:
        made = factory(**{key: value for key, value in offered.items() if key in accepted})
    except Exception as error:
        raise UsageError(f"the factory {path} failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error
    suits = is_classifier if task == "classification" else is_regressor
    if not hasattr(made, "fit") or not hasattr(made, "__sklearn_tags__") or not suits(made):
        raise UsageError(f"the factory {path} returned a {type(made).__name__}, which is no scikit-learn estimator for a {task}")
    return made
