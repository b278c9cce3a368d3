"""What a sample tells about the frame of a model, and which of its columns are texts."""

from __future__ import annotations

import msgspec
import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import UsageError
from tests.support.frame_models import ORDERS, json_of, orders, orders_model
from training.frames import frame_model, frame_of, text_features


def test_the_backend_of_a_model_answers_as_the_model_does() -> None:
    table = orders()
    backend, frame = frame_model(orders_model(), table, ORDERS)
    np.testing.assert_array_equal(backend.scores(read_rows(ORDERS, json_of(table))), orders_model().predict_proba(table))
    assert frame.values == {"grade": (1, 2, 3)}
    assert frame.order == {"size": (2, 1, 0)}
    assert frame.ordered == ("size",)


def test_categories_that_the_sample_lacks_have_the_type_of_the_others() -> None:
    features = (Feature("n", "category", categories=("1", "2.5")), Feature("b", "category", categories=("False", "True")))
    table = pd.DataFrame({"n": [1.0, 1.0], "b": [True, True]})
    assert frame_of(table, Signature(features, "regression")).values == {"n": (1.0, 2.5), "b": (False, True)}


def test_all_columns_that_no_request_can_fill_are_named_at_once() -> None:
    table = orders().assign(pieces=pd.to_timedelta(1, unit="s"), price=pd.Series([1 + 2j] * len(orders()))).drop(columns="gift")
    with pytest.raises(UsageError, match=r"'price'.*'pieces'") as refused:
        frame_of(table, ORDERS)
    assert "'gift'" in str(refused.value)


def test_columns_of_a_vectorizer_and_of_own_code_are_texts_and_those_of_an_encoder_are_not() -> None:
    table = orders()
    assert text_features(orders_model(), table) == ("note",)
    whole = make_pipeline(FunctionTransformer(lambda frame: frame[["pieces"]]), LogisticRegression()).fit(table, table.gift)
    assert text_features(whole, table) == ("region", "note")


def test_an_encoder_is_found_inside_other_models_and_behind_an_imputer() -> None:
    table = orders()
    prepare = ColumnTransformer(
        [
            ("region", make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder()), lambda frame: ["region"]),
            ("note", CountVectorizer(), "note"),
        ]
    )
    model = CalibratedClassifierCV(make_pipeline(prepare, LogisticRegression(max_iter=500)), cv=2).fit(table, table.gift)
    assert text_features(model, table) == ("note",)
    alone = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression()).fit(table[["region"]], table.gift)
    assert text_features(alone, table[["region"]]) == ()


def test_a_manifest_keeps_the_frame() -> None:
    frame = frame_of(orders(), ORDERS)
    assert msgspec.convert(msgspec.to_builtins(frame.to_dict()), type(frame)) == frame
