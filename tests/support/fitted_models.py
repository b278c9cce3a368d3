"""Small fitted models of many sorts over one table, as authors have them, for the tests of adopting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_selector
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder
from sklearn.svm import LinearSVC

ROWS, FITTED = 360, 240
"""Rows of the table, and those that models learn from."""


@cache
def table() -> pd.DataFrame:
    """Numbers, texts with gaps, a boolean, free text, dates and two targets; `unused` is read by no model."""
    random = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "size": random.normal(10.0, 2.0, ROWS),
            "age": random.integers(1, 60, ROWS).astype(float),
            "city": random.choice(["Bern", "Oslo", "São Paulo"], ROWS),
            "plan": random.choice(["basic", "plus"], ROWS),
            "member": random.random(ROWS) < 0.5,
            "unused": np.arange(ROWS),
            "note": [" ".join(random.choice(["late", "fast", "broken", "fine"], 4)) for _ in range(ROWS)],
            "day": pd.Timestamp("2026-01-01") + pd.to_timedelta(random.integers(0, 300, ROWS), unit="D"),
        }
    )
    frame.loc[random.random(ROWS) < 0.1, "age"] = np.nan
    frame.loc[random.random(ROWS) < 0.1, "city"] = None
    score = 0.4 * (frame["size"] - 10.0) + (frame.city == "Oslo") - (frame.plan == "plus") + random.normal(0, 0.3, ROWS)
    frame["label"] = np.where(score > 0.0, "yes", "no")
    frame["value"] = np.exp(score / 2.0) + 1.0
    return frame


MIXED = ["size", "age", "city", "plan", "member"]


def _prepare(encoder: Any = None, *, remainder: str = "drop") -> ColumnTransformer:
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return ColumnTransformer(
        [("numbers", numbers, ["size", "age"]), ("texts", encoder or OneHotEncoder(handle_unknown="ignore"), ["city", "plan"])],
        remainder=remainder,
    )


def _logistic(*steps: Any) -> Any:
    return make_pipeline(*steps, LogisticRegression(max_iter=500))


def _filled() -> ColumnTransformer:
    often = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    constant = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="nowhere"),
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    )
    return ColumnTransformer(
        [("often", often, ["city", "plan"]), ("constant", constant, ["city"]), ("size", "passthrough", ["size"])]
    )


def _stacked() -> Any:
    selectors = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), make_column_selector(dtype_include="number")),
            ("texts", OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_include=["object", "str"])),
        ],
        remainder="passthrough",
    )
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    boosting = HistGradientBoostingClassifier(max_iter=10, random_state=0)
    return StackingClassifier(
        [("linear", _logistic(selectors)), ("trees", make_pipeline(_prepare(codes, remainder="passthrough"), boosting))], cv=2
    )


CLASSIFIERS: Mapping[str, Callable[[], Any]] = {
    "one-hot and logistic regression": lambda: _logistic(_prepare()),
    "ordinal codes and a forest": lambda: make_pipeline(
        _prepare(
            OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2), remainder="passthrough"
        ),
        RandomForestClassifier(10, random_state=0, n_jobs=-1),
    ),
    "own order of categories": lambda: make_pipeline(
        ColumnTransformer([("plan", OrdinalEncoder(categories=[["plus", "basic"]]), ["plan"])]),
        RandomForestClassifier(5, random_state=0),
    ),
    "target encoder": lambda: _logistic(_prepare(TargetEncoder())),
    "imputed texts": lambda: _logistic(_filled()),
    "first category dropped": lambda: _logistic(_prepare(OneHotEncoder(drop="first", handle_unknown="ignore"))),
    "rare categories together": lambda: _logistic(_prepare(OneHotEncoder(min_frequency=100, handle_unknown="infrequent_if_exist"))),
    "union": lambda: _logistic(make_union(_prepare(), ColumnTransformer([("size", "passthrough", ["size"])]))),
    "tables between the steps": lambda: _logistic(
        _prepare(OneHotEncoder(handle_unknown="ignore", sparse_output=False)).set_output(transform="pandas"),
        ColumnTransformer([("scaled", StandardScaler(), ["texts__city_Oslo"])], remainder="passthrough"),
    ),
    "search": lambda: GridSearchCV(_logistic(_prepare()), {"logisticregression__C": [0.1, 1.0]}, cv=2),
    "voting": lambda: VotingClassifier([("a", _logistic(_prepare())), ("b", _logistic(_filled()))], voting="soft"),
    "stacking": _stacked,
    "calibrated": lambda: CalibratedClassifierCV(make_pipeline(_prepare(), LinearSVC(random_state=0)), cv=2),
    "fixed threshold": lambda: FixedThresholdClassifier(_logistic(_prepare()), threshold=0.2, pos_label="yes"),
    "tuned threshold": lambda: TunedThresholdClassifierCV(_logistic(_prepare()), cv=2),
    "no probabilities": lambda: make_pipeline(_prepare(), LinearSVC(random_state=0)),
    "boosting with categories": lambda: make_pipeline(
        HistGradientBoostingClassifier(max_iter=10, categorical_features=["city", "plan"])
    ),
}
"""Unfitted classifiers of `label` over the columns MIXED."""


@cache
def classifier(name: str) -> Any:
    """One of CLASSIFIERS, fitted."""
    frame = table()[:FITTED]
    return CLASSIFIERS[name]().fit(frame[[*MIXED, "unused"]], frame.label)


@cache
def frozen() -> Any:
    """A calibrated classifier around one that was fitted before."""
    frame = table()
    inner = FrozenEstimator(classifier("one-hot and logistic regression"))
    return CalibratedClassifierCV(inner).fit(frame[:FITTED][[*MIXED, "unused"]], frame.label[:FITTED])


@cache
def regressor() -> Any:
    """Values on a logarithmic scale, with categories by dtype."""
    frame = sample_of_regressor()[:FITTED]
    inner = HistGradientBoostingRegressor(max_iter=10, categorical_features="from_dtype", random_state=0)
    return TransformedTargetRegressor(inner, func=np.log1p, inverse_func=np.expm1).fit(frame.drop(columns="value"), frame.value)


def sample_of_regressor() -> pd.DataFrame:
    """The columns MIXED with dtype category for the texts, and the value."""
    return table()[[*MIXED, "value"]].astype({"city": "category", "plan": "category"})


@cache
def of_array() -> Any:
    """A model that was fitted on an array of two columns: it knows no names."""
    frame = table()[:FITTED]
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(frame[["size", "age"]].fillna(30.0).to_numpy(), frame.label)


@cache
def of_texts() -> Any:
    """Free text beside a number."""
    frame = table()[:FITTED]
    prepare = ColumnTransformer([("words", TfidfVectorizer(), "note"), ("size", StandardScaler(), ["size"])])
    return _logistic(prepare).fit(frame[["note", "size"]], frame.label)


@cache
def of_one_text() -> Any:
    """A pipeline that takes a list of texts."""
    frame = table()[:FITTED]
    return _logistic(TfidfVectorizer()).fit(frame.note, frame.label)


@cache
def of_dates() -> Any:
    """A step that takes the parts of a date, with code of numpy alone."""
    frame = table()[:FITTED]
    prepare = ColumnTransformer([("day", FunctionTransformer(np.asarray, kw_args={"dtype": "datetime64[D]"}), ["day"])])
    whole = make_pipeline(prepare, FunctionTransformer(np.asarray, kw_args={"dtype": np.float64}), StandardScaler(), Ridge())
    return whole.fit(frame[["day"]], frame.value)
