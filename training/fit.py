"""From a signature to an unfitted scikit-learn model of the right shape.

A request reaches the model as a coded matrix (serve_app.protocols.decode). The first step, `encode`, turns a table with more than
plain numbers into the same matrix; serving removes this step. The steps after it work on the matrix. They are classes of
scikit-learn and functions of numpy, so the pickle loads wherever those are installed; a model with dates also needs the classes of
`serve_app.inference.date_parts`, a booster those of `serve_app.inference.booster_estimators` and its library.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.utils import get_tags
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.matrix import matrix_type
from serve_app.artifacts.signature import UNSEEN, Feature, Signature, Task
from serve_app.errors import UsageError
from serve_app.inference.backends.sklearn_backend import ENCODE
from serve_app.inference.booster_estimators import Booster, BoosterClassifier, BoosterRegressor
from serve_app.inference.date_parts import DateCoder, date_step
from training import calibration
from training.estimators import ESTIMATORS, STOPPING_ROUNDS, Estimator, Learner
from training.train_options import CalibrationMethod
from training.unsupervised import UNSUPERVISED

THREADED_ROWS = 2000
"""Smallest number of rows for which the fit uses several threads."""

DATES = "dates"
"""The name of the pipeline step that replaces dates with their parts."""

_MISSING = -2.0  # the code of a gap before one-hot encoding: a separate category, different from an unseen one


def build(
    signature: Signature, name: str, params: Mapping[str, Any], *, random_state: int, calibrate: CalibrationMethod | None = None
) -> Any:
    """An unfitted model for tables of this signature: the estimator, or a Pipeline: `encode`, `dates`, `prepare`, `scale`, `model`.

    `name` is a key of ESTIMATORS or `package.module:factory`; `calibrate` corrects the probabilities. Raises UsageError for an
    unknown estimator or parameter.
    """
    known = ESTIMATORS.get(name)
    unsupervised = UNSUPERVISED.get(name)
    if unsupervised is not None:
        model = _of_class(unsupervised.learner, name, params, random_state)
    elif known is None:
        model = _from_factory(signature.task, name, params, random_state)
    else:
        model = _from_table(signature, name, known, params, random_state)
    dates = date_step(signature)
    steps: list[tuple[str, Any]] = [] if dates is None else [(DATES, dates)]
    steps += _prepare(
        with_parts(signature),
        takes_gaps=known is not None and known.takes_gaps,
        takes_categories=known is not None and known.takes_categories,
    )
    if (known is not None and known.needs_scaling) or (unsupervised is not None and unsupervised.needs_scaling):
        steps.append(("scale", StandardScaler()))
    model = model if calibrate is None else calibration.calibrated(model, calibrate)
    if signature.outputs and not get_tags(model).target_tags.multi_output:
        model = MultiOutputClassifier(model) if signature.task == "classification" else MultiOutputRegressor(model)
    steps.append(("model", model))
    if any(feature.kind != "number" or feature.nullable for feature in signature.features):
        steps.insert(0, (ENCODE, encoder(signature)))
    return model if len(steps) == 1 else Pipeline(steps)


def encoder(signature: Signature) -> ColumnTransformer:
    """The unfitted transformer from a table to the coded matrix, shape (rows, features): float64, or objects with text features."""
    # Only adjacent columns of one kind share a transformer, because the output has the order of the transformers.
    runs: list[tuple[str, Any, list[str]]] = []
    for kind, group in groupby(signature.features, key=lambda feature: feature.kind if feature.date is None else feature.date):
        features = list(group)
        names = [feature.name for feature in features]
        if isinstance(kind, DateForm):
            coder: Any = DateCoder(kind.parts, kind.formats, kind.zoned)
        elif kind == "category":
            known = [np.array([*feature.categories, *([np.nan] if feature.nullable else [])], dtype=object) for feature in features]
            coder = OrdinalEncoder(
                categories=known, handle_unknown="use_encoded_value", unknown_value=int(UNSEEN), encoded_missing_value=np.nan
            )
        else:
            coder = FunctionTransformer(np.asarray, kw_args={"dtype": matrix_type(has_texts=kind == "text")})
        runs.append((f"columns_{len(runs)}", coder, names))
    return ColumnTransformer(runs)


def fit(model: Any, frame: pd.DataFrame, target: npt.NDArray[Any] | None) -> tuple[str, ...]:
    """Fit in place and return the warnings of scikit-learn; `target` is None for a task without a target.

    Raises UsageError when the estimator cannot learn this table.
    """
    if target is not None and target.ndim == 2 and target.dtype == object:
        target = target.astype(str)  # scikit-learn needs one type for several targets
    estimator = calibration.inner(final_estimator(model))
    # n_jobs is set only for the fit, because a fitted forest keeps it, and one thread is fastest for a single row.
    one = not isinstance(
        estimator, MultiOutputClassifier | MultiOutputRegressor
    )  # the multi-output estimators start processes, not threads
    threads = one and len(frame) >= THREADED_ROWS and "n_jobs" in estimator.get_params(deep=False) and estimator.n_jobs is None
    if threads:
        estimator.set_params(n_jobs=-1)
    try:
        with threads_for(len(frame)), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(frame, target)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{model_type(model)} cannot learn this table: {_one_line(error, 300)}") from error
    if threads:
        estimator.set_params(n_jobs=None)
        calibration.inner(final_estimator(model)).set_params(n_jobs=None)  # the fitted copy inside a correction
    notes = dict.fromkeys(_one_line(warning.message, 300) for warning in caught)
    learner = calibration.inner(estimator)
    if isinstance(learner, Booster):
        notes[f"{model_type(model)} computes with {learner.tree_count_} rounds of trees"] = None
    return tuple(notes)


@contextmanager
def threads_for(rows: int) -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread for a small table, where more threads would only wait for each other."""
    if rows >= THREADED_ROWS:
        yield
        return
    with threadpool_limits(1):
        yield


