from __future__ import annotations

import io
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.signature import MISSING, Feature, Signature
from serve_app.errors import UsageError
from serve_app.inference.backends.sklearn_backend import ENCODE, SklearnBackend, strip_encoder
from tests.support import tables
from tests.support.estimators import INSTALLED, OF_SCIKIT_LEARN
from training import fit
from training.candidate import fit_candidate
from training.dataset import json_rows, load

IRIS = load(None)


def core(model: Any) -> Any:
    return model.steps[-1][1] if isinstance(model, Pipeline) else model


def test_the_default_is_a_bare_forest() -> None:
    model = fit.build(IRIS.signature, "random-forest", {}, random_state=42)
    assert type(model) is RandomForestClassifier
    assert (model.n_estimators, model.max_depth, model.random_state) == (200, 10, 42)


def test_no_limit_and_seed_zero_are_taken_at_their_word() -> None:
    model = fit.build(IRIS.signature, "random-forest", {"max_depth": None}, random_state=0)
    assert model.max_depth is None
    assert model.random_state == 0


@pytest.mark.parametrize("estimator", INSTALLED)
def test_a_regression_gets_the_twin_of_each_estimator(tmp_path: Path, estimator: str) -> None:
    dataset = load(tables.written(tables.houses(), tmp_path), target="price")
    candidate = fit_candidate(dataset, estimator, {}, random_state=1)
    assert candidate.metrics.scalars()["r2"] > 0.9
    sort = {"RandomForestRegressor", "Ridge", "HistGradientBoostingRegressor", "XGBRegressor", "LGBMRegressor", "CatBoostRegressor"}
    assert fit.model_type(candidate.model) in sort


def test_a_parameter_that_the_estimator_lacks_is_named() -> None:
    with pytest.raises(UsageError, match="max_depth"):
        fit.build(IRIS.signature, "logistic-regression", {"max_depth": 3}, random_state=1)


def test_trees_of_a_boosting_are_its_iterations() -> None:
    model = fit.build(IRIS.signature, "hist-gradient-boosting", {"n_estimators": 7, "max_depth": 2}, random_state=1)
    assert (model.max_iter, model.max_depth) == (7, 2)


def test_ridge_takes_no_default_of_the_logistic_regression() -> None:
    signature = Signature((Feature("x"),), "regression")
    model = fit.build(signature, "logistic-regression", {}, random_state=1)
    assert type(core(model)) is Ridge


def test_linear_models_are_scaled() -> None:
    model = fit.build(IRIS.signature, "logistic-regression", {}, random_state=1)
    assert [name for name, _ in model.steps] == ["scale", "model"]
    assert type(core(model)) is LogisticRegression


@pytest.mark.parametrize("estimator", OF_SCIKIT_LEARN)
def test_the_pickle_needs_no_code_of_ours(tmp_path: Path, estimator: str) -> None:
    dataset = load(tables.written(tables.customers(), tmp_path), target="stays")
    pickle = fit_candidate(dataset, estimator, {}, random_state=1).pickle
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ("training", "serve_app")}
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        model = joblib.load(io.BytesIO(pickle))
    finally:
        sys.modules.update(hidden)
    assert len(model.predict(dataset.test)) == len(dataset.test)


def test_a_big_forest_grows_on_all_cores_and_answers_on_one(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(fit.THREADED_ROWS), "y": np.arange(fit.THREADED_ROWS) % 2})
    model = RandomForestClassifier(5)
    fit.fit(model, frame[["x"]], frame["y"].to_numpy())
    assert model.n_jobs is None


def test_what_the_estimator_warns_of_is_handed_over() -> None:
    model = fit.build(IRIS.signature, "logistic-regression", {}, random_state=1)
    model.set_params(model__max_iter=1)
    notes = fit.fit(model, IRIS.train, IRIS.train_target)
    assert any("converge" in note for note in notes)


# --- the encode step and the codec are one


@st.composite
def tables_and_rows(draw: st.DrawFn) -> tuple[Signature, pd.DataFrame]:
    """A signature, and a table of it with gaps only where it allows them."""
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=8).filter(
        lambda text: text not in MISSING  # reading a table makes gaps of them
    )
    rows = draw(st.integers(2, 12))
    features: list[Feature] = []
    columns: dict[str, Any] = {}
    for at in range(draw(st.integers(1, 5))):
        name, nullable = f"column {at}", draw(st.booleans())
        kind = draw(st.sampled_from(["number", "boolean", "category"]))
        if kind == "number":
            values: st.SearchStrategy[Any] = st.floats(-1e38, 1e38)
            features.append(Feature(name, "number", nullable=nullable))
        elif kind == "boolean":
            values = st.booleans()
            features.append(Feature(name, "boolean", nullable=nullable))
        else:
            categories = sorted(draw(st.sets(texts, min_size=1, max_size=4)))
            values = st.sampled_from(categories) | texts
            features.append(Feature(name, "category", categories=tuple(categories), nullable=nullable))
        if nullable:
            values = values | st.just(np.nan)
        drawn = draw(st.lists(values, min_size=rows, max_size=rows))
        columns[name] = pd.Series(drawn, dtype="float64" if kind == "number" else object)
    return Signature(tuple(features), "regression"), pd.DataFrame(columns)


