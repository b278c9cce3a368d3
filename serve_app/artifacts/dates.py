"""Dates and times as numbers: the forms of a column, and the one parser for training, requests and scoring.

The code of a date is the number of days since 1970-01-01, with the time of day as the fraction, in UTC when the column names zones.
The code of a time of day alone is a fraction of a day. Codes keep microseconds in the years 1791 to 2149; before and after these
years, float64 has fewer digits.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["days", "year", "month", "day", "weekday", "hour"]
"""A number that the model computes from a date: days since the first training day, the year, the month from 1, the day of the month
from 1, the day of the week from 1 (Monday), the hours since midnight with their fraction."""

MICROSECONDS = 86_400_000_000
"""Microseconds of a day."""

EPOCHS: Mapping[str, float] = {"epoch s": 1e6, "epoch ms": 1e3}
"""Forms that are numbers: seconds or milliseconds since 1970-01-01 UTC. The value is the number of microseconds in one unit."""

FIRST, LAST = -719_162.0, 2_932_897.0
"""The codes of the first day of year 1 and of the end of year 9999."""

MAX_FORMATS = 8
MAX_FORMAT = 60
"""Characters in one format."""

MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?" if name[3:] else name for name in MONTHS).replace("sep(?:", "sep(?:t|")
_WEEKDAY = "|".join(f"{name[:3]}(?:{name[3:]})?" for name in WEEKDAYS)
_DIRECTIVES = {
    "Y": "(?P<Y>[0-9]{4})",
    "y": "(?P<y>[0-9]{2})",
    "m": "(?P<m>[0-9]{1,2})",
    "b": f"(?P<b>{_MONTH})",
    "B": f"(?P<b>{_MONTH})",
    "q": "(?P<q>[1-4])",
    "d": "(?P<d>[0-9]{1,2})",
    "j": "(?P<j>[0-9]{1,3})",
    "G": "(?P<G>[0-9]{4})",
    "V": "(?P<V>[0-9]{1,2})",
    "u": "(?P<u>[1-7])",
    "a": f"(?:{_WEEKDAY})",
    "A": f"(?:{_WEEKDAY})",
    "H": "(?P<H>[0-9]{1,2})",
    "I": "(?P<I>[0-9]{1,2})",
    "M": "(?P<M>[0-9]{2})",
    "S": "(?P<S>[0-9]{2})",
    "f": "(?P<f>[0-9]{1,9})",
    "p": r"(?P<p>[ap])\.?m\.?",
    "z": "(?P<z>Z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2})",
    "%": "%",
}
"""The directives of a format, as in Python's `strptime`, and `%q` for a quarter. Names are English, in any case."""

_TIME = "(?P<H>[0-9]{2}):(?P<M>[0-9]{2})(?::(?P<S>[0-9]{2})(?:[.,](?P<f>[0-9]{1,9}))?)?"
_ISO = re.compile(f"(?P<Y>[0-9]{{4}})-(?P<m>[0-9]{{2}})(?:-(?P<d>[0-9]{{2}})(?:[T ]{_TIME}(?: ?{_DIRECTIVES['z']})?)?)?", re.ASCII)
_ISO_TIME = re.compile(_TIME, re.ASCII)
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_ZONE_RULE = "must name its time zone, like 2000-01-31T12:00:00Z"
_NO_ZONE_RULE = "must not name a time zone, because the training table has none"


_DIGITS = re.compile("(?:%[YmdHMS])+")
_WHOLE = re.compile(r"(?<=^[0-9]{4})\.0+$|(?<=^[0-9]{6})\.0+$|(?<=^[0-9]{8})\.0+$", re.ASCII)
"""The fraction that tables with gaps write after whole numbers: `20000131.0`."""


class InvalidDate(ValueError):
    """A value is not a date of a form; the text of the error is the rule that the value breaks."""


