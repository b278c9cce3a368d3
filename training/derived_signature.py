"""Derives the signature of an adopted model from the model itself, and from a sample for facts that the model does not have.

Categories come from the encoders, not from the sample. Calls of the model show whether it answers a gap or an unknown category.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from serve_app.artifacts.dates import DateForm, as_sent
from serve_app.artifacts.manifest_bounds import MAX_CATEGORIES
from serve_app.artifacts.signature import TEXT_LENGTH, Feature, Kind, Label, Signature
from serve_app.errors import UsageError
from serve_app.inference.backends.frame_backend import stamps
from serve_app.tables.date_columns import date_column
from serve_app.tables.unusable import UnusableColumn
from training.coded_booster import whole_texts
from training.original import Original, plain
from training.recoding import is_gap

UNKNOWN_TEXT = "never seen by any model"
"""A category that no encoder knows."""

SHAPE_ROWS = 2_000
"""Most rows of the sample that show the shape of the answers."""

ASK_SECONDS = 30.0
"""Seconds for calls with gaps and unknown categories; after them, the sample decides for the remaining columns."""

Unknown = Literal["answered", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the signature, and the origin of each part.

    `unknown` is the action of the model for an unknown category; None for other kinds.
    """

    feature: Feature
    kind_source: str
    null_source: str
    unknown: Unknown | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """The declarations of columns in flags."""

    category: Collection[str] = ()
    number: Collection[str] = ()
    date: Mapping[str, Sequence[str]] = field(default_factory=dict)
    nullable: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class DerivedSignature:
    """The signature, its columns, the rows for calls of the model, and the same rows before coding.

    `asked` has the types that the model takes; `plain` has float64, booleans and texts with NaN in the gaps (dates are codes).
    `kept` is the mask of the sample's rows, without rows with a gap that the model refuses.
    """

    signature: Signature
    columns: tuple[Column, ...]
    unused: tuple[str, ...]
    asked: pd.DataFrame
    plain: pd.DataFrame
    kept: np.ndarray[Any, Any]
    remarks: tuple[str, ...] = ()

    @property
    def refuses_unknown(self) -> frozenset[str]:
        """The columns whose unknown categories the model does not answer."""
        return frozenset(column.feature.name for column in self.columns if column.unknown == "refused")


def derive(
    model: Original, sample: pd.DataFrame, declared: Declared, *, targets: Sequence[str], missing: tuple[str, ...] | None
) -> DerivedSignature:
    """The signature of a model from a sample with the columns that the model reads. Raises UsageError.

    `targets` are the names of the columns that it predicts, empty when they are not known. CSV has no type for dates, so when the
    model does not answer texts, columns in which every text is a date are tried as dates.
    """
    _check_declared(model, declared)
    try:
        return _derive(model, sample, declared, targets, missing)
    except NotAnswered:
        dates = _dates_as_text(model, sample, declared)
        if not dates:
            raise
        tried = replace(declared, date={**declared.date, **dict.fromkeys(dates, ())})
        found = _derive(model, sample, tried, targets, missing)
        remark = f"read as dates, because the model does not answer their texts: {', '.join(dates)} (--date declares them)"
        return replace(found, remarks=(*found.remarks, remark))


class NotAnswered(UsageError):
    """The model answers no row of the sample."""


def _dates_as_text(model: Original, sample: pd.DataFrame, declared: Declared) -> list[str]:
    """The columns without a declaration in which every value is a date as text."""
    known = {*declared.category, *declared.number, *declared.date}
    names = [name for name in model.columns.used if name not in known and _kind_of_type(sample[name]) == "text"]
    return [name for name in names if _is_date(name, sample[name])]


def _is_date(name: str, values: pd.Series[Any]) -> bool:
    try:
        return date_column(name, values) is not None
    except UnusableColumn:
        return False


