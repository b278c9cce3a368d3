"""The formats of tables over HTTP, and their names in `Content-Type` and `Accept`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

Format = Literal["json", "csv", "ndjson", "arrow", "parquet"]
AnswerFormat = Literal["json", "csv", "ndjson", "arrow", "columns"]

ARROW_EXTRA = "arrow"
"""The extra of this package that reads and writes ARROW_TYPES."""
ARROW_TYPES: Mapping[Format, str] = {"arrow": "application/vnd.apache.arrow.stream", "parquet": "application/vnd.apache.parquet"}
HAS_ARROW = find_spec("pyarrow") is not None

MEDIA_TYPES: Mapping[Format, str] = {
    "json": "application/json",
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    **(ARROW_TYPES if HAS_ARROW else {}),
}
"""The media type of each format that this server reads."""
ANSWER_TYPES: Mapping[AnswerFormat, str] = {
    "json": MEDIA_TYPES["json"],
    "csv": MEDIA_TYPES["csv"],
    "ndjson": MEDIA_TYPES["ndjson"],
    **({"arrow": ARROW_TYPES["arrow"]} if HAS_ARROW else {}),
    "columns": "application/json; orient=columns",
}
"""The media type of a response in each format. The first format is the default."""

TABLE_ANSWERS: tuple[AnswerFormat, ...] = tuple(form for form in ANSWER_TYPES if form != "columns")
"""The response formats that all protocols of tables have."""

_FORMATS: Mapping[str, Format] = {
    **{media_type: form for form, media_type in MEDIA_TYPES.items()},
    "application/csv": "csv",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/jsonlines": "ndjson",
    "application/x-jsonlines": "ndjson",
}
_UTF8 = frozenset({"", "utf-8", "utf8", "us-ascii"})


class MediaType(NamedTuple):
    """The format of a body, and its parameter `header` (RFC 4180): True for present, False for absent, None when not given."""

    form: Format
    header: bool | None = None


@lru_cache(maxsize=256)
def format_of(content_type: bytes) -> MediaType | None:
    """The format that a `Content-Type` names; None when it is not a table format or not in UTF-8."""
    media_type, *parameters = content_type.decode("latin-1").lower().split(";")
    named = dict(_parameter(parameter) for parameter in parameters)
    media_type = media_type.strip()
    is_json = media_type.startswith("application/") and media_type.endswith("+json")
    form: Format | None = "json" if is_json else _FORMATS.get(media_type)
    if form is None or (form != "json" and named.get("charset", "") not in _UTF8):
        return None
    return MediaType(form, {"present": True, "absent": False}.get(named.get("header", "")))


def missing_extra(content_type: bytes) -> str:
    """The missing extra of this package that a `Content-Type` requires; empty when no extra is missing."""
    media_type = content_type.decode("latin-1").lower().partition(";")[0].strip()
    return ARROW_EXTRA if not HAS_ARROW and media_type in ARROW_TYPES.values() else ""


@lru_cache(maxsize=256)
def answer_format(accept: bytes, formats: tuple[AnswerFormat, ...] = TABLE_ANSWERS) -> AnswerFormat | None:
    """The format that `Accept` prefers: the highest weight, then the first in its order; JSON for an empty header.

    None when `Accept` excludes all formats.
    """
    ranges = [_weighted(each) for each in accept.decode("latin-1").lower().split(",") if each.strip()]
    if not ranges:
        return "json"
    best: tuple[float, int] | None = None
    chosen: AnswerFormat | None = None
    for form in formats:
        names = [name for name, each in _FORMATS.items() if each == form] or [ANSWER_TYPES[form].replace(" ", "")]
        weight, position = max((_weight(name, ranges) for name in names), key=lambda each: (each[0], -each[1]))
        if weight > 0 and (best is None or (weight, -position) > best):
            best, chosen = (weight, -position), form
    return chosen


def _weight(media_type: str, ranges: list[tuple[str, float]]) -> tuple[float, int]:
    """The weight of a media type and the position of its most specific range (RFC 9110, section 12.5.1)."""
    without_parameter = media_type.partition(";")[0]
    for pattern in dict.fromkeys((media_type, without_parameter, media_type.partition("/")[0] + "/*", "*/*")):
        for position, (name, weight) in enumerate(ranges):
            if name == pattern:
                return weight, position
    return 0.0, len(ranges)


def _weighted(text: str) -> tuple[str, float]:
    """A media range and its weight. The range keeps the parameter `orient` and drops all others."""
    name, *parameters = text.split(";")
    named = dict(_parameter(parameter) for parameter in parameters)
    name = name.strip() + (f";orient={named['orient']}" if "orient" in named else "")
    try:
        return name, min(max(float(named.get("q", "1")), 0.0), 1.0)
    except ValueError:
        return name, 0.0


def _parameter(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip().strip('"')