@dataclass(frozen=True, slots=True)
class DateForm:
    """The format of the dates in a column, and the `parts` that the model computes from a date.

    A column always accepts ISO 8601. `formats` are further formats, with the directives of `strptime`, or one key of EPOCHS.
    `zoned` dates name their time zone. A column with only the part `hour` holds times of day. Raises ValueError for a format that
    names no date.
    """

    parts: tuple[Part, ...] = ("days", "year", "month", "day", "weekday")
    formats: tuple[str, ...] = ()
    zoned: bool = False

    def __post_init__(self) -> None:
        if not self.parts or len(set(self.parts)) != len(self.parts) or len(self.formats) > MAX_FORMATS:
            raise ValueError(f"a form of dates needs at least one part, each part once, and at most {MAX_FORMATS} formats")
        for text in self.formats:
            if text not in EPOCHS:
                pattern(text)

    @property
    def is_time(self) -> bool:
        """Whether the column holds times of day."""
        return self.parts == ("hour",)

    @property
    def epoch(self) -> float | None:
        """The microseconds of one unit when dates are numbers, else None."""
        return EPOCHS.get(self.formats[0]) if self.formats else None

    @property
    def takes_numbers(self) -> bool:
        """Whether the column accepts numbers: seconds or milliseconds of an epoch, or the digits of a format like %Y%m%d."""
        return self.epoch is not None or any(_DIGITS.fullmatch(text) for text in self.formats)

    def nearest(self, code: float) -> float:
        """The nearest code inside the range of dates, or of times of day."""
        first, last = (0.0, 1.0) if self.is_time else (FIRST, LAST)
        return min(max(code, first), encode(round(last * MICROSECONDS) - 1_000_000))

    @property
    def rule(self) -> str:
        """The rule for a value of the column, as the end of an error message."""
        if self.epoch is not None:
            return (
                f"must be a number of {'seconds' if self.epoch == 1e6 else 'milliseconds'} since 1970-01-01, or a date in ISO 8601"
            )
        iso = "a time like 23:59:00" if self.is_time else "a date like 2000-01-31" + ("T12:00:00Z" if self.zoned else "")
        return f"must be {iso}" + (f" or of the form {' or '.join(self.formats)}" if self.formats else "")


def parts_of(formats: tuple[str, ...], *, has_days: bool, has_times: bool) -> tuple[Part, ...]:
    """The parts of dates in these formats. `has_days`: ISO dates name a day; `has_times`: a date has a time other than midnight."""
    letters = {letter for text in formats if text not in EPOCHS for letter in re.findall("%([a-zA-Z])", text)}
    if letters and letters <= set("HIMSfpz"):
        return ("hour",)
    days = has_days or bool(letters & set("djVu")) or any(text in EPOCHS for text in formats)
    months = days or not letters or bool(letters & set("mbBq"))
    parts: tuple[Part, ...] = (
        ("days", "year", "month", "day", "weekday") if days else ("days", "year", "month") if months else ("year",)
    )
    return (*parts, "hour") if has_times else parts


@functools.lru_cache(maxsize=512)
def pattern(text: str) -> re.Pattern[str]:
    """The regular expression of a format; raises ValueError for a format that names neither a date nor a time."""
    if len(text) > MAX_FORMAT:
        raise ValueError(f"a date format has at most {MAX_FORMAT} characters")
    pieces = re.split("(%.?| +)", text)
    letters = [piece[1:] for piece in pieces if piece.startswith("%")]
    unknown = next((letter for letter in letters if letter not in _DIRECTIVES), None)
    if unknown is not None:
        raise ValueError(f"the date format '{text}' has the unknown directive %{unknown}")
    if len(set(letters)) != len(letters) or {"b", "B"} <= set(letters):
        raise ValueError(f"the date format '{text}' has a directive twice")
    if not _is_complete(set(letters)):
        raise ValueError(f"the date format '{text}' is not a complete date or time: use %Y or %H, for example %d/%m/%Y")
    regex = (
        _DIRECTIVES[piece[1:]] if piece.startswith("%") else " +" if piece.startswith(" ") else re.escape(piece) for piece in pieces
    )
    return re.compile("".join(regex), re.IGNORECASE | re.ASCII)


def _is_complete(letters: set[str]) -> bool:
    """Whether the directives name a complete date, time of day, or both, from the largest unit down."""
    has_date, has_time = bool(letters & set("YyGmbBqdjVu")), bool(letters & set("HIMSfp"))
    month = bool(letters & set("mbBq"))
    date = {"G", "V"} <= letters or (bool(letters & set("Yy")) and ("d" not in letters or month))
    time = "H" in letters or {"I", "p"} <= letters
    zone = "z" not in letters or (has_date and has_time)
    return (has_date or has_time) and (date or not has_date) and (time or not has_time) and zone


@functools.lru_cache(maxsize=4096)
def parser(form: DateForm) -> Callable[[Any], float]:
    """The function from a text (or a number, where the form accepts it) to its code; it raises InvalidDate with the broken rule."""
    iso = _ISO_TIME if form.is_time else _ISO
    patterns = [pattern(text) for text in form.formats if text not in EPOCHS]
    epoch, rule, zoned = form.epoch, form.rule, form.zoned

    takes_numbers = form.takes_numbers
    plain = not zoned and not form.is_time

    def parse(value: Any) -> float:
        if not isinstance(value, str):
            if epoch is not None or not takes_numbers or type(value) not in (int, float) or value != value // 1:
                return _from_epoch(value, epoch, rule)
            value = str(int(value))
        elif takes_numbers and epoch is None:
            value = _WHOLE.sub("", value)
        if plain and len(value) == 10 and value[4] == value[7] == "-":  # a fast path for the most common form
            with contextlib.suppress(ValueError):
                return float(dt.date.fromisoformat(value).toordinal() - _EPOCH_DAY)
        match = iso.fullmatch(value)
        if match is not None and (code := _code(match, rule, zoned=zoned)) is not None:
            return code
        for regex in patterns:
            match = regex.fullmatch(value)
            if match is not None and (code := _code(match, rule, zoned=zoned)) is not None:
                return code
        if epoch is not None:
            return _from_epoch(_number(value), epoch, rule)
        raise InvalidDate(rule)

    return parse


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,9})?", text, re.ASCII) else None


