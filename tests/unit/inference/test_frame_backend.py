"""Models that take a pandas frame get the frame that they were fitted on, whatever way the rows came."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import msgspec
import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.dates import FIRST, LAST, MICROSECONDS, DateForm, encode
from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.frame_columns import check_frame, fits
from serve_app.artifacts.manifest import Frame, Manifest
from serve_app.artifacts.matrix import matrix_type
from serve_app.artifacts.signature import UNSEEN, Feature, Signature
from serve_app.errors import BundleRefused
from serve_app.inference.backends.frame_backend import frame_builder, moments
from serve_app.inference.predictor import open_predictor
from tests.support.frame_models import ORDERS, frame_manifest, json_of, orders, orders_bundle, orders_model
from tests.support.native import answer_row, answer_rows
from tests.support.policies import ALLOW_ALL
from tests.support.signatures import signatures
from training.frames import frame_of


def opened(manifest: Manifest | None = None, files: dict[str, bytes] | None = None) -> Any:
    own_files, own = orders_bundle()
    return open_predictor(Bundle("1", "0" * 64, manifest or own, {}, files or own_files), ALLOW_ALL)


def refusal(manifest: Manifest) -> str:
    with pytest.raises(BundleRefused) as refused:
        opened(manifest)
    assert refused.value.final
    return refused.value.reason


def one_column(feature: Feature, dtype: str, *values: float, **frame: Any) -> pd.Series[Any]:
    """The column that coded values become."""
    signature = Signature((feature,), "regression")
    build = frame_builder(signature, Frame(dtypes={feature.name: dtype}, **frame))
    return build(np.array(values, np.float64).reshape(-1, 1))[feature.name]


def test_rows_of_requests_become_the_frame_that_the_model_was_fitted_on() -> None:
    table = orders()
    frame = frame_of(table, ORDERS)
    manifest = Manifest.from_dict(orjson.loads(orjson.dumps(Manifest(signature=ORDERS, frame=frame).to_dict())))
    assert manifest.frame == frame
    assert manifest.signature is not None
    built = frame_builder(manifest.signature, manifest.frame)(read_rows(ORDERS, json_of(table)))
    pd.testing.assert_frame_equal(built, table)


def test_answers_are_those_of_the_estimator_row_by_row_and_in_batches() -> None:
    table, predictor = orders()[:40], opened()
    assert predictor.kind == "frame"
    together = orjson.loads(answer_rows(predictor, orjson.dumps({"instances": json_of(table)})))["predictions"]
    expected = orders_model().predict_proba(table)
    assert [list(answer["probabilities"].values()) for answer in together] == expected.tolist()
    for at, row in enumerate(json_of(table)):
        alone = orjson.loads(answer_row(predictor, orjson.dumps(row)))
        assert list(alone["probabilities"].values()) == orders_model().predict_proba(table[at : at + 1])[0].tolist()


def test_a_gap_alone_in_its_row_is_the_gap_of_training_and_no_unknown_value() -> None:
    table, predictor = orders(), opened()
    row = table[table.region.isna()][:1]
    answer = orjson.loads(answer_row(predictor, orjson.dumps(json_of(row)[0])))
    assert list(answer["probabilities"].values()) == orders_model().predict_proba(row)[0].tolist()


def test_an_unseen_category_is_answered_like_a_value_that_the_model_does_not_know() -> None:
    table, predictor = orders()[:1], opened()
    row = json_of(table)[0]
    answer = orjson.loads(answer_row(predictor, orjson.dumps({**row, "region": "Mars", "grade": "77"}), unknown="unseen"))
    strange = table.assign(region=pd.array(["Mars"], dtype="str"), grade=77)
    assert list(answer["probabilities"].values()) == orders_model().predict_proba(strange)[0].tolist()


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("float64", (1.5, math.nan), [1.5, math.nan]),
        ("float32", (0.1,), [np.float32(0.1)]),
        ("int64", (1.0, 2.0), [1, 2]),
        ("object", (1.0, math.nan), [1.0, math.nan]),
        ("Int64", (1.0, math.nan), [1, pd.NA]),
        ("Float64", (1.5, math.nan), [1.5, pd.NA]),
    ],
)
def test_numbers_have_the_dtype_of_fit(dtype: str, values: tuple[float, ...], expected: list[Any]) -> None:
    pd.testing.assert_series_equal(
        one_column(Feature("x", nullable=True), dtype, *values), pd.Series(expected, name="x", dtype=dtype)
    )


@pytest.mark.parametrize("values", [(1.0, math.nan), (1.5,), (300.0,), (-1.0,)])
def test_integers_that_are_none_stay_the_numbers_that_they_are(values: tuple[float, ...]) -> None:
    column = one_column(Feature("x", nullable=True), "uint8", *values)
    pd.testing.assert_series_equal(column, pd.Series(values, name="x", dtype="float64"))


def test_booleans_have_the_dtype_of_fit_and_gaps_are_nan() -> None:
    feature = Feature("x", "boolean", nullable=True)
    assert one_column(feature, "bool", 1.0, 0.0).tolist() == [True, False]
    assert one_column(feature, "bool", 1.0, 0.0).dtype == bool
    with_gap = one_column(feature, "object", 1.0, math.nan).tolist()
    assert with_gap[0] is True
    assert isinstance(with_gap[1], float)
    assert one_column(feature, "boolean", 1.0, math.nan).isna().tolist() == [False, True]


@pytest.mark.parametrize("dtype", ["str", "object", "string", "category"])
def test_the_text_of_an_unseen_category_is_none_of_the_known_ones(dtype: str) -> None:
    feature = Feature("x", "category", categories=("a", "unseen"), nullable=True)
    column = one_column(feature, dtype, 0.0, UNSEEN, math.nan)
    assert column[0] == "a"
    assert column[1] not in ("a", "unseen")
    assert isinstance(column[1], str)
    assert column.isna().tolist() == [False, False, True]
    assert column[2] is not None


def test_categories_that_were_no_texts_are_what_they_were() -> None:
    numbers = Feature("x", "category", categories=("1", "10", "2"))
    column = one_column(numbers, "int64", 1.0, 2.0, values={"x": (1, 10, 2)})
    assert column.dtype == np.int64
    assert column.tolist() == [10, 2]
    assert one_column(numbers, "int64", UNSEEN, values={"x": (1, 10, 2)}).tolist() == [11]
    truths = Feature("x", "category", categories=("false", "true"))
    assert one_column(truths, "bool", 1.0, 0.0, values={"x": (False, True)}).tolist() == [True, False]


def test_a_category_dtype_has_the_order_of_fit_and_an_unseen_value_of_its_own() -> None:
    feature = Feature("x", "category", categories=("L", "M", "S"))
    column = one_column(feature, "category", 0.0, 2.0, order={"x": (2, 1, 0)}, ordered=("x",))
    pd.testing.assert_series_equal(column, pd.Series(pd.Categorical(["L", "S"], ["S", "M", "L"], ordered=True), name="x"))
    wider = one_column(feature, "category", UNSEEN, 1.0, order={"x": (2, 1, 0)})
    assert wider.cat.categories.tolist()[:3] == ["S", "M", "L"]
    assert wider.isna().sum() == 0


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_dates_are_timestamps_of_the_dtype_of_fit(unit: str) -> None:
    moment = pd.Timestamp("2025-03-04T05:06:07")
    code = encode(round(moment.timestamp()) * 1_000_000)
    column = one_column(Feature("x", "date", date=DateForm(), nullable=True), f"datetime64[{unit}]", code, math.nan)
    pd.testing.assert_series_equal(column, pd.Series([moment, pd.NaT], name="x", dtype=f"datetime64[{unit}]"))
    zoned = Feature("x", "date", date=DateForm(zoned=True), nullable=True)
    column = one_column(zoned, f"datetime64[{unit}, Europe/Zurich]", code, math.nan)
    expected = pd.Series([moment.tz_localize("UTC").tz_convert("Europe/Zurich"), pd.NaT], name="x")
    dtype: Any = f"datetime64[{unit}, Europe/Zurich]"
    pd.testing.assert_series_equal(column, expected.astype(dtype))


def test_a_date_that_nanoseconds_cannot_count_stays_right() -> None:
    code = float((np.datetime64("3000-01-01") - np.datetime64("1970-01-01")).astype(int))
    assert one_column(Feature("x", "date", date=DateForm()), "datetime64[ns]", code)[0] == pd.Timestamp("3000-01-01")


def test_dates_may_be_texts_or_numbers_of_an_epoch() -> None:
    assert one_column(Feature("x", "date", date=DateForm()), "str", 20_000.0).tolist() == ["2024-10-04"]
    epoch = Feature("x", "date", date=DateForm(formats=("epoch s",)))
    assert one_column(epoch, "int64", 1.5).tolist() == [129_600]


@given(st.integers(-5_600_000_000_000_000, 5_600_000_000_000_000))
def test_the_moment_of_a_code_is_the_one_that_it_was_made_of(microseconds: int) -> None:
    assert moments(np.array([encode(microseconds)])).tolist() == [microseconds]


@given(st.floats(-719_162.0, 2_932_896.0))
def test_the_moment_of_any_code_is_within_its_digits(code: float) -> None:
    assert abs(float(moments(np.array([code]))[0]) / MICROSECONDS - code) <= abs(code) * 2**-52 + 1 / MICROSECONDS


DTYPES = {
    "number": ("float64", "float32", "int64", "uint8", "Int64", "Float32", "object"),
    "boolean": ("bool", "boolean", "object"),
    "category": ("str", "object", "string", "category"),
    "date": ("datetime64[us]", "datetime64[ns]", "datetime64[s, Europe/Zurich]", "str", "object", "int64", "float64"),
    "text": ("str", "object", "string"),
}


def coded_value(feature: Feature) -> st.SearchStrategy[Any]:
    """A value as the decoder gives it."""
    gaps = st.just(math.nan) if feature.nullable else st.nothing()
    if feature.kind == "category":
        return gaps | st.integers(-1, len(feature.categories) - 1).map(float)
    if feature.kind == "boolean":
        return gaps | st.sampled_from((0.0, 1.0))
    if feature.kind == "text":
        return gaps | st.text(st.characters(codec="utf-8"), max_size=6)
    if feature.date is not None:
        return gaps | st.floats(0.0 if feature.date.is_time else FIRST, 1.0 if feature.date.is_time else LAST, exclude_max=True)
    return gaps | st.floats(*feature.bounds)


@given(st.data(), signatures())
def test_any_row_of_any_signature_becomes_a_frame_with_gaps_where_the_row_has_them(
    data: st.DataObject, signature: Signature
) -> None:
    dtypes = {
        feature.name: data.draw(st.sampled_from([dtype for dtype in DTYPES[feature.kind] if fits(feature, dtype)]))
        for feature in signature.features
    }
    coded = st.tuples(*(coded_value(feature) for feature in signature.features))
    matrix = np.array(data.draw(st.lists(coded, min_size=1, max_size=3)), matrix_type(has_texts=signature.has_texts))
    frame = Frame(dtypes=dtypes)
    check_frame(frame, signature)
    built = frame_builder(signature, frame)(matrix)
    assert list(built.columns) == list(signature.names)
    gaps = np.array([[value != value for value in row] for row in matrix.tolist()])
    assert np.array_equal(built.isna().to_numpy(), gaps)
    assert not any(value is None for column in built for value in built[column].tolist())


def test_a_model_that_writes_into_its_frame_does_not_write_into_the_rows() -> None:
    build = frame_builder(Signature((Feature("x"),), "regression"), Frame(dtypes={"x": "float64"}))
    matrix = np.ones((2, 1))
    frame = build(matrix)
    frame.loc[:, "x"] = 5.0
    assert frame["x"].tolist() == [5.0, 5.0]
    assert matrix.tolist() == [[1.0], [1.0]]


def test_an_environment_without_pandas_refuses_the_bundle_before_it_unpickles(monkeypatch: pytest.MonkeyPatch) -> None:
    files, manifest = orders_bundle()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "pandas" else find(name, *more))
    with pytest.raises(BundleRefused, match="iris-api\\[frames\\]") as refused:
        opened(manifest, {**files, "model.joblib": b"no pickle"})
    assert (refused.value.reason, refused.value.final) == ("libraries", True)


FRAME = frame_of(orders(), ORDERS)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtypes": {}},
        {"dtypes": {**FRAME.dtypes, "more": "float64"}},
        {"dtypes": {name: dtype for name, dtype in FRAME.dtypes.items() if name != "note"}},
        {"dtypes": {**FRAME.dtypes, "note": "float64"}},
        {"dtypes": {**FRAME.dtypes, "price": "str"}},
        {"dtypes": {**FRAME.dtypes, "price": "datetime64[us]"}},
        {"dtypes": {**FRAME.dtypes, "price": "O"}},
        {"dtypes": {**FRAME.dtypes, "price": "__import__('os')"}},
        {"dtypes": {**FRAME.dtypes, "price": "Sparse[float64]"}},
        {"dtypes": {**FRAME.dtypes, "placed": "datetime64[us, ../../etc/passwd]"}},
        {"values": {"grade": (1, 2)}},
        {"values": {"price": (1, 2, 3)}},
        {"order": {"size": (0, 1, 1)}},
        {"order": {"size": (0, 1)}},
        {"order": {"grade": (0, 1, 2)}},
        {"order": {"nothing": ()}},
        {"ordered": ("note",)},
    ],
    ids=str,
)
def test_a_frame_that_does_not_fit_the_signature_is_refused(changes: dict[str, Any]) -> None:
    assert refusal(frame_manifest(ORDERS, msgspec.structs.replace(FRAME, **changes))) == "manifest"


def test_a_time_zone_that_is_not_known_is_refused() -> None:
    frame = msgspec.structs.replace(FRAME, dtypes={**FRAME.dtypes, "placed": "datetime64[us, Mars/Olympus]"})
    assert refusal(frame_manifest(ORDERS, frame)) == "load"
