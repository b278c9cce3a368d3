"""What training has made of each column: kind, distinct values, gaps, range or categories, and what is worth a look."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from serve_app.artifacts.dates import write
from serve_app.artifacts.signature import Feature, Signature
from serve_app.tables.numerals import MAX_EXACT, is_code, numeral

MAX_LINES = 40
"""Columns that are printed; the report file has all."""

_SHOWN = 5
"""Categories that are shown of one column."""

_IDENTIFIER = re.compile(r"(?:^|[^a-z])(?:id|ids|uuid|guid|zip|zipcode|postcode|plz|phone|isbn|ssn|sku)$|zip_?code|post_?code")
_COUNTER = re.compile(r"(?:^|[^a-z])(?:index|idx|row|nr|no|number|num|key|code|ticket|account)$")
_UNIT = re.compile(r"[+-]?\d+(?:[.,]\d+)?\s*[^\d\s.,:/%+()-][^\d\s]*")
_DATA = re.compile(r"[+-]?\d+(?:[.,]\d+)*(?:[eE][+-]?\d+)?|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|(?i:true|false|nan|null)")

_ANSWERS = frozenset({"yes", "no", "y", "n", "true", "false", "t", "f", "on", "off", "0", "1"})

Source = Literal["declared", "by the file", "guessed"]


@dataclass(frozen=True, slots=True)
class ColumnReport:
    """One column of a table; `values` are its range or its first categories as a text, `source` says where its kind is from."""

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
    """The target first, then the features in their order; `columns` are those of the whole table, `target` the labels (rows,)."""
    twins = _alike([signature.target, *columns])
    labels = pd.Series(target)
    reports = [_target(labels, signature, sources.get(signature.target, "guessed"), twins)]
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
                remarks=tuple(_remarks(feature, values, distinct, twins)),
            )
        )
    return tuple(reports)


def lines(reports: Sequence[ColumnReport], *, limit: int = MAX_LINES) -> list[str]:
    """One line for each column, and one for those beyond the limit."""
    more = len(reports) - limit
    tail = [f"and {more} more columns: the report file has all"] if more > 0 else []
    return [report.line for report in reports[:limit]] + tail


def looks_like_identifier(name: str, numbers: Any) -> bool:
    """Whether whole numbers are those of things, not quantities: by the name of the column, or because they count the rows.

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


def _target(labels: pd.Series[Any], signature: Signature, source: Source, twins: Mapping[str, str]) -> ColumnReport:
    distinct, _ = _counts(labels)
    if signature.task == "regression":
        kind, values = "number for a regression", f"{labels.min():g} to {labels.max():g}"
    else:
        kind, values = "class", _listed([str(label) for label in signature.classes])
    remarks = [*_name_remarks(signature.target, twins)]
    if any(isinstance(label, str) for label in signature.classes):
        remarks += _text_remarks(signature.target, labels, [str(label) for label in signature.classes])
    return ColumnReport(signature.target, "target", kind, source, distinct, 0, values, tuple(remarks))


def _counts(values: pd.Series[Any]) -> tuple[int, int]:
    """Distinct values and gaps."""
    array = values.to_numpy()
    missing = int(np.isnan(array).sum()) if array.dtype == np.float64 else int(values.isna().sum())
    return _distinct(array if array.dtype == np.float64 else values) - (missing > 0), missing


def _distinct(values: Any) -> int:
    """The number of different values; a short array is sorted, which takes less time than a table of hashes."""
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


def _remarks(feature: Feature, values: pd.Series[Any], distinct: int, twins: Mapping[str, str]) -> Iterator[str]:
    yield from _name_remarks(feature.name, twins)
    if distinct == 1:
        yield "constant"
    if feature.kind == "number":
        yield from _number_remarks(feature, values, distinct)
    if feature.kind == "category":
        if distinct == len(values):
            yield "one value per row"
        yield from _text_remarks(feature.name, values, feature.categories)


def _name_remarks(name: str, twins: Mapping[str, str]) -> Iterator[str]:
    if _DATA.fullmatch(name.strip()):
        yield "the header looks like data"
    if name in twins:
        yield f"the name differs from '{twins[name]}' in case or blanks only"


def _number_remarks(feature: Feature, values: pd.Series[Any], distinct: int) -> Iterator[str]:
    numbers = values.to_numpy(dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if distinct > 2 and bool((numbers == np.rint(numbers)).all()):
        if distinct == len(numbers):
            yield "one value per row"
        if looks_like_identifier(feature.name, numbers):
            few = distinct * 2 <= len(numbers)
            flag = "--category" if few else "--drop"
            yield f"looks like {'codes' if few else 'an identifier'}: {flag} {shlex.quote(feature.name)}"
        if float(np.abs(numbers).max()) > MAX_EXACT:
            yield "whole numbers beyond 2^53 are rounded"
    if feature.unit:
        yield (
            f"the sign {feature.unit} is left out: 5{feature.unit} is 5"
            if feature.unit == "%"
            else f"the sign {feature.unit} is left out"
        )


def _text_remarks(name: str, values: pd.Series[Any], categories: Sequence[str]) -> Iterator[str]:
    quoted = shlex.quote(name)
    twins = _alike(categories)
    for text, other in list(twins.items())[:3]:
        yield f"{other!r} and {text!r} differ in blanks or case only"
    codes = [text for text in categories if is_code(text)]
    words = [text for text in categories if numeral(text) is None]
    if codes:
        yield f"digits with leading zeros stay texts: --number {quoted} reads numbers"
    elif words and len(words) * 2 < len(categories):
        yield f"numbers and words, like {words[0]!r}: --na {shlex.quote(words[0])} reads it as missing"
    elif not words:
        yield f"numbers as texts: --number {quoted} reads numbers"
    elif len(categories) > 2 and sum(_UNIT.fullmatch(text) is not None for text in categories) * 2 > len(categories):
        yield f"numbers with a unit, like {categories[0]!r}: a category"
    if len(categories) > 2 and len(categories) * 2 > len(values) and _IDENTIFIER.search(_words(name)):
        yield f"looks like an identifier: --drop {quoted}"
    if len(categories) > 2 and _ANSWERS.issuperset(text.strip().casefold() for text in categories):
        yield "yes and no are written in several ways"
    if name in categories:
        yield "the header looks like data"


def _alike(texts: Sequence[str]) -> dict[str, str]:
    """By text, an earlier one that differs in case or blanks only."""
    first: dict[str, str] = {}
    pairs = ((text, first.setdefault(" ".join(text.split()).casefold(), text)) for text in texts)
    return {text: other for text, other in pairs if other != text}
