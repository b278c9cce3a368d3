"""The form of a column, decided over all of its rows."""

from __future__ import annotations

import datetime as dt
import shlex
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serve_app.artifacts.dates import write
from serve_app.errors import UsageError
from serve_app.tables.date_columns import DateColumn, date_column

DATE = ("days", "year", "month", "day", "weekday")
MOMENT = (*DATE, "hour")


def read(values: Any, formats: Any = None) -> DateColumn:
    column = date_column("when", pd.Series(values), formats)
    assert column is not None
    return column


@pytest.mark.parametrize(
    ("values", "formats", "parts", "first"),
    [
        (["2000-01-31", "2000-02-01"], (), DATE, "2000-01-31"),
        (["2000-01", "2000-02"], (), ("days", "year", "month"), "2000-01-01"),
        (["2000-01-31", None, "2000-02-01 10:30"], (), MOMENT, "2000-01-31"),
        (["2000-01-31 00:00:00", "2000-02-01 00:00:00"], (), DATE, "2000-01-31"),
        (["2000/01/31", "2000/02/01"], ("%Y/%m/%d",), DATE, "2000-01-31"),
        (["31/1/2000", "1/2/2000"], ("%d/%m/%Y",), DATE, "2000-01-31"),
        (["1/2/2000", "1/31/2000"], ("%m/%d/%Y",), DATE, "2000-01-02"),
        (["1/2/00", "1/31/00"], ("%m/%d/%y",), DATE, "2000-01-02"),
        (["31.01.2000", "01.02.2000"], ("%d.%m.%Y",), DATE, "2000-01-31"),
        (["Jan 31 2000", "May 1 2000"], ("%b %d %Y",), DATE, "2000-01-31"),
        (["January 31, 2000"], ("%b %d, %Y",), DATE, "2000-01-31"),
        (["Monday, 31 January 2000"], ("%a, %d %b %Y",), DATE, "2000-01-31"),
        (["31-Jan-00"], ("%d-%b-%y",), DATE, "2000-01-31"),
        (["31JAN2000"], ("%d%b%Y",), DATE, "2000-01-31"),
        (["Jan-00", "Feb-00"], ("%b-%y",), ("days", "year", "month"), "2000-01-01"),
        (["2000Q2", "2000Q3"], ("%YQ%q",), ("days", "year", "month"), "2000-04-01"),
        (["2000-W05", "2000-W06"], ("%G-W%V",), DATE, "2000-01-31"),
        (["1/31/2000 1:05 PM", "2/1/2000 12:05 AM"], ("%m/%d/%Y %I:%M %p",), MOMENT, "2000-01-31T13:05:00"),
        (["1/31/2000", "2/1/2000 13:05"], ("%m/%d/%Y", "%m/%d/%Y %H:%M"), MOMENT, "2000-01-31"),
        (["00:00:00", "13:05:00"], (), ("hour",), "00:00:00"),
        (["9:30", "13:05"], ("%H:%M",), ("hour",), "09:30:00"),
        (["9:30 AM", "1:05 PM"], ("%I:%M %p",), ("hour",), "09:30:00"),
        (["2000-01-31T12:00:00Z", "2000-02-01T00:00:00+02:00"], (), MOMENT, "2000-01-31T12:00:00Z"),
        (["Mon Jan 31 12:00:00 2000"], ("%a %b %d %H:%M:%S %Y",), MOMENT, "2000-01-31T12:00:00"),
    ],
)
def test_a_common_form_is_recognised(values: Any, formats: Any, parts: Any, first: str) -> None:
    column = read(values)
    assert (column.form.formats, column.form.parts) == (formats, parts)
    assert write(column.values[0], column.form) == first
    assert np.isnan(column.values).tolist() == [value is None for value in values]