def final_estimator(model: Any) -> Any:
    """The last step of a Pipeline, also of a nested Pipeline, or the model itself."""
    while isinstance(model, Pipeline):
        model = model.steps[-1][1]
    return model


def parameters(model: Any) -> dict[str, Any]:
    """The parameters of the final estimator, sorted by name; values that JSON cannot hold become text."""
    estimator = _learner(model)
    values = estimator.get_params(deep=False) if hasattr(estimator, "get_params") else {}
    if estimator is not final_estimator(model):  # the libraries list parameters that they choose as None
        values = {name: value for name, value in values.items() if value is not None and name != "feature_types"}
    return {
        name: value if isinstance(value, str | int | float | bool | None) else str(value) for name, value in sorted(values.items())
    }


def model_type(model: Any) -> str:
    """The class name of the final estimator."""
    return type(_learner(model)).__name__


def _learner(model: Any) -> Any:
    """The final estimator without a correction of its probabilities; for a booster, the estimator of the library."""
    estimator = calibration.inner(final_estimator(model))
    if isinstance(estimator, Booster):
        return estimator.estimator_ if hasattr(estimator, "estimator_") else estimator.estimator
    return estimator


def with_parts(signature: Signature) -> list[Feature]:
    """The features of the matrix after the step `dates`: numbers replace the parts of a date."""
    expanded: list[Feature] = []
    for feature in signature.features:
        if feature.date is None:
            expanded.append(feature)
        else:
            expanded += [Feature(f"{feature.name} {part}", nullable=feature.nullable) for part in feature.date.parts]
    return expanded


def _prepare(features: Sequence[Feature], *, takes_gaps: bool, takes_categories: bool) -> list[tuple[str, Any]]:
    """The step that fills gaps and encodes categories one-hot in the matrix of these columns; empty if no column needs it."""
    numbers = [at for at, feature in enumerate(features) if feature.kind == "number" and feature.nullable]
    booleans = [at for at, feature in enumerate(features) if feature.kind == "boolean" and feature.nullable]
    categories = [at for at, feature in enumerate(features) if feature.kind == "category"]
    parts: list[tuple[str, Any, list[int]]] = []
    if numbers and not takes_gaps:
        parts.append(("numbers", SimpleImputer(strategy="median", keep_empty_features=True), numbers))
    if booleans and not takes_gaps:
        parts.append(("booleans", SimpleImputer(strategy="most_frequent", keep_empty_features=True), booleans))
    if categories and not takes_categories:
        parts.append(("categories", _one_hot([features[at] for at in categories]), categories))
    return [("prepare", ColumnTransformer(parts, remainder="passthrough"))] if parts else []