def _derive(
    model: Original, sample: pd.DataFrame, declared: Declared, targets: Sequence[str], missing: tuple[str, ...] | None
) -> DerivedSignature:
    asked = sample.reset_index(drop=True)
    columns, plain_columns, problems = [], {}, []
    for name in model.columns.used:
        try:
            column, asked[name], plain_columns[name] = _column(name, asked[name], model, declared)
            columns.append(column)
        except UnusableColumn as error:
            problems.append(f"column '{error.name}' {error.why}" + (f": {error.fix}" if error.fix else ""))
    if problems:
        raise UsageError("; ".join(problems))
    table = pd.DataFrame(plain_columns, copy=False)
    complete = _complete_row(model, asked, table)
    columns, kept, remarks = _ask_about_gaps(model, columns, asked, table, complete, declared)
    asked, table = asked[kept].reset_index(drop=True), table[kept].reset_index(drop=True)
    columns = _ask_about_unknown(model, columns, asked, complete)
    shape = model.shape(asked.head(SHAPE_ROWS), targets)
    signature = shape.signature([column.feature for column in columns], ", ".join(targets) or "prediction", missing)
    unused = tuple(str(name) for name in sample.columns if name not in model.columns.used)
    return DerivedSignature(signature, tuple(columns), unused, asked, table, kept, (*remarks, *shape.remarks))


def _check_declared(model: Original, declared: Declared) -> None:
    used = model.columns.used
    for flag, names in (
        ("--category", declared.category),
        ("--number", declared.number),
        ("--date", declared.date),
        ("--nullable", declared.nullable),
    ):
        for name in names:
            if name not in used:
                raise UsageError(f"{flag} '{name}' is not a column that the model reads; it reads: {', '.join(used[:20])}")


def _column(name: str, values: pd.Series[Any], model: Original, declared: Declared) -> tuple[Column, pd.Series[Any], Any]:
    """The column, its values for the model, and its values before coding."""
    encoders = model.columns.encoders.get(name, [])
    known = _categories(encoders)
    if name in model.columns.categorical:
        known = whole_texts(known, values.dropna().unique().tolist())
    gap_known = any(is_gap(value) for categories in encoders for value in categories)
    kind, source = _kind(name, values, known, declared, model.columns.categorical)
    gaps = values.isna().to_numpy()
    if kind == "date":
        feature, values, codes = _date(name, values, declared.date.get(name))
        return Column(feature=feature, kind_source=source, null_source="the sample"), values, codes
    if kind == "text":
        texts = values.astype(object).where(~gaps, np.nan)
        text = str(_first(texts, gaps))[:TEXT_LENGTH]
        feature = Feature(name, "text", nullable=bool(gaps.any()) or name in declared.nullable, example=text)
        return Column(feature=feature, kind_source=source, null_source="the sample"), values, texts
    nullable = bool(gaps.any()) or gap_known or name in declared.nullable
    origin = "declared" if name in declared.nullable else "an encoder of the model" if gap_known else "the sample"
    if kind == "category":
        if known and name in model.columns.categorical:
            values = _with_dtype(values, known)
        values, texts, categories = _texts(values, gaps, known)
        if len(categories) > MAX_CATEGORIES:
            raise UnusableColumn(name, f"has {len(categories)} categories, more than {MAX_CATEGORIES}", "group them")
        unseen = ~texts.isin(categories).to_numpy()
        if known and not gaps.all() and unseen[~gaps].all():
            raise UnusableColumn(
                name, f"holds none of the categories that the model knows ({', '.join(categories[:5])})", "correct it"
            )
        example = _first(texts, gaps | unseen)
        feature = Feature(name, "category", categories=categories, nullable=nullable, example=example or categories[0])
        return Column(feature=feature, kind_source=source, null_source=origin), values, texts
    if kind == "boolean":
        truths = values.astype(object).where(~gaps, np.nan) if gaps.any() else values.astype(bool)
        feature = Feature(name, "boolean", nullable=nullable, example=bool(_first(values, gaps) or False))
        return Column(feature=feature, kind_source=source, null_source=origin), values, truths
    numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    present = numbers[~np.isnan(numbers)]
    if not len(present) or not np.isfinite(present).all():
        raise UnusableColumn(name, "holds no number" if not len(present) else "holds infinity", "correct the sample")
    whole = pd.api.types.is_integer_dtype(values.dtype)
    example = int(present[0]) if whole else float(present[0])
    feature = Feature(name, low=float(present.min()), high=float(present.max()), nullable=nullable, example=example)
    return Column(feature=feature, kind_source=source, null_source=origin), values, pd.Series(numbers)