@given(tables_and_rows())
def test_encode_gives_the_matrix_that_a_request_is_decoded_to(case: tuple[Signature, pd.DataFrame]) -> None:
    signature, frame = case
    encoded = fit.encoder(signature).fit_transform(frame)
    decoded = read_rows(signature, json_rows(frame, signature), unknown="unseen")
    assert encoded.dtype == np.float64
    np.testing.assert_array_equal(encoded, decoded)


@pytest.mark.parametrize("estimator", INSTALLED)
def test_the_whole_pipeline_on_the_table_is_its_estimator_on_the_matrix(tmp_path: Path, estimator: str) -> None:
    dataset = load(tables.written(tables.customers(), tmp_path), target="stays")
    candidate = fit_candidate(dataset, estimator, {}, random_state=1)
    assert candidate.model.steps[0][0] == ENCODE
    matrix = read_rows(dataset.signature, json_rows(dataset.test, dataset.signature))
    scores = SklearnBackend(strip_encoder(joblib.load(io.BytesIO(candidate.pickle))), dataset.signature).scores(matrix)
    np.testing.assert_array_equal(candidate.model.predict_proba(dataset.test), scores)
    np.testing.assert_array_equal(candidate.scores, scores)
    assert candidate.metrics.scalars()["accuracy"] > 0.8


@pytest.mark.parametrize("estimator", INSTALLED)
def test_numbers_with_gaps_are_answered(tmp_path: Path, estimator: str) -> None:
    frame = tables.spam().astype({"links": float})
    frame.loc[::9, "links"] = np.nan
    dataset = load(tables.written(frame, tmp_path), target="spam")
    candidate = fit_candidate(dataset, estimator, {}, random_state=1)
    assert np.isnan(candidate.held_out).any()
    assert np.isfinite(candidate.scores).all()
    assert candidate.metrics.scalars()["accuracy"] > 0.8


def test_an_unseen_category_is_answered_like_none_of_the_known(tmp_path: Path) -> None:
    dataset = load(tables.written(tables.customers(), tmp_path), target="stays")
    candidate = fit_candidate(dataset, "logistic-regression", {}, random_state=1)
    row = {**candidate.rows[0], "plan": "never heard of"}
    matrix = read_rows(dataset.signature, [row], unknown="unseen")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = SklearnBackend(candidate.estimator, dataset.signature).scores(matrix)
    assert np.isfinite(scores).all()


# --- estimators of one's own


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    module = types.ModuleType("estimators_of_a_user")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_a_factory_is_given_what_it_asks_for(module: types.ModuleType) -> None:
    def trees(task: str, random_state: int, n_estimators: int = 3) -> Any:
        assert task == "classification"
        return ExtraTreesClassifier(n_estimators, random_state=random_state)

    module.trees = trees  # type: ignore[attr-defined]
    model = fit.build(IRIS.signature, "estimators_of_a_user:trees", {"n_estimators": 4}, random_state=9)
    assert (model.n_estimators, model.random_state) == (4, 9)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("nonsense", "'nonsense'"),
        ("no.such.module:make", "no.such.module"),
        ("estimators_of_a_user:missing", "'missing'"),
        ("estimators_of_a_user:number", "estimators_of_a_user:number"),
        ("estimators_of_a_user:wrong", "RandomForestRegressor"),
        ("estimators_of_a_user:plain", "n_estimators"),
        ("estimators_of_a_user:broken", "KeyError: 'trees'"),
        ("estimators_of_a_user:text", "returned a str"),
        ("collections:OrderedDict", "collections:OrderedDict"),
    ],
)
def test_an_estimator_that_cannot_be_used_is_refused_by_name(module: types.ModuleType, path: str, named: str) -> None:
    module.number = 5  # type: ignore[attr-defined]
    module.wrong = lambda n_estimators: RandomForestRegressor(n_estimators)  # type: ignore[attr-defined]
    module.broken = lambda n_estimators: {"oaks": 1}["trees"]  # type: ignore[attr-defined]
    module.text = lambda n_estimators: "forest"  # type: ignore[attr-defined]
    module.plain = lambda: RandomForestClassifier()  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=named):
        fit.build(IRIS.signature, path, {"n_estimators": 4}, random_state=1)
