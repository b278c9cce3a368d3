"""The report on each column: kind, distinct values, gaps, range or categories, and remarks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from serve_app.artifacts.dates import write
from serve_app.artifacts.signature import EXACT, Feature, Signature
from serve_app.tables.csv_format import twins
from serve_app.tables.numerals import is_code, numeral

MAX_LINES = 40
"""Most columns that are printed; the report file has all columns."""

_SHOWN = 5
"""Most categories that are shown for one column."""

_IDENTIFIER = re.compile(r"(?:^|[^a-z])(?:id|ids|uuid|guid|zip|zipcode|postcode|plz|phone|isbn|ssn|sku)$|zip_?code|post_?code")
_COUNTER = re.compile(r"(?:^|[^a-z])(?:index|idx|row|nr|no|number|num|key|code|ticket|account)$")
_UNIT = re.compile(r"[+-]?\d+(?:[.,]\d+)?\s*(?P<unit>[^\d\s.,:/%+()-][^\d\s]*)")
_DATA = re.compile(r"[+-]?\d+(?:[.,]\d+)*(?:[eE][+-]?\d+)?|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|(?i:true|false|nan|null)")

_ANSWERS = frozenset({"yes", "no", "y", "n", "true", "false", "t", "f", "on", "off", "0", "1"})

Source = Literal["declared", "by the file", "by the model", "guessed"]


@dataclass(frozen=True, slots=True)
class ColumnReport:
    """One column of a table; `values` is its range or its first categories as text, `source` is the origin of its kind."""

    name: str
    role: Literal["target", "feature"]
    kind: str
    source: Source
    distinct: int
    missing: int
    values: str
    remarks: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The column in one line."""
        role = "target, " if self.role == "target" else ""
        missing = f", {self.missing} missing" if self.missing else ""
        remarks = f" [{'; '.join(self.remarks)}]" if self.remarks else ""
        return f"{self.name}: {role}{self.kind} ({self.source}), {self.distinct} distinct{missing}, {self.values}{remarks}"

    def to_dict(self) -> dict[str, Any]:
        """The column as plain Python objects, for JSON."""
        return asdict(self)


def describe(
    columns: Mapping[str, pd.Series[Any]], target: Any, signature: Signature, sources: Mapping[str, Source]
) -> tuple[ColumnReport, ...]:
    """The reports, the target first; `columns` are the columns of the whole table, `target` the labels, shape (rows,)."""
    names = _names(signature)
    parts = [part for _, part in signature.parts] or [signature]
    parts = [part for part in parts if part.task in ("classification", "regression")]  # others have no target
    values_of = dict(enumerate(np.asarray(target).T)) if signature.outputs else {0: target}
    reports = [_target(pd.Series(values_of[at]), part, sources.get(part.target, "guessed"), names) for at, part in enumerate(parts)]
    for feature in signature.features:
        values = columns[feature.name]
        distinct, missing = _counts(values)
        reports.append(
            ColumnReport(
                name=feature.name,
                role="feature",
                kind=feature.kind,
                source=sources.get(feature.name, "guessed"),
                distinct=distinct,
                missing=missing,
                values=_values(feature, values),
                remarks=tuple(_remarks(feature, values, distinct, names, sources.get(feature.name, "guessed"))),
            )
        )
    return tuple(reports)


def lines(reports: Sequence[ColumnReport], *, limit: int = MAX_LINES) -> list[str]:
    """One line for each column, and one line about columns beyond the limit."""
    more = len(reports) - limit
    tail = [f"and {more} more columns: the report file has all"] if more > 0 else []
    return [report.line for report in reports[:limit]] + tail


def looks_like_identifier(name: str, numbers: Any) -> bool:
    """Whether whole numbers identify things and are not quantities: by the name of the column, or because they count the rows.

    `numbers` is an array of whole numbers without gaps, shape (rows,).
    """
    word = _words(name)
    if _IDENTIFIER.search(word):
        return True
    distinct = _distinct(numbers)
    if distinct < len(numbers) or distinct < 2:
        return False
    span = float(numbers.max()) - float(numbers.min()) + 1
    return span <= distinct * 1.1 or _COUNTER.search(word) is not None