def _categories(encoders: list[list[Any]]) -> list[Any]:
    """The categories of all encoders of a column, sorted if every encoder sorts them, else in the order of the first encoder."""
    lists = [[plain(value) for value in categories if not is_gap(value)] for categories in encoders]
    known = list(dict.fromkeys(value for values in lists for value in values))
    if len({type(value) for value in known}) == 1 and all(values == sorted(values) for values in lists):
        return sorted(known)
    return known


def _kind(
    name: str, values: pd.Series[Any], known: list[Any], declared: Declared, categorical: Collection[str]
) -> tuple[Kind, str]:
    kind: Kind | None
    if name in declared.category:
        return "category", "declared"
    if name in declared.date:
        return "date", "declared"
    if name in declared.number:
        return "number", "declared"
    if name in categorical:
        return "category", "the model"
    if known:
        types = {type(value) for value in known}
        kind = "boolean" if types == {bool} else "number" if types <= {int, float} else "category"
        if not (kind == "number" and isinstance(values.dtype, pd.CategoricalDtype)):
            return kind, "an encoder of the model"
    kind = _kind_of_type(values)
    if kind is None:
        raise UnusableColumn(
            name, f"holds values of type {values.dtype}, which no request can send", "give numbers, texts or dates"
        )
    return kind, f"the sample's type {values.dtype}"


def _kind_of_type(values: pd.Series[Any]) -> Kind | None:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return "category"
    if pd.api.types.is_bool_dtype(values.dtype):
        return "boolean"
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return "date"
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_complex_dtype(values.dtype):
        return "number"
    present = values.dropna()
    if len(present) and all(isinstance(value, bool | np.bool_) for value in present):
        return "boolean"
    if len(present) and all(isinstance(value, int | float) for value in present):
        return "number"
    return "text" if all(isinstance(value, str) for value in present) and len(present) else None


def _with_dtype(values: pd.Series[Any], known: list[Any]) -> pd.Series[Any]:
    """The values with the dtype of a booster's fit: its categories in its order, then those that only the sample has."""
    others = [value for value in values.dropna().unique().tolist() if value not in known]
    return pd.Series(pd.Categorical(values.astype(object), categories=[*known, *others]))


def _texts(values: pd.Series[Any], gaps: Any, known: list[Any]) -> tuple[pd.Series[Any], pd.Series[Any], tuple[str, ...]]:
    """The values for the model, the values as texts with NaN in the gaps, and the categories."""
    if known and all(isinstance(value, str) for value in known) and pd.api.types.is_numeric_dtype(values.dtype):
        values = values.map(lambda value: np.nan if value != value else f"{value:g}").astype(object)  # digits read as numbers
    texts = values.astype(object).map(str, na_action="ignore").where(~gaps, np.nan)
    if known:
        return values, texts, tuple(dict.fromkeys(str(value) for value in known))
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values, texts, tuple(str(value) for value in values.cat.categories)
    return values, texts, tuple(sorted({str(text) for text in texts.dropna()}))


def _first(values: pd.Series[Any], gaps: Any) -> Any:
    present = np.flatnonzero(~np.asarray(gaps))
    return plain(values.iloc[int(present[0])]) if len(present) else None


def _date(name: str, values: pd.Series[Any], formats: Sequence[str] | None) -> tuple[Feature, pd.Series[Any], pd.Series[Any]]:
    try:
        dated = date_column(name, values, formats)
    except UnusableColumn as error:
        if not pd.api.types.is_numeric_dtype(values.dtype):
            raise
        raise UnusableColumn(name, error.why, f"give timestamps in Parquet, or leave --date {name} out") from None
    if dated is None:
        raise UnusableColumn(name, "holds no dates", f"leave --date {name} out")
    form: DateForm = dated.form
    codes = np.asarray(dated.values, dtype=np.float64)
    present = codes[~np.isnan(codes)]
    if not len(present):
        raise UnusableColumn(name, "is empty", "fill some rows of the sample")
    if not pd.api.types.is_datetime64_any_dtype(values.dtype):
        values = pd.Series(stamps(codes, "us"))
    feature = Feature(
        name,
        "date",
        low=float(present.min()),
        high=float(present.max()),
        nullable=bool(np.isnan(codes).any()),
        example=as_sent(float(present[0]), form),
        date=form,
    )
    return feature, values, pd.Series(codes)


