"""A fitted model that is rewritten for coded rows answers like the given one, and the given one is not changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.signature import UNSEEN
from tests.support.fitted_models import CLASSIFIERS, MIXED, classifier, frozen, regressor, sample_of_regressor, table
from training import fit
from training.dataset import json_rows
from training.derived_signature import Declared, DerivedSignature, derive
from training.model_columns import parts
from training.original import Original, original
from training.recoding import bare, recode

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of a busy machine wait longer for each other than they work."""
    with fit.threads_for(1):
        yield


def derived_of(model: Any, frame: pd.DataFrame) -> tuple[Original, DerivedSignature]:
    whole = original(model, list(frame.columns))
    return whole, derive(whole, frame, Declared(), targets=("label",), missing=None)


@pytest.mark.parametrize("name", [*CLASSIFIERS, "frozen"])
def test_a_rewritten_classifier_answers_like_the_given_one(name: str) -> None:
    model = frozen() if name == "frozen" else classifier(name)
    frame = table()[[*MIXED, "unused"]]
    whole, derived = derived_of(model, frame)
    rewritten = recode(whole.model, whole.columns, derived.signature)
    matrix = read_rows(derived.signature, json_rows(derived.plain, derived.signature), unknown="unseen")
    labels = whole.labels(derived.asked)
    given = whole.scores(derived.asked, derived.signature) if derived.signature.probabilistic else whole.labels(derived.asked)
    own = rewritten.predict_proba(matrix) if derived.signature.probabilistic else rewritten.predict(matrix)
    if derived.signature.probabilistic:
        np.testing.assert_allclose(own, given, rtol=0, atol=1e-14)
    else:
        assert own.tolist() == given.tolist()
    assert whole.labels(frame).tolist() == labels.tolist()
    assert "unused" not in derived.signature.names or name in ("boosting with categories", "stacking", "ordinal codes and a forest")


def test_a_rewritten_regressor_gives_the_same_bits() -> None:
    frame = sample_of_regressor().drop(columns="value")
    whole, derived = derived_of(regressor(), frame)
    matrix = read_rows(derived.signature, json_rows(derived.plain, derived.signature), unknown="unseen")
    assert recode(whole.model, whole.columns, derived.signature).predict(matrix).tolist() == regressor().predict(frame).tolist()


def test_a_gap_and_an_unknown_category_are_answered_like_in_a_table() -> None:
    model = classifier("one-hot and logistic regression")
    frame = table()[[*MIXED, "unused"]]
    whole, derived = derived_of(model, frame)
    rewritten = recode(whole.model, whole.columns, derived.signature)
    row = frame.dropna().head(1).reset_index(drop=True)
    at = derived.signature.names.index("city")
    coded = read_rows(derived.signature, json_rows(row.astype({"city": object}), derived.signature))
    for cell, code in ((np.nan, np.nan), ("Rome", UNSEEN)):
        asked = row.assign(city=pd.Series([cell], dtype="str"))
        coded[0, at] = code
        np.testing.assert_allclose(rewritten.predict_proba(coded), model.predict_proba(asked), rtol=0, atol=1e-15)


def test_categories_are_those_of_the_encoder_and_in_its_order() -> None:
    frame = table()[[*MIXED, "unused"]]
    few = frame[frame.city != "Oslo"]
    _, derived = derived_of(classifier("one-hot and logistic regression"), few)
    city = next(feature for feature in derived.signature.features if feature.name == "city")
    assert city.categories == ("Bern", "Oslo", "São Paulo")
    assert city.nullable
    _, own = derived_of(classifier("own order of categories"), frame)
    assert own.signature.features[0].categories == ("plus", "basic")


def test_a_rewritten_model_computes_on_one_thread_and_knows_no_names() -> None:
    whole, derived = derived_of(classifier("ordinal codes and a forest"), table()[[*MIXED, "unused"]])
    for part, _ in parts(recode(whole.model, whole.columns, derived.signature), None):
        assert not hasattr(part, "feature_names_in_")
        assert getattr(part, "n_jobs", 1) == 1


def test_a_search_and_a_frozen_estimator_are_unwrapped_inside_too() -> None:
    kinds = {type(part).__name__ for part, _ in parts(bare(frozen()), None) if isinstance(part, BaseEstimator)}
    assert "FrozenEstimator" not in kinds
    assert type(bare(classifier("search"))).__name__ == "Pipeline"


def test_the_step_before_the_model_makes_the_matrix_of_requests() -> None:
    frame = table()[[*MIXED, "unused"]]
    _, derived = derived_of(classifier("one-hot and logistic regression"), frame)
    encoded = np.asarray(fit.encoder(derived.signature).fit_transform(derived.plain), dtype=np.float64)
    decoded = read_rows(derived.signature, json_rows(derived.plain, derived.signature), unknown="unseen")
    np.testing.assert_array_equal(encoded, decoded)
