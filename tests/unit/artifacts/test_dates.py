"""Texts to codes and back."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.dates import LAST, DateForm, InvalidDate, as_sent, encode, parser, pattern, write

PLAIN, ZONED, CLOCK = DateForm(), DateForm(zoned=True), DateForm(("hour",))
EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - dates of tables have no zone


WRONG: tuple[Any, ...] = (
    *("", "x", "2001-02-29", "2001-13-01", "2001-3-4", "0000-01-01", "2001-03-04T25:00:00", "2001-03-04T05:00:60", "2001-03-04 "),
    *(" 2001-03-04", "2001-03-04\n", "\u0662\u0660\u0660\u0661-03-04", 12, 1.5, True, [], {}),
)
"""No dates in ISO 8601."""


def code_of(text: Any, *formats: str, **options: Any) -> float:
    return parser(DateForm(formats=formats, **options))(text)


@given(st.datetimes(), st.sampled_from([PLAIN, ZONED]))
def test_a_moment_that_is_written_is_read_as_the_same_code(moment: dt.datetime, form: DateForm) -> None:
    code = encode(round((moment - EPOCH) / dt.timedelta(microseconds=1)))
    if code < LAST:
        assert parser(form)(write(code, form)) == code
        assert parser(form)(as_sent(code, form)) == code


@given(st.datetimes(dt.datetime(1800, 1, 1), dt.datetime(2149, 1, 1)))  # noqa: DTZ001
def test_python_reads_what_is_written_as_the_same_moment(moment: dt.datetime) -> None:
    code = parser(PLAIN)(moment.isoformat())
    assert dt.datetime.fromisoformat(write(code, PLAIN)) == moment
    assert parser(PLAIN)(moment.isoformat(" ")) == code


@given(st.integers(0, 86_399_999_999))
def test_a_time_of_day_that_is_written_is_read_as_the_same_code(microseconds: int) -> None:
    code = encode(microseconds)
    assert parser(CLOCK)(write(code, CLOCK)) == code


@given(st.integers(-60_000_000_000, 250_000_000_000), st.sampled_from(["epoch s", "epoch ms"]))
def test_a_number_of_an_epoch_that_is_written_is_read_as_the_same_code(seconds: int, unit: str) -> None:
    form = DateForm(formats=(unit,))
    code = encode(seconds * 1_000_000)
    assert parser(form)(as_sent(code, form)) == code
    assert parser(form)(seconds if unit == "epoch s" else seconds * 1000) == code
    assert parser(form)(str(seconds) if unit == "epoch s" else f"{seconds}000") == code


@pytest.mark.parametrize(
    ("text", "formats", "day"),
    [
        ("2001-03-04", (), dt.date(2001, 3, 4)),
        ("2001-03", (), dt.date(2001, 3, 1)),
        ("2001-03-04", ("%d/%m/%Y",), dt.date(2001, 3, 4)),
        ("4/3/2001", ("%d/%m/%Y",), dt.date(2001, 3, 4)),
        ("03/04/01", ("%m/%d/%y",), dt.date(2001, 3, 4)),
        ("03/04/69", ("%m/%d/%y",), dt.date(1969, 3, 4)),
        ("03/04/68", ("%m/%d/%y",), dt.date(2068, 3, 4)),
        ("March 4, 2001", ("%b %d, %Y",), dt.date(2001, 3, 4)),
        ("MAR  4 2001", ("%b %d %Y",), dt.date(2001, 3, 4)),
        ("Sept 4 2001", ("%b %d %Y",), dt.date(2001, 9, 4)),
        ("Sun, 4 Mar 2001", ("%a, %d %b %Y",), dt.date(2001, 3, 4)),
        ("2001-W09", ("%G-W%V",), dt.date(2001, 2, 26)),
        ("2001-W09-7", ("%G-W%V-%u",), dt.date(2001, 3, 4)),
        ("2001Q3", ("%YQ%q",), dt.date(2001, 7, 1)),
        ("2001.063", ("%Y.%j",), dt.date(2001, 3, 4)),
        ("20010304", ("%Y%m%d",), dt.date(2001, 3, 4)),
        ("2001", ("%Y",), dt.date(2001, 1, 1)),
        (20010304, ("%Y%m%d",), dt.date(2001, 3, 4)),
        (2001.0, ("%Y",), dt.date(2001, 1, 1)),
        ("20010304.0", ("%Y%m%d",), dt.date(2001, 3, 4)),
        ("29.2.2000", ("%d.%m.%Y",), dt.date(2000, 2, 29)),
    ],
)
def test_a_date_in_a_common_form(text: Any, formats: tuple[str, ...], day: dt.date) -> None:
    assert code_of(text, *formats) == day.toordinal() - dt.date(1970, 1, 1).toordinal()


@pytest.mark.parametrize(
    ("text", "formats", "hours"),
    [
        ("12:00 AM", ("%I:%M %p",), 0.0),
        ("12:30 p.m.", ("%I:%M %p",), 12.5),
        ("1:15PM", ("%I:%M%p",), 13.25),
        ("23:59:30.5", (), 23 + 59 / 60 + 30.5 / 3600),
        ("7:30", ("%H:%M",), 7.5),
    ],
)
def test_a_time_of_day(text: str, formats: tuple[str, ...], hours: float) -> None:
    assert code_of(text, *formats, parts=("hour",)) * 24 == pytest.approx(hours, abs=1e-9)


@pytest.mark.parametrize(
    "text", ["2001-03-04T05:00:00Z", "2001-03-04 05:00+00:00", "2001-03-04T07:00:00+0200", "2001-03-03T21:00:00-08:00"]
)
def test_zones_become_utc(text: str) -> None:
    assert write(code_of(text, zoned=True), ZONED) == "2001-03-04T05:00:00Z"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        *((text, {}) for text in WRONG),
        ("2001-03-04T05:00:00Z", {}),
        ("2001-03-04T05:00:00", {"zoned": True}),
        ("2001-03-04", {"zoned": True}),
        ("0001-01-01T00:00:00+05:00", {"zoned": True}),
        ("9999-12-31T23:00:00-05:00", {"zoned": True}),
        ("31/04/2001", {"formats": ("%d/%m/%Y",)}),
        ("13:00 PM", {"formats": ("%I:%M %p",), "parts": ("hour",)}),
        ("2001-03-04", {"parts": ("hour",)}),
        (1e300, {"formats": ("epoch s",)}),
        *((number, {"formats": ("%Y%m%d",)}) for number in (20010304.5, 20011304, 1e300, float("inf"), float("nan"), True)),
        (-1e12, {"formats": ("epoch s",)}),
        (True, {"formats": ("epoch s",)}),
        ("1e3", {"formats": ("epoch s",)}),
    ],
)
def test_what_is_no_date_of_the_form_is_refused(text: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidDate):
        parser(DateForm(**options))(text)


@pytest.mark.parametrize(
    "text", ["", "%", "%Q", "%d", "%d/%m", "%m/%d", "%Y %Y", "%b %B %Y", "%M", "%I:%M", "%H:%M %z", "%Y-%z", "%Y" + "x" * 60]
)
def test_a_format_that_names_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="date format"):
        pattern(text)


@given(st.text(max_size=70), st.sampled_from([PLAIN, ZONED, CLOCK, DateForm(formats=("%b %d, %Y %I:%M %p", "%d.%m.%y"))]))
def test_any_text_is_a_code_or_refused(text: str, form: DateForm) -> None:
    try:
        code = parser(form)(text)
    except InvalidDate:
        return
    assert -719_163 < code < LAST + 1