def _from_epoch(value: Any, epoch: float | None, rule: str) -> float:
    """The code of a number of an epoch; raises InvalidDate outside the years 1 to 9999."""
    if epoch is None or isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        raise InvalidDate(rule)
    code = encode(round(value * epoch))
    if not FIRST <= code <= LAST:
        raise InvalidDate(rule)
    return code


def _code(match: re.Match[str], rule: str, *, zoned: bool) -> float | None:
    """The code of a match; None when the day or the time does not exist."""
    fields = match.groupdict()
    try:
        day, has_date = _day(fields)
        microseconds = _microseconds(fields)
    except ValueError:
        return None
    zone = fields.get("z")
    if has_date and (zone is not None) != zoned:
        raise InvalidDate(_ZONE_RULE if zoned else _NO_ZONE_RULE)
    if zone is not None and zone[0] in "+-":
        minutes = int(zone[1:3]) * 60 + int(zone[-2:])
        microseconds -= (minutes if zone[0] == "+" else -minutes) * 60_000_000
    code = encode(day * MICROSECONDS + microseconds)
    return code if FIRST <= code <= LAST else None


def encode(microseconds: int) -> float:
    """The code of a number of microseconds since 1970-01-01, or since midnight."""
    return float(microseconds) / MICROSECONDS


def _day(fields: Mapping[str, str | None]) -> tuple[int, bool]:
    """Days since 1970-01-01, and whether the fields name a date; raises ValueError when the day does not exist."""
    if fields.get("G") is not None:
        week, weekday = int(fields["V"] or 0), int(fields.get("u") or 1)
        return dt.date.fromisocalendar(int(fields["G"] or 0), week, weekday).toordinal() - _EPOCH_DAY, True
    year = fields.get("Y") or fields.get("y")
    if year is None:
        return 0, False
    number = int(year)
    if len(year) == 2:
        number += 1900 if number >= 69 else 2000
    if day_of_year := fields.get("j"):
        first = dt.date(number, 1, 1)
        day = first.toordinal() + int(day_of_year) - 1
        if dt.date.fromordinal(day).year != number:
            raise ValueError("the day does not exist")
        return day - _EPOCH_DAY, True
    return dt.date(number, _month(fields), int(fields.get("d") or 1)).toordinal() - _EPOCH_DAY, True


def _month(fields: Mapping[str, str | None]) -> int:
    if name := fields.get("b"):
        return next(at for at, month in enumerate(MONTHS, 1) if month.startswith(name[:3].lower()))
    if quarter := fields.get("q"):
        return int(quarter) * 3 - 2
    return int(fields.get("m") or 1)


def _microseconds(fields: Mapping[str, str | None]) -> int:
    """Microseconds since midnight; raises ValueError when the time does not exist."""
    hour, minute, second = int(fields.get("H") or 0), int(fields.get("M") or 0), int(fields.get("S") or 0)
    if half := fields.get("p"):
        hour = int(fields.get("I") or fields.get("H") or 0)
        if not 1 <= hour <= 12:
            raise ValueError("the hour does not exist")
        hour = hour % 12 + (12 if half.lower() == "p" else 0)
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError("the time does not exist")
    fraction = int((fields.get("f") or "0").ljust(9, "0")[:6])
    return ((hour * 60 + minute) * 60 + second) * 1_000_000 + fraction


def as_sent(code: float, form: DateForm) -> str | float:
    """The code as a request sends it: a number for an epoch, otherwise a text in ISO 8601."""
    if form.epoch is None:
        return write(code, form)
    number = _moment(code, int(form.epoch)) / form.epoch
    return int(number) if number.is_integer() else number


def _moment(code: float, unit: int = 1) -> int:
    """Microseconds that `encode` turns into the code; a multiple of `unit` where possible."""
    nearest = 0
    for step in (unit, 1):
        nearest = round(code * MICROSECONDS / step) * step
        for near in (nearest, nearest - step, nearest + step):
            if encode(near) == code:
                return near
    return nearest


def write(code: float, form: DateForm) -> str:
    """The code as text in ISO 8601, which `parser` turns into the same code."""
    day, rest = divmod(_moment(code), MICROSECONDS)
    time = (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=rest)).time().isoformat()  # noqa: DTZ001 - a time of day
    if form.is_time:
        return time
    date = dt.date.fromordinal(day + _EPOCH_DAY).isoformat()
    if form.zoned:
        return f"{date}T{time}Z"
    return f"{date}T{time}" if rest else date