def _one_hot(features: Sequence[Feature]) -> Any:
    """The encoder with one column for each category; a gap is a separate category, an unseen category is all zeros."""
    codes = [
        np.array([*([_MISSING] if feature.nullable else []), *range(len(feature.categories))], dtype=np.float64)
        for feature in features
    ]
    encoder = OneHotEncoder(categories=codes, handle_unknown="ignore", sparse_output=False)
    if not any(feature.nullable for feature in features):
        return encoder
    return Pipeline([("gaps", SimpleImputer(strategy="constant", fill_value=_MISSING)), ("one_hot", encoder)])


def _from_table(signature: Signature, name: str, known: Estimator, params: Mapping[str, Any], random_state: int) -> Any:
    known.check_installed()
    learner = known.learner(signature.task)
    factory = learner.load()
    accepted = known.accepted_parameters(factory)
    for parameter in params:
        if known.parameter_names.get(parameter, parameter) not in accepted:
            raise UsageError(f"{name} has no parameter {parameter}: omit --{parameter.replace('_', '-')}")
    values = {**learner.defaults, **known.own_parameters(params)}
    if "random_state" in accepted:
        values["random_state"] = random_state
    model = factory(**values)
    return model if known.package is None else _booster(model, signature, random_state)


def _booster(model: Any, signature: Signature, random_state: int) -> Any:
    """The estimator for the coded matrix around the model of a boosting library."""
    kind = BoosterClassifier if signature.task == "classification" else BoosterRegressor
    columns = [at for at, feature in enumerate(with_parts(signature)) if feature.kind == "category"]
    return kind(model, columns, stopping_rounds=STOPPING_ROUNDS, random_state=random_state)


def _of_class(learner: Learner, name: str, params: Mapping[str, Any], random_state: int) -> Any:
    """An estimator that learns without a target."""
    factory = learner.load()
    accepted = inspect.signature(factory).parameters
    for parameter in params:
        if parameter not in accepted:
            raise UsageError(f"{name} has no parameter {parameter}: omit --{parameter.replace('_', '-')}")
    values = {**learner.defaults, **params}
    return factory(**values, **({"random_state": random_state} if "random_state" in accepted else {}))


def _from_factory(task: Task, path: str, params: Mapping[str, Any], random_state: int) -> Any:
    """The estimator that the user's function `package.module:factory` returns.

    The function gets those of `task`, `random_state` and `params` for which it has a parameter.
    """
    factory, accepted = _load_factory(path)
    for parameter in params:
        if parameter not in accepted:
            raise UsageError(f"the factory {path} has no parameter {parameter}: omit --{parameter.replace('_', '-')}")
    arguments = {"task": task, "random_state": random_state, **params}
    try:
        estimator = factory(**{name: value for name, value in arguments.items() if name in accepted})
    except Exception as error:
        raise UsageError(f"the factory {path} failed ({type(error).__name__}: {_one_line(error, 200)})") from error
    suits = _SUITS[task]
    if not hasattr(estimator, "fit") or not hasattr(estimator, "__sklearn_tags__") or not suits(estimator):
        kind = type(estimator).__name__
        raise UsageError(f"the factory {path} returned a {kind}, which is not a scikit-learn estimator for a {task}")
    return estimator


def _is_clustering(estimator: Any) -> bool:
    return bool(is_clusterer(estimator)) or get_tags(estimator).estimator_type == "density_estimator"


_SUITS: Mapping[Task, Callable[[Any], bool]] = {
    "classification": is_classifier,
    "regression": is_regressor,
    "outlier detection": is_outlier_detector,
    "clustering": _is_clustering,
}


def _load_factory(path: str) -> tuple[Callable[..., Any], Collection[str]]:
    """The function at `package.module:factory`, and the names of its parameters."""
    module_name, separator, name = path.partition(":")
    if not separator or not module_name or not name:
        raise UsageError(f"the estimator '{path}' does not exist: use {', '.join(ESTIMATORS)} or package.module:factory")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise UsageError(f"the module of --estimator {path} cannot be imported: {error}") from None
    except AttributeError:
        raise UsageError(f"the module of --estimator {path} has no '{name}'") from None
    if not callable(factory):
        raise UsageError(f"--estimator {path} is not a function that returns an estimator")
    try:
        return factory, inspect.signature(factory).parameters.keys()
    except ValueError:
        raise UsageError(f"--estimator {path} is not a function written in Python that returns an estimator") from None


def _one_line(message: object, length: int) -> str:
    return " ".join(str(message).split())[:length]
