"""Columns of dates: their form, decided over the whole column, and their codes.

A form must fit every value of the column. `01/02/2000` may have the day or the month first: the other rows decide, otherwise a
flag.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.artifacts.dates import (
    EPOCHS,
    MAX_FORMATS,
    MONTHS,
    WEEKDAYS,
    DateForm,
    InvalidDate,
    parser,
    parts_of,
    pattern,
)
from serve_app.tables.arrow_dates import codes
from serve_app.tables.unusable import UnusableColumn

SAMPLE = 50
"""Number of distinct texts for a first check: a column without a date among them is not a column of dates."""

_DAY_FIRST = ("%d{0}%m{0}%Y", "%d{0}%m{0}%y")
_MONTH_FIRST = ("%m{0}%d{0}%Y", "%m{0}%d{0}%y")
_NUMERIC = ("%Y{0}%m{0}%d", "%Y{0}%m", "%m{0}%Y")
_NAMED = (
    *(
        "%b %d %Y",
        "%b %d, %Y",
        "%d %b %Y",
        "%d %b, %Y",
        "%d. %b %Y",
        "%d-%b-%Y",
        "%d-%b-%y",
        "%d/%b/%Y",
        "%d%b%Y",
        "%d%b%y",
        "%d %b %y",
    ),
    *(
        "%b-%y",
        "%b %y",
        "%b/%y",
        "%b %Y",
        "%b, %Y",
        "%b-%Y",
        "%b/%Y",
        "%Y %b",
        "%Y-%b",
        "%Y/%b",
        "%Y %b %d",
        "%Y-%b-%d",
        "%Y/%b/%d",
        "%b-%d-%Y",
        "%b/%d/%Y",
    ),
    *("%Y-W%V", "%Y-W%V-%u", "%YW%V", "%YQ%q", "%Y-Q%q", "%Y Q%q", "Q%q %Y", "Q%q-%Y", "Q%q/%Y", "%YM%m"),
)
_TIMES = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%I:%M%p", "%I:%M:%S%p", "%I %p", "%I%p")
_WHOLE = (
    *("%a %b %d %H:%M:%S %Y", "%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z", "%d/%b/%Y:%H:%M:%S %z", "%d%b%Y:%H:%M:%S"),
    *("%Y%m%d", "%Y%m", "%Y", "%Y%m%dT%H%M%S", "%Y%m%dT%H%M%S%z"),
)
_ZEROS = str.maketrans("123456789", "000000000")
_CODE = {"Y": "4", "b": "b", "B": "b", "a": "a", "A": "a", "p": "p", "z": "z", "f": "f"}
_ZONE = re.compile(r"(?<=[0-9pM])( ?)(?:Z|UTC|GMT|(?<=[0-9 ])[+-][0-9]{2}:?[0-9]{2})(?=$| [0-9]{4}$)")
_TAGS = {**{name[:3]: "b" for name in MONTHS}, **{name[:3]: "a" for name in WEEKDAYS}}


@dataclass(frozen=True, slots=True)
class DateColumn:
    """A column of dates: the codes with NaN for missing values, shape (rows,), and the form for the signature."""

    values: npt.NDArray[np.float64]
    form: DateForm


@dataclass(frozen=True, slots=True)
class _Reading:
    """One interpretation of texts: the formats besides ISO, and the texts that are not dates in it."""

    formats: tuple[str, ...]
    zoned: bool
    wrong: tuple[str, ...]


def date_column(name: str, column: pd.Series[Any], formats: Sequence[str] | None = None) -> DateColumn | None:
    """The column as dates; None when it does not hold dates. `formats` declare it: formats of `strptime`, or a key of EPOCHS.

    Raises UnusableColumn when some values are not dates, when the order of day and month is ambiguous, and when a declared column
    cannot be read.
    """
    if column.isna().all():
        return None
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return _timestamps(column)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return None if formats is None else _numbers(name, column, formats)
    filled = column.dropna()
    kinds = set(filled.map(type))
    if all(issubclass(kind, dt.date | dt.time) for kind in kinds):
        return _objects(name, column)
    if kinds != {str}:
        if formats is None:
            return None
        raise UnusableColumn(name, "is declared as dates but does not hold dates", "omit --date")
    return _texts(name, column, formats)


def dates_within(texts: Sequence[str]) -> bool:
    """Whether more than half of the texts are dates."""
    reading = _best(texts)
    return reading is not None and 2 * len(reading.wrong) < len(texts)


def _timestamps(column: pd.Series[Any]) -> DateColumn:
    """Timestamps of Parquet, converted to UTC when they name a zone."""
    zoned = getattr(column.dtype, "tz", None) is not None
    gaps = column.isna().to_numpy()
    naive = column.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else column
    microseconds = naive.astype("datetime64[us]").to_numpy().astype(np.int64)
    return _with_form(codes(microseconds, gaps), (), zoned=zoned, has_days=True)


def _with_form(values: npt.NDArray[np.float64], formats: tuple[str, ...], *, zoned: bool, has_days: bool) -> DateColumn:
    has_times = bool(np.nanmax(values - np.floor(values)) > 0)
    return DateColumn(values, DateForm(parts_of(formats, has_days=has_days, has_times=has_times), formats, zoned))


def _objects(name: str, column: pd.Series[Any]) -> DateColumn | None:
    """Dates without a time and times of day from Parquet, which pandas keeps as objects."""
    texts = column.map(lambda value: value.isoformat(), na_action="ignore")
    return _texts(name, texts.astype(object), ())


def _numbers(name: str, column: pd.Series[Any], formats: Sequence[str]) -> DateColumn | None:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    epoch = shlex.quote(f"{name}=s")
    unit = next((EPOCHS[text] for text in formats if text in EPOCHS), None)
    if unit is not None:
        with np.errstate(invalid="ignore"):
            return _epochs(name, values, tuple(formats), unit)
    whole = values[~np.isnan(values)]
    if not (whole == np.rint(whole)).all() or np.abs(whole).max() > 1e15:
        raise UnusableColumn(name, "holds numbers, which are not dates", f"read seconds since 1970 with --epoch {epoch}")
    texts = pd.Series([np.nan if np.isnan(value) else str(int(value)) for value in values], dtype=object)
    try:
        return _texts(name, texts, formats)
    except UnusableColumn as error:
        raise UnusableColumn(name, error.why, f"{error.fix}, read seconds since 1970 with --epoch {epoch}") from None


def _epochs(name: str, values: npt.NDArray[np.float64], formats: tuple[str, ...], unit: float) -> DateColumn:
    parse = parser(DateForm(formats=formats))
    filled = values[~np.isnan(values)]
    try:
        parse(float(filled.min())), parse(float(filled.max()))
    except InvalidDate as error:
        raise UnusableColumn(name, f"holds a number that {error}", "name the unit, s or ms, with --epoch") from None
    return _with_form(codes(np.rint(values * unit), np.isnan(values)), formats, zoned=False, has_days=True)


def _texts(name: str, column: pd.Series[Any], formats: Sequence[str] | None) -> DateColumn | None:
    """The codes of texts; None when the column does not hold dates and is not declared."""
    numbers, distinct = pd.factorize(column)
    texts = [text.strip() for text in distinct.tolist()]
    if formats:
        reading: _Reading | None = _declared(name, texts, tuple(formats))
    else:
        sample = texts[:SAMPLE]
        if formats is None and not any(_skeleton(text) in _table() for text in sample):
            return None
        reading = _best(texts, name=name, compact=formats is not None)
    if reading is None or 2 * len(reading.wrong) >= len(texts):
        if formats is None:
            return None
        wrong, known = texts[:1], f"name their form with --date {shlex.quote(name + '=%d/%m/%Y')}"
    else:
        wrong, known = list(reading.wrong[:1]), "correct it, leave it empty"
    if wrong:
        row = int(np.flatnonzero(numbers == texts.index(wrong[0]))[0]) + 1
        fix = f"{known}, read it as missing with --na {shlex.quote(wrong[0][:40])}"
        if formats is None:
            fix += f", keep its values as texts with --category {shlex.quote(name)}"
        raise UnusableColumn(name, f"holds dates, but row {row} says '{wrong[0][:40]}'", fix)
    assert reading is not None
    is_time = not reading.formats and ":" in texts[0][:3]
    parse = parser(DateForm(("hour",) if is_time else ("days",), reading.formats, reading.zoned))
    table = np.array([parse(text) for text in texts] + [np.nan])
    values = table[numbers]
    if is_time:
        return DateColumn(values, DateForm(("hour",)))
    has_days = not reading.formats and any(len(text) > 7 for text in texts)
    return _with_form(values, reading.formats, zoned=reading.zoned, has_days=has_days)


def _declared(name: str, texts: Sequence[str], formats: tuple[str, ...]) -> _Reading:
    for text in formats:
        try:
            pattern(text)
        except ValueError as error:
            raise UnusableColumn(name, f"is declared as dates, but {error}", "name its form, for example %d/%m/%Y") from None
    zoned = any("%z" in text for text in formats)
    return _Reading(formats, zoned, _wrong(texts, formats, zoned))


def _wrong(texts: Sequence[str], formats: tuple[str, ...], zoned: bool, *, clock: bool = False) -> tuple[str, ...]:
    """The texts that are not dates in these formats; without formats, in ISO 8601, as times with `clock`."""
    is_time = parts_of(formats, has_days=False, has_times=True) == ("hour",) if formats else clock
    parse = parser(DateForm(("hour",) if is_time else ("days",), formats, zoned))
    wrong = []
    for text in texts:
        try:
            parse(text)
        except InvalidDate:
            wrong.append(text)
    return tuple(wrong)


def _best(texts: Sequence[str], *, name: str = "", compact: bool = False) -> _Reading | None:
    """The interpretation in which the most texts are dates. With a `name`, raises UnusableColumn for an ambiguous order."""
    groups: dict[str, list[str]] = {}
    shapes: dict[str, str] = {}
    for text in texts:
        zeros = text.translate(_ZEROS)  # thousands of texts have few shapes
        if zeros not in shapes:
            shapes[zeros] = _skeleton(text)
        groups.setdefault(shapes[zeros], []).append(text)
    known = {skeleton: group for skeleton, group in groups.items() if _candidates(skeleton, compact=compact)}
    if not known or len(known) > MAX_FORMATS:
        return None
    others = tuple(text for skeleton, group in groups.items() if skeleton not in known for text in group)
    zones = {skeleton: "z" in skeleton for skeleton in known}
    clocks = {_is_clock(skeleton) for skeleton in known}
    if len(set(zones.values())) > 1 and not others and name:
        raise UnusableColumn(name, "mixes dates with and without a time zone", "write all dates in the same form")
    if len(clocks) > 1 or len(set(zones.values())) > 1:
        return None
    zoned = any(zones.values())
    day_first = _in_order(known, "d", others, zoned=zoned, compact=compact)
    if not any(_order(text) for skeleton in known for text in _candidates(skeleton, compact=compact)):
        return day_first
    month_first = _in_order(known, "m", others, zoned=zoned, compact=compact)
    same = day_first.wrong == month_first.wrong and 2 * len(day_first.wrong) < len(texts)
    if name and same and day_first.formats != month_first.formats:
        options = [
            f"--date {shlex.quote(f'{name}={text}')}"
            for reading in (day_first, month_first)
            for text in _differing(reading, day_first, month_first)
        ]
        why = f"holds dates like '{texts[0][:40]}', which may have the day or the month first"
        raise UnusableColumn(name, why, f"choose with {' or '.join(options)}")
    return min((day_first, month_first), key=lambda reading: len(reading.wrong))


def _differing(reading: _Reading, *readings: _Reading) -> list[str]:
    return [text for text in reading.formats if not all(text in other.formats for other in readings)][:1]


def _in_order(known: Mapping[str, list[str]], order: str, others: tuple[str, ...], *, zoned: bool, compact: bool) -> _Reading:
    """The interpretation of the texts with the day (`d`) or the month (`m`) first."""
    formats: list[str] = []
    wrong = list(others)
    for skeleton, group in known.items():
        options: list[tuple[str, ...]] = [()] if _is_iso(skeleton) else []
        options += [(text,) for text in _candidates(skeleton, compact=compact) if _order(text) in ("", order)]
        clock = _is_clock(skeleton)
        readings = [_Reading(chosen, zoned, _wrong(group, chosen, zoned, clock=clock)) for chosen in options]
        best = min(readings, key=lambda reading: len(reading.wrong))
        formats += [text for text in best.formats if text not in formats]
        wrong += best.wrong
    return _Reading(tuple(formats), zoned, tuple(wrong))


def _is_iso(skeleton: str) -> bool:
    return skeleton.startswith(("4-9", "9:9"))


def _is_clock(skeleton: str) -> bool:
    """Whether texts of this shape are times of day."""
    return re.fullmatch(r"9(:9){0,2}(\.f)? ?p?", skeleton) is not None


def _order(text: str) -> str:
    letters = re.sub("[^dm]", "", re.sub("%([a-zA-Z])|.", r"\1", text.replace("%M", "")))
    return letters[:1] if set(letters) == {"d", "m"} and not text.startswith("%Y") else ""


def _candidates(skeleton: str, *, compact: bool) -> Sequence[str]:
    """The formats of texts of this shape; with `compact`, texts of only digits are dates, too."""
    options = _table().get(skeleton, ())
    return options if compact or not skeleton.isdigit() else ()


@functools.cache
def _table() -> Mapping[str, tuple[str, ...]]:
    """The formats by the shape of their texts."""
    dates = [*_NAMED, *(text.format(mark) for text in (*_NUMERIC, *_DAY_FIRST, *_MONTH_FIRST) for mark in "/-.")]
    dates += [text.format(" ") for text in _NUMERIC[:1]]
    dates += [f"{weekday}{text}" for text in dates if "%d" in text for weekday in ("%a ", "%a, ")]
    times = ["", *(f"{mark}{text}{zone}" for text in _TIMES for mark in (" ", "T", ", ") for zone in ("", "%z", " %z"))]
    table: dict[str, dict[str, None]] = {}
    formats = [
        *_WHOLE,
        *_TIMES,
        *(f"{date.replace('%Y-W%V', '%G-W%V').replace('%YW%V', '%GW%V')}{time}" for date in dates for time in times),
    ]
    for text in formats:
        table.setdefault(_shape(text), {})[text] = None
    return {shape: tuple(options) for shape, options in table.items()}


def _shape(text: str) -> str:
    text = text.replace("%Y%m%d", "8").replace("%Y%m", "6").replace("%H%M%S", "6").replace("%G", "%Y")
    return re.sub("%([a-zA-Z])", lambda match: _CODE.get(match[1], "9"), text)


def _skeleton(text: str) -> str:
    """The shape of a text: digits, names of months and weekdays, halves of the day and zones become one letter each."""
    if len(text) > 60:
        return ""
    text = re.sub(r"\b([ap])\.m\.", r"\1m", text, flags=re.IGNORECASE)
    text = re.sub(r"(:[0-9]{2})\.[0-9]+", r"\1.f", _ZONE.sub(r"\1~", re.sub("(?<=[0-9 ])[ap]m", "pM", text, flags=re.IGNORECASE)))
    text = re.sub("[0-9]+", lambda match: {4: "4", 6: "6", 8: "8"}.get(len(match[0]), "9"), text)
    text = re.sub(r"[A-Za-z]{3,}(?=\.?)", _word, text).replace("pM", "p").replace("~", "z")
    return " ".join(text.split())


def _word(match: re.Match[str]) -> str:
    word = match[0].lower()
    names = MONTHS if _TAGS.get(word[:3]) == "b" else WEEKDAYS
    known = word == "sept" or any(word in (name, name[:3]) for name in names)
    return _TAGS.get(word[:3], match[0]) if known else match[0]