def _words(name: str) -> str:
    """`customerID` and `Customer-Id` as `customer_id` and `customer-id`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip()).casefold()


@dataclass(frozen=True, slots=True)
class Names:
    """The names of columns that look like `data`, and the names with an earlier twin, by name."""

    data: frozenset[str]
    twins: Mapping[str, str]


def _names(signature: Signature) -> Names:
    """A name is data when its column has it as a value, and the name of another column looks like data, too."""
    texts = {feature.name: feature.categories for feature in signature.features}
    for part in [part for _, part in signature.parts] or [signature]:
        texts[part.target] = tuple(map(str, part.classes))
    numbers = {name for name in texts if _DATA.fullmatch(name.strip())}
    values = {name for name, categories in texts.items() if name in categories}
    return Names(frozenset(numbers | values if numbers or len(values) > 1 else ()), twins(list(texts)))


def _target(labels: pd.Series[Any], signature: Signature, source: Source, names: Names) -> ColumnReport:
    distinct, _ = _counts(labels)
    if signature.task == "regression":
        kind, values = "number for a regression", f"{labels.min():g} to {labels.max():g}"
    else:
        kind, values = "class", _listed([str(label) for label in signature.classes])
    remarks = [*_name_remarks(signature.target, names)]
    if any(isinstance(label, str) for label in signature.classes):
        remarks += _twin_remarks([str(label) for label in signature.classes])
    return ColumnReport(signature.target, "target", kind, source, distinct, 0, values, tuple(remarks))


def _counts(values: pd.Series[Any]) -> tuple[int, int]:
    """The numbers of distinct values and of gaps."""
    array = values.to_numpy()
    missing = int(np.isnan(array).sum()) if array.dtype == np.float64 else int(values.isna().sum())
    return _distinct(array if array.dtype == np.float64 else values) - (missing > 0), missing


def _distinct(values: Any) -> int:
    """The number of different values; a short array is sorted, because that is faster than a hash table."""
    short = isinstance(values, np.ndarray) and len(values) < 10_000
    return len(np.unique(values)) if short else len(pd.unique(values))


def _values(feature: Feature, values: pd.Series[Any]) -> str:
    if feature.kind == "category":
        return _listed(feature.categories)
    if feature.kind == "number":
        numbers = values.to_numpy(dtype=np.float64)
        return f"{np.nanmin(numbers):g} to {np.nanmax(numbers):g}"
    if feature.date is not None:
        numbers = values.to_numpy(dtype=np.float64)
        first, last = (write(float(code), feature.date) for code in (np.nanmin(numbers), np.nanmax(numbers)))
        return f"{first} to {last}" + (f", written as {' or '.join(feature.date.formats)}" if feature.date.formats else "")
    return f"like {feature.example}"


def _listed(texts: Sequence[str]) -> str:
    shown = ", ".join(text if len(text) <= 30 else f"{text[:29]}…" for text in texts[:_SHOWN])
    return shown + (", …" if len(texts) > _SHOWN else "")


def _remarks(feature: Feature, values: pd.Series[Any], distinct: int, names: Names, source: Source) -> Iterator[str]:
    yield from _name_remarks(feature.name, names)
    if distinct == 1:
        yield "constant"
    if feature.kind == "number":
        yield from _number_remarks(feature, values, distinct, source)
    if feature.kind == "category":
        if distinct == len(values):
            yield "one value per row"
        yield from _text_remarks(feature.name, values, feature.categories, source)


def _name_remarks(name: str, names: Names) -> Iterator[str]:
    if name in names.data:
        yield "the header looks like data"
    if name in names.twins:
        yield f"the name differs from '{names.twins[name]}' in case or blanks only"


def _number_remarks(feature: Feature, values: pd.Series[Any], distinct: int, source: Source) -> Iterator[str]:
    numbers = values.to_numpy(dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if distinct > 2 and bool((numbers == np.rint(numbers)).all()):
        if distinct == len(numbers):
            yield "one value per row"
        if looks_like_identifier(feature.name, numbers):
            few = distinct * 2 <= len(numbers)
            advice = "" if source == "by the model" else f": {'--category' if few else '--drop'} {shlex.quote(feature.name)}"
            yield f"looks like {'codes' if few else 'an identifier'}{advice}"
    if source == "declared" and float(np.abs(numbers).max()) > EXACT:
        yield "whole numbers beyond 2^53 are rounded"
    if feature.unit:
        yield (
            f"the sign {feature.unit} is left out: 5{feature.unit} is 5"
            if feature.unit == "%"
            else f"the sign {feature.unit} is left out"
        )


def _text_remarks(name: str, values: pd.Series[Any], categories: Sequence[str], source: Source) -> Iterator[str]:
    yield from _twin_remarks(categories)
    if source not in ("declared", "by the model"):
        yield from _form_remarks(shlex.quote(name), categories)
    if len(categories) > 2 and len(categories) * 2 > len(values) and _IDENTIFIER.search(_words(name)):
        yield "looks like an identifier" + ("" if source == "by the model" else f": --drop {shlex.quote(name)}")
    if len(categories) > 2 and _ANSWERS.issuperset(text.strip().casefold() for text in categories):
        yield "yes and no are written in several ways"


def _form_remarks(name: str, categories: Sequence[str]) -> Iterator[str]:
    """Remarks about the texts of a guessed category; `name` is quoted for the shell."""
    words = [text for text in categories if numeral(text) is None]
    if any(map(is_code, categories)):
        yield f"digits with leading zeros stay texts: --number {name} reads numbers"
    elif not words:
        yield f"numbers as texts: --number {name} reads numbers"
    elif len(words) * 2 < len(categories):
        yield f"numbers and words, like {words[0]!r}: --na {shlex.quote(words[0])} reads it as missing"
    units = [match["unit"] for match in map(_UNIT.fullmatch, categories) if match]
    if len(categories) > 2 and len(units) * 2 > len(categories) and len(set(units)) == 1:
        yield f"numbers with a unit, like {next(filter(_UNIT.fullmatch, categories))!r}"


def _twin_remarks(texts: Sequence[str]) -> Iterator[str]:
    for text, other in list(twins(texts).items())[:3]:
        yield f"{other!r} and {text!r} differ in blanks or case only"
