"""The rows for training and evaluation with their signature, from the built-in iris flowers or any table with a target column."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.artifacts.dates import DateForm, as_sent
from serve_app.artifacts.manifest import sha256
from serve_app.artifacts.manifest_bounds import MAX_OUTPUTS
from serve_app.artifacts.signature import EXACT, IRIS_BOUNDS, MISSING, Feature, Kind, Label, Output, Signature, Task
from serve_app.errors import UsageError
from serve_app.tables.date_columns import date_column
from serve_app.tables.dialect import DialectFlags
from serve_app.tables.frame import Table, first_row, read_table
from serve_app.tables.location import Location
from serve_app.tables.unusable import UnusableColumn
from training import held_out
from training.column_report import ColumnReport, Source, describe, looks_like_identifier
from training.complaints import DROP_RARE, DROP_UNLABELLED, Complaint, Complaints
from training.held_out import Split
from training.train_options import WITHOUT_TARGET, TaskChoice

MAX_CLASSES = 100
"""Most different values of a target for a classification."""

MAX_CLASS_NUMBERS = 20
"""Most different values for which `auto` predicts whole numbers as classes."""

Bounds = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Features (float64, boolean or text columns; gaps are NaN) and the target, split into training rows and held-out rows.

    Targets have the shape (rows,), or (rows, targets) when there are several.

    Dates are codes, float64 (serve_app.artifacts.dates). `by_time`: the training rows are in the order of a time column, and all
    held-out rows are newer. `groups` are the groups of the training rows, as numbers; no group is on both sides.
    """

    name: str
    sha256: str
    signature: Signature
    train: pd.DataFrame
    train_target: npt.NDArray[Any]
    test: pd.DataFrame
    test_target: npt.NDArray[Any]
    remarks: tuple[str, ...] = ()
    """Notes about the table and how it was read."""
    by_time: bool = False
    groups: npt.NDArray[Any] | None = None
    columns: tuple[ColumnReport, ...] = ()
    """The report on each column, the target first."""
    calibration: pd.DataFrame | None = None
    """Rows outside the fit that give the bound of a coverage; None without a coverage."""
    calibration_target: npt.NDArray[Any] | None = None

    @property
    def rows(self) -> int:
        """The number of rows of the table."""
        return len(self.train) + len(self.test) + (0 if self.calibration is None else len(self.calibration))


def load(
    source: Path | Location | None,
    *,
    target: str | None = None,
    task: TaskChoice = "auto",
    drop: Sequence[str] = (),
    bounds: Bounds | None = None,
    dates: Mapping[str, Sequence[str]] | None = None,
    time_column: str | None = None,
    group_column: str | None = None,
    test_size: float = 0.2,
    random_state: int = 42,
    flags: DialectFlags | None = None,
    missing: Sequence[str] | None = None,
    drop_unlabelled: bool = False,
    drop_rare: bool = False,
    kinds: Mapping[str, Kind] | None = None,
) -> Dataset:
    """Load the dataset of a file, or the iris flowers without a file. Raises UsageError with all problems of the table.

    `missing` are the texts that mean a missing value, by default the usual ones. `drop_unlabelled` leaves out rows without a
    target, `drop_rare` rows of classes with a single row. `kinds` are the kinds of columns (also of the target) from flags, and
    `dates` the columns that flags declare as dates, with their formats. The held-out rows are the newest rows by `time_column`,
    whole groups of `group_column`, or random rows.
    """
    if source is not None and target is None and task not in WITHOUT_TARGET:
        raise UsageError("--data needs --target with the name of the column to predict")
    ranges = {**(IRIS_BOUNDS if source is None else {}), **(bounds or {})}
    data, name, target = _read(source, target, flags, missing, kinds or {})
    forms, grouped = dates or {}, [] if group_column is None or group_column in drop else [group_column]
    unlabelled = WITHOUT_TARGET.get(task)
    targets = [] if unlabelled is not None else target_names(target, data.frame.columns)
    features = _features(data, name, targets, [*drop, *grouped], ranges, [column for column in forms if column != time_column])
    complaints = Complaints()
    columns, date_forms = _usable(data, features.columns, forms, complaints)
    leaves = Leaves(drop_unlabelled, drop_rare)
    try:
        if unlabelled is None:
            labels, decided, kept, left_out = _all_labels(targets, data, task, leaves, complaints)
        else:
            labels, decided, kept, left_out = np.zeros(len(features)), unlabelled, np.ones(len(features), bool), []
    except UsageError as error:
        complaints.add(Complaint(str(error), ""))
    complaints.raise_any()
    whole = frozenset(column for column in columns if pd.api.types.is_integer_dtype(features[column].dtype))
    table, frame = pd.DataFrame(columns, copy=False), data.frame
    if not kept.all():
        table, labels, frame = table[kept], labels[kept], frame[kept]
        columns = {column: table[column] for column in table.columns}
    stratified: Task = decided if len(targets) == 1 else "regression"  # with several targets, the split does not depend on classes
    split = _split(frame, labels, stratified, test_size, random_state, time_column, group_column, forms)
    train_rows, test_rows = split.train, split.test
    described = _describe(table, train_rows, ranges, whole, date_forms)
    described = tuple(replace(each, unit=unit) if (unit := data.unit(each.name)) is not None else each for each in described)
    if len(targets) > 1:
        outputs = tuple(_output(each, labels[:, at], decided, train_rows) for at, each in enumerate(targets))
        signature = _signature_of(described, decided, outputs, data.missing)
    elif unlabelled is not None:
        signature = _without_target(described, unlabelled, data.missing)
    else:
        classes = tuple(_plain(label) for label in np.unique(labels)) if decided == "classification" else ()
        signature = Signature(described, decided, classes, targets[0], missing=data.missing)
    return Dataset(
        name=name,
        sha256=data.sha256,
        signature=signature,
        train=table.iloc[train_rows].reset_index(drop=True),
        train_target=labels[train_rows],
        test=table.iloc[test_rows].reset_index(drop=True),
        test_target=labels[test_rows],
        remarks=tuple(remark for remark in (data.description, *data.remarks, *left_out, split.remark) if remark),
        columns=describe(columns, labels, signature, _sources(data, forms)),
        by_time=time_column is not None,
        groups=split.groups,
    )