@pytest.mark.parametrize(
    "values",
    [
        ["red", "blue"],
        ["red", "blue", "2000-01-01"],
        ["1.2", "1.3"],
        ["16:9", "4:3"],
        ["10-20", "20-30"],
        ["may", "june"],
        ["Monday", "Friday"],
        ["1999-00", "2000-01"],
        ["20000131", "20000201"],
        ["555-1234", "555-9999"],
        ["1.2.3", "1.10.0"],
        ["192.168.0.1"],
        [20000131, 20000201],
        [1.5, None],
        [True, False],
        [None, None],
    ],
)
def test_other_columns_are_no_dates(values: Any) -> None:
    assert date_column("when", pd.Series(values, dtype=None)) is None


def test_the_order_of_day_and_month_is_asked_for_when_no_row_decides() -> None:
    with pytest.raises(UsageError) as refusal:
        read(["1/2/2000", "3/4/2000"])
    flags = [word for word in shlex.split(str(refusal.value).replace(",", " ")) if word.startswith("when=")]
    assert flags == ["when=%d/%m/%Y", "when=%m/%d/%Y"]
    days = [read(["1/2/2000", "3/4/2000"], [flag.removeprefix("when=")]).values[0] for flag in flags]
    assert [write(day, read(["2000-01-01"]).form) for day in days] == ["2000-02-01", "2000-01-02"]


@pytest.mark.parametrize(
    ("values", "row"),
    [
        (["2000-01-31", "2000-02-01", "soon"], 3),
        (["2000-01-31", "2000-02-30", "2000-03-01"], 2),
        (["31/1/2000", "1/13/2000", "1/2/2000"], 2),
    ],
)
def test_a_text_among_dates_is_named_by_its_row(values: Any, row: int) -> None:
    with pytest.raises(UsageError, match=f"row {row} says"):
        read(values)


def test_dates_with_and_without_zones_are_refused() -> None:
    with pytest.raises(UsageError, match="time zone"):
        read(["2000-01-31T12:00:00Z", "2000-01-31T12:00:00"])


@pytest.mark.parametrize(
    ("values", "formats", "first"),
    [
        ([20000131, 20000201], (), "2000-01-31"),
        ([20000131.0, None], ("%Y%m%d",), "2000-01-31"),
        ([200001, 200002], (), "2000-01-01"),
        ([2000, 2001], (), "2000-01-01"),
        (["1/2/2000"], ("%d/%m/%Y",), "2000-02-01"),
        ([949320000, None], ("epoch s",), "2000-01-31T12:00:00"),
        ([949320000000.0], ("epoch ms",), "2000-01-31T12:00:00"),
    ],
)
def test_a_declared_column_is_read_as_declared(values: Any, formats: Any, first: str) -> None:
    column = read(values, formats)
    assert write(column.values[0], column.form) == first


@pytest.mark.parametrize(
    ("values", "formats"),
    [
        (["red", "blue"], ()),
        (["2000-13-01", "x"], ("%d/%m/%Y",)),
        (["1/2/2000"], ("%q",)),
        ([1.5, 2.5], ()),
        ([949320000], ()),
        ([1e300], ("epoch s",)),
        ([949320000000], ("epoch s",)),
        ([True, "a"], ()),
    ],
)
def test_a_declaration_that_does_not_fit_is_refused(values: Any, formats: Any) -> None:
    with pytest.raises(UsageError):
        read(values, formats)


def test_types_of_parquet() -> None:
    moments = pd.Series([pd.Timestamp("2000-01-31 12:00"), pd.NaT])
    assert write(read(moments).values[0], read(moments).form) == "2000-01-31T12:00:00"
    berlin = read(moments.dt.tz_localize("Europe/Berlin"))
    assert write(berlin.values[0], berlin.form) == "2000-01-31T11:00:00Z"
    assert read([dt.date(2000, 1, 31), None]).form.parts == DATE
    assert read([dt.time(9, 30), None]).values[0] * 24 == 9.5


@pytest.mark.timeout(60)
def test_a_long_column_is_read() -> None:
    moments = pd.date_range("1990-01-01", periods=30_000, freq="h")
    column = read(moments.strftime("%m/%d/%Y %I:%M %p"))
    assert column.form.formats == ("%m/%d/%Y %I:%M %p",)
    assert (column.values == (moments - pd.Timestamp(0)) / pd.Timedelta(days=1)).all()