def _complete_row(model: Original, asked: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """One row of the sample that the model answers, with as few gaps as possible. Raises UsageError when it answers no row."""
    order = np.argsort(table.isna().sum(axis=1).to_numpy(), kind="stable")
    failure: Exception | None = None
    for at in order[:20]:
        row = asked.iloc[[int(at)]]
        failure = _failure(model, row)
        if failure is None:
            return row.reset_index(drop=True)
    raise NotAnswered(
        f"the model does not answer a row of the sample ({one_line(failure)}): give a sample like the rows of its fit"
    )


def _failure(model: Original, frame: pd.DataFrame) -> Exception | None:
    """The error of the model for these rows; None when it answers."""
    try:
        labels = model.labels(frame)
    except Exception as error:  # a foreign model may raise any error
        return error
    if np.ndim(labels) not in (1, 2) or len(labels) != len(frame):
        raise UsageError(f"the model predicts an array of shape {np.shape(labels)} for {len(frame)} rows, which cannot be served")
    return None


def _ask_about_gaps(
    model: Original,
    columns: Sequence[Column],
    asked: pd.DataFrame,
    table: pd.DataFrame,
    complete: pd.DataFrame,
    declared: Declared,
) -> tuple[list[Column], Any, list[str]]:
    """The columns with the action of the model for a gap, the mask of the answered rows, and remarks."""
    asked_columns, remarks = [], []
    kept = np.ones(len(asked), dtype=bool)
    deadline = time.monotonic() + ASK_SECONDS
    for column in columns:
        feature = column.feature
        if feature.nullable and time.monotonic() < deadline:
            gaps = table[feature.name].isna().to_numpy()
            row = complete.copy()
            row[feature.name] = gap_of(asked[feature.name])
            error = _failure(model, row)
            if error is not None and feature.name in declared.nullable:
                raise UsageError(f"--nullable '{feature.name}': the model does not answer a row with this gap ({one_line(error)})")
            if error is not None:
                column = replace(column, feature=replace(feature, nullable=False), null_source="the model raises for a gap")
                kept &= ~gaps
                if gaps.any():
                    remarks.append(
                        f"{int(gaps.sum())} rows with a gap in '{feature.name}' are left out: the model raises {one_line(error)}"
                    )
        asked_columns.append(column)
    if not kept.any():
        raise UsageError("the model does not answer a row of the sample, because each row has a gap: give rows without gaps")
    return asked_columns, kept, remarks


def gap_of(values: pd.Series[Any]) -> pd.Series[Any]:
    """A series with one gap and the type of a column."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return pd.Series(pd.Categorical([None], dtype=values.dtype))
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return pd.Series([pd.NaT], dtype=values.dtype)
    if pd.api.types.is_bool_dtype(values.dtype) or values.dtype == object:
        return pd.Series([np.nan], dtype=object)
    if pd.api.types.is_numeric_dtype(values.dtype):
        return pd.Series([np.nan], dtype=np.float64)
    return pd.Series([np.nan], dtype=values.dtype)


def unknown_of(values: pd.Series[Any]) -> pd.Series[Any]:
    """A series with one category that no model knows, with the type of a column if possible."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        categories = values.dtype.categories
        text: Label = UNKNOWN_TEXT if not pd.api.types.is_numeric_dtype(categories.dtype) else int(categories.max()) + 977
        return pd.Series(pd.Categorical([text], categories=[*categories, text]))
    return pd.Series([UNKNOWN_TEXT], dtype=object)


def _ask_about_unknown(model: Original, columns: Sequence[Column], asked: pd.DataFrame, complete: pd.DataFrame) -> list[Column]:
    deadline = time.monotonic() + ASK_SECONDS
    result = []
    for column in columns:
        if column.feature.kind == "category" and time.monotonic() < deadline:
            row = complete.copy()
            row[column.feature.name] = unknown_of(asked[column.feature.name])
            column = replace(column, unknown="answered" if _failure(model, row) is None else "refused")
        result.append(column)
    return result


def one_line(error: object) -> str:
    """The type and the start of the message of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