def json_rows(frame: pd.DataFrame, signature: Signature) -> list[dict[str, Label | None]]:
    """The rows in the form of requests: values by feature name, with None for a gap."""
    columns = {
        feature.name: [_json_value(feature, value) for value in frame[feature.name].tolist()] for feature in signature.features
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _json_value(feature: Feature, value: Any) -> Label | None:
    if isinstance(value, float) and math.isnan(value):
        return None
    if feature.date is not None:
        return as_sent(value, feature.date)
    return _plain(value)


def _read(
    source: Path | Location | None,
    target: str | None,
    flags: DialectFlags | None,
    missing: Sequence[str] | None,
    kinds: Mapping[str, Kind],
) -> tuple[Table, str, str]:
    """The raw table, its name, and the name of the target column."""
    if source is None:
        return Table(*_iris(), description="", missing=MISSING, kinds=kinds), "iris", target or "species"
    location = Location.of(source)
    return read_table(location, flags=flags, missing=missing, kinds=kinds), location.name, target or ""


def target_names(target: str, columns: Collection[str]) -> list[str]:
    """The targets in a flag: one column, or several, separated by commas."""
    if target in columns or "," not in target:
        return [target]
    names = [name.strip() for name in target.split(",") if name.strip()]
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise UsageError(f"--target names the column '{twice}' twice: name it once")
    if len(names) > MAX_OUTPUTS:
        raise UsageError(f"--target names {len(names)} columns, more than {MAX_OUTPUTS}: train several models")
    return names or [target]


def _features(
    table: Table, name: str, targets: Sequence[str], drop: Sequence[str], ranges: Collection[str], dates: Collection[str]
) -> pd.DataFrame:
    """The columns of the features; raises UsageError when a flag names a column that does not exist."""
    frame = table.frame
    for column, kind in table.kinds.items():
        if column not in frame.columns:
            raise UsageError(f"--{kind} '{column}' is not a column of the table; its columns are: {_joined(frame.columns)}")
    for column in drop:
        if column not in frame.columns and column not in table.left_out:
            raise UsageError(f"--drop '{column}' is not a column of the table; its columns are: {_joined(frame.columns)}")
    frame = frame.drop(columns=[column for column in drop if column in frame.columns])
    for target in targets:
        if target not in frame.columns:
            raise UsageError(f"the target column '{target}' is not in {name}; its columns are: {_joined(frame.columns)}")
    features = frame.drop(columns=list(targets))
    if not len(features.columns):
        besides = f" besides the target '{', '.join(targets)}'" if targets else ""
        raise UsageError(f"{name} has no column{besides}: add columns to learn from")
    for column in ranges:
        if column not in features.columns:
            raise UsageError(f"--bounds '{column}' is not a feature; the features are: {_joined(features.columns)}")
    _check_dates(table, features, dates)
    return features


def _check_dates(table: Table, features: pd.DataFrame, dates: Collection[str]) -> None:
    for column in dates:
        if column in table.kinds:
            raise UsageError(f"--date or --epoch and --{table.kinds[column]} both name the column '{column}': use one of them")
        if column not in features.columns:
            raise UsageError(f"--date or --epoch '{column}' is not a feature; the features are: {_joined(features.columns)}")


def _iris() -> tuple[pd.DataFrame, str]:
    from sklearn.datasets import load_iris

    iris = load_iris()
    frame = pd.DataFrame(iris.data, columns=list(IRIS_BOUNDS))
    frame["species"] = np.array(iris.target_names, dtype=object)[iris.target]
    return frame, sha256(frame.to_csv(index=False, lineterminator="\n").encode())


@dataclass(frozen=True, slots=True)
class Leaves:
    """Which rows may be left out: those without a target, and those of classes with a single row."""

    unlabelled: bool
    rare: bool


def _sources(table: Table, dates: Collection[str]) -> dict[str, Source]:
    """The origin of the kind of each column; the kinds of other columns are guessed."""
    typed: dict[str, Source] = dict.fromkeys(table.typed, "by the file")
    return {**typed, **dict.fromkeys([*table.kinds, *dates], "declared")}


def _usable(
    table: Table, names: Iterable[str], dates: Mapping[str, Sequence[str]], complaints: Complaints
) -> tuple[dict[str, pd.Series[Any]], dict[str, DateForm]]:
    """The columns as numbers, booleans, texts or codes of dates, and the forms of the dates; unusable columns become complaints."""
    columns, forms = {}, {}
    for name in names:
        try:
            dated = None if name in table.kinds else date_column(name, table.frame[name], dates.get(name))
            columns[name] = table.column(name) if dated is None else pd.Series(dated.values)
            if dated is not None:
                forms[name] = dated.form
        except UnusableColumn as error:
            complaints.add_column(error)
    return columns, forms


def _describe(
    table: pd.DataFrame, train: npt.NDArray[Any], ranges: Bounds, whole: Collection[str], dates: Mapping[str, DateForm]
) -> tuple[Feature, ...]:
    """The features of the signature; raises UsageError with all columns that have no value in the training rows."""
    complaints, features = Complaints(), []
    for name in table.columns:
        try:
            if name in dates:
                features.append(_date(name, table[name].to_numpy(), dates[name], train, ranges.get(name)))
            else:
                features.append(_feature(name, table[name], train, ranges.get(name), name in whole))
        except UnusableColumn as error:
            complaints.add_column(error)
    complaints.raise_any()
    return tuple(features)


Labels = npt.NDArray[Any]
"""Labels, one for each row: texts, booleans, whole numbers or numbers."""


def _all_labels(
    names: Sequence[str], table: Table, task: TaskChoice, leaves: Leaves, complaints: Complaints
) -> tuple[Labels, Task, npt.NDArray[np.bool_], list[str]]:
    """Like `_labels`; the labels of several targets have the shape (rows, targets), as objects if their types differ."""
    if len(names) == 1:
        return _labels(names[0], table, task, leaves, complaints)
    parts = [_labels(name, table, task, leaves, complaints) for name in names]
    complaints.raise_any()
    tasks = {name: decided for name, (_, decided, _, _) in zip(names, parts, strict=True)}
    if len(set(tasks.values())) > 1:
        classes = next(name for name, decided in tasks.items() if decided == "classification")
        numbers = next(name for name, decided in tasks.items() if decided == "regression")
        raise UsageError(
            f"'{classes}' holds classes and '{numbers}' numbers: a model needs targets of one kind; use --task, or two models"
        )
    columns = [labels for labels, _, _, _ in parts]
    if len({column.dtype.kind for column in columns}) > 1:
        columns = [column.astype(object) for column in columns]
    kept = np.logical_and.reduce([mask for _, _, mask, _ in parts])
    return np.column_stack(columns), parts[0][1], kept, [remark for _, _, _, remarks in parts for remark in remarks]


def _output(name: str, labels: Labels, task: Task, train: npt.NDArray[Any]) -> Output:
    """One of several targets; raises UsageError when a class has no training row."""
    if task == "regression":
        return Output(name)
    classes = tuple(_plain(label) for label in np.unique(labels))
    missing = sorted(set(map(str, classes)) - {str(label) for label in labels[train].tolist()})
    if missing:
        raise UsageError(f"class '{missing[0]}' of '{name}' has no training row: add rows, or change --random-state")
    return Output(name, classes)


def _without_target(features: tuple[Feature, ...], task: Task, missing: Any) -> Signature:
    """The signature before the fit, without the number of clusters."""
    if task == "clustering":
        return Signature(features, task, (0,), target="cluster", probabilistic=False, missing=missing)
    return Signature(features, task, target="outlier", missing=missing)


def _signature_of(features: tuple[Feature, ...], task: Task, outputs: tuple[Output, ...], missing: Any) -> Signature:
    try:
        return Signature(features, task, target=", ".join(output.name for output in outputs), missing=missing, outputs=outputs)
    except ValueError as error:
        raise UsageError(f"--target: {error}") from None


def _labels(
    name: str,
    table: Table,
    task: TaskChoice,
    leaves: Leaves,
    complaints: Complaints,
) -> tuple[Labels, Task, npt.NDArray[np.bool_], list[str]]:
    """The labels, the task, the mask of the kept rows, and remarks about the other rows.

    Problems that flags can skip become complaints. Raises UsageError for a target that cannot be predicted, if there is no other
    complaint.
    """
    filled = table.frame[name].notna()
    remarks: list[str] = []
    _, text = table.gaps.get(name, (1, ""))
    if not filled.any() and not text:
        raise UsageError(f"the target column '{name}' is empty")
    if not filled.all():
        if leaves.unlabelled:
            remarks.append(f"{int((~filled).sum())} rows without a value in '{name}' are left out")
        else:
            complaints.add(_unlabelled(name, filled, text))
    try:
        values = table.column(name)
    except UnusableColumn as error:
        complaints.add(Complaint(f"the target column '{name}' {error.why}", error.fix or "choose another column with --target"))
        return np.empty(0), "classification", filled.to_numpy(), remarks
    known = values[filled]
    if pd.api.types.is_object_dtype(known.dtype):
        known = known.infer_objects()
    numeric = pd.api.types.is_float_dtype(known.dtype)
    whole = numeric and bool((known == known.round()).all()) and float(known.abs().max()) < EXACT
    decided = _task(known, task, numeric=numeric, whole=whole)
    if decided == "regression":
        _check_regression(name, known, numeric=numeric)
        if task == "auto" and whole and looks_like_identifier(name, known.to_numpy()):
            complaints.add(
                Complaint(
                    f"the target column '{name}' holds whole numbers that look like identifiers",
                    "choose another column with --target",
                    "--task regression",
                )
            )
        return values.to_numpy(dtype=np.float64), decided, filled.to_numpy(), remarks
    counts = known.value_counts()
    rare = list(counts.index[counts < 2])
    kept = filled
    if rare and leaves.rare:
        kept = filled & ~values.isin(rare)
        remarks.append(f"{len(rare)} rows of classes with a single row are left out ({_joined(sorted(map(str, rare)))})")
    elif rare:
        complaints.add(_rare(name, rare, values))
    _check_classes(name, values[kept])
    labels = np.empty(len(values), dtype=np.int64 if whole else known.to_numpy().dtype)
    labels[filled.to_numpy()] = known.to_numpy()
    return labels, decided, kept.to_numpy(), remarks


def _task(values: pd.Series[Any], task: TaskChoice, *, numeric: bool, whole: bool) -> Task:
    if task == "classification" or task == "regression":
        return task
    distinct = int(values.nunique())
    few = distinct <= MAX_CLASS_NUMBERS and distinct <= max(2, len(values) // 10)
    return "classification" if not numeric or (whole and few) else "regression"


def _unlabelled(name: str, filled: pd.Series[Any], text: str) -> Complaint:
    row, count = first_row(~filled), int((~filled).sum())
    rows = f"in row {row}" if count == 1 else f"in {count} rows, first in row {row}"
    if text:
        return Complaint(
            f"the target column '{name}' has \"{text}\" {rows}, which means a missing value",
            "keep such texts as values with --na ''",
            DROP_UNLABELLED,
        )
    return Complaint(f"the target column '{name}' is empty {rows}", "fill it", DROP_UNLABELLED)


def _rare(name: str, rare: Sequence[Any], values: pd.Series[Any]) -> Complaint:
    """The complaint about classes with a single row, at most twenty of them with their row."""
    if len(rare) == 1:
        why = f"class '{_plain(rare[0])}' of column '{name}' has a single row (row {first_row(values == rare[0])})"
    else:
        rows = [f"'{_plain(label)}' (row {first_row(values == label)})" for label in rare[:20]]
        more = f" and {len(rare) - 20} more" if len(rare) > 20 else ""
        why = f"{len(rare)} classes of column '{name}' have a single row each: {', '.join(rows)}{more}"
    return Complaint(why, "add rows", DROP_RARE)


def _check_regression(name: str, values: pd.Series[Any], *, numeric: bool) -> None:
    if not numeric:
        raise UsageError(
            f"the target column '{name}' holds no numbers, but a regression needs numbers: "
            f"use --number {shlex.quote(name)} to read digits as numbers, or --task classification to predict classes"
        )
    if int(values.nunique()) < 2:
        raise UsageError(f"the target column '{name}' has the same value in every row: choose another column with --target")
    if len(values) < 5:
        raise UsageError(f"the table has {len(values)} rows: a regression needs at least 5")


def _check_classes(name: str, values: pd.Series[Any]) -> None:
    distinct = int(values.nunique())
    if distinct < 2:
        raise UsageError(f"the target column '{name}' has one class only: a classification needs at least two")
    if distinct > MAX_CLASSES:
        raise UsageError(
            f"the target column '{name}' has {distinct} classes, more than {MAX_CLASSES}: group them, or use --task regression"
        )


def _split(
    frame: pd.DataFrame,
    labels: npt.NDArray[Any],
    task: Task,
    test_size: float,
    random_state: int,
    time_column: str | None,
    group_column: str | None,
    forms: Mapping[str, Sequence[str]],
) -> Split:
    """The training rows and the held-out rows, according to the flags."""
    for flag, column in (("--time-column", time_column), ("--group-column", group_column)):
        if column is not None and column not in frame.columns:
            raise UsageError(f"{flag} '{column}' is not a column of the table; its columns are: {_joined(frame.columns)}")
    if time_column is not None and group_column is not None:
        raise UsageError("--time-column and --group-column cannot be used together: choose one")
    if time_column is not None:
        return held_out.newest(time_column, frame[time_column], labels, task, test_size, forms.get(time_column))
    if group_column is not None:
        return held_out.whole_groups(group_column, frame[group_column], labels, task, test_size, random_state)
    return held_out.at_random(labels, task, test_size, random_state)


def _date(
    name: str,
    codes: npt.NDArray[Any],
    form: DateForm,
    train: npt.NDArray[Any],
    bounds: tuple[float | None, float | None] | None,
) -> Feature:
    """A column of dates in the signature; its range comes from the training rows, as codes."""
    if bounds is not None:
        raise UsageError(f"--bounds '{name}': only a column of numbers can have bounds")
    trained = codes[train]
    trained = trained[~np.isnan(trained)]
    if not len(trained):
        raise UnusableColumn(name, "is empty in every row to learn from", "fill more rows")
    return Feature(
        name,
        "date",
        low=float(trained.min()),
        high=float(trained.max()),
        nullable=bool(np.isnan(codes).any()),
        example=as_sent(float(trained[0]), form),
        date=form,
    )


def _feature(
    name: str, column: pd.Series[Any], train: npt.NDArray[Any], bounds: tuple[float | None, float | None] | None, whole: bool
) -> Feature:
    """One column of the signature. Categories and gaps come from the whole table, the range from the training rows."""
    numeric = column.dtype == np.float64
    values = column.to_numpy()
    gaps = np.isnan(values) if numeric else column.isna().to_numpy()
    nullable = bool(gaps.any())
    trained = values[train][~gaps[train]]
    if gaps.all() or (numeric and not len(trained)):
        raise UnusableColumn(name, "is empty in every row to learn from", "fill more rows")
    example: Any = _plain((trained if len(trained) else values[~gaps])[0])
    if bounds is not None and not numeric:
        raise UsageError(f"--bounds '{name}': only a column of numbers can have bounds")
    if not numeric:
        boolean = isinstance(example, bool)
        categories = () if boolean else tuple(sorted(column.dropna().unique()))
        return Feature(name, "boolean" if boolean else "category", categories=categories, nullable=nullable, example=example)
    if whole:
        example = int(example)
    feature = Feature(name, low=float(trained.min()), high=float(trained.max()), nullable=nullable, example=example)
    return feature if bounds is None else _bounded(feature, column, *bounds)


def _bounded(feature: Feature, column: pd.Series[Any], minimum: float | None, maximum: float | None) -> Feature:
    """The feature with bounds; raises UsageError when a row of the table is outside."""
    below = column < (-math.inf if minimum is None else minimum)
    outside = column[below | (column > (math.inf if maximum is None else maximum))]
    if len(outside):
        row = int(np.asarray(outside.index)[0]) + 1
        raise UsageError(
            f"column '{feature.name}' is {outside.iloc[0]:g} in row {row}, outside its bounds: correct the row or the bounds"
        )
    return replace(feature, minimum=minimum, maximum=maximum)


def _plain(value: Any) -> Label:
    plain: Label = value.item() if isinstance(value, np.generic) else value
    return plain


def _joined(names: Any) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:20]) + (f" and {len(texts) - 20} more" if len(texts) > 20 else "")
