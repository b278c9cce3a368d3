"""The rows for training and evaluation, and their signature: the built-in iris flowers, or any table with a target column."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve_app.artifacts.dates import as_sent
from serve_app.artifacts.manifest import sha256
from serve_app.artifacts.signature import IRIS_BOUNDS, MISSING, Feature, Label, Signature, Task
from serve_app.errors import UsageError
from serve_app.printable import printable
from serve_app.tables.dates import DateColumn, date_column
from serve_app.tables.dialect import DialectFlags
from serve_app.tables.frame import Table, first_row, plain_column, read_table
from training import splits
from training.splits import Split
from training.train_options import TaskChoice

MAX_CLASSES = 100
"""Different values of a target that is predicted as a class."""

MAX_CLASS_NUMBERS = 20
"""With `auto`, a target of whole numbers with up to this many different values is a class."""

Bounds = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Features (float64, boolean or text columns; gaps are NaN) and the target, split into training rows and held-out rows.

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
    """How the table was read, and what is worth a look."""
    by_time: bool = False
    groups: npt.NDArray[Any] | None = None

    @property
    def rows(self) -> int:
        """The number of rows of the table."""
        return len(self.train) + len(self.test)


def load(
    path: Path | None,
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
) -> Dataset:
    """The dataset of a file, or of the iris flowers without one. Raises UsageError that names the column and row to correct.

    `missing` are the texts that mean a missing value, the usual ones by default. `dates` are the columns that are declared as
    dates, with their formats. The newest rows by `time_column` are held out, or whole groups of `group_column`, or random rows.
    """
    ranges = {**(IRIS_BOUNDS if path is None else {}), **(bounds or {})}
    data, name, target = _read(path, target, flags, missing)
    forms = dates or {}
    left_out = [*drop, *([group_column] if group_column is not None and group_column not in drop else [])]
    features = _features(data, name, target, left_out, ranges, [column for column in forms if column != time_column])
    labels, decided = _labels(target, data.frame[target], task, data.gaps)
    dated = _dates(features, forms)
    columns = {
        column: pd.Series(dated[column].values) if column in dated else plain_column(column, features[column])
        for column in features.columns
    }
    whole = frozenset(column for column in columns if pd.api.types.is_integer_dtype(features[column].dtype))
    table = pd.DataFrame(columns, copy=False)
    split = _split(data.frame, labels, decided, test_size, random_state, time_column, group_column, forms)
    train_rows, test_rows = split.train, split.test
    described = tuple(
        _date(column, dated[column], train_rows, ranges.get(column))
        if column in dated
        else _feature(column, table[column], train_rows, ranges.get(column), column in whole)
        for column in columns
    )
    classes = tuple(_plain(label) for label in np.unique(labels)) if decided == "classification" else ()
    return Dataset(
        name=name,
        sha256=data.sha256,
        signature=Signature(described, decided, classes, target, missing=data.missing),
        train=table.iloc[train_rows].reset_index(drop=True),
        train_target=labels[train_rows],
        test=table.iloc[test_rows].reset_index(drop=True),
        test_target=labels[test_rows],
        remarks=tuple(remark for remark in (data.description, *data.remarks, split.remark) if remark),
        by_time=time_column is not None,
        groups=split.groups,
    )


def json_rows(frame: pd.DataFrame, signature: Signature) -> list[dict[str, Label | None]]:
    """The rows as clients send them: by feature name, with None for a gap."""
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
    path: Path | None, target: str | None, flags: DialectFlags | None, missing: Sequence[str] | None
) -> tuple[Table, str, str]:
    """The raw table, its name, and the name of the target column."""
    if path is None:
        return Table(*_iris(), description="", missing=MISSING), "iris", target or "species"
    if target is None:
        raise UsageError("--data needs --target, the name of the column to predict")
    return read_table(path, flags=flags, missing=missing), printable(path.name), target


def _features(
    table: Table, name: str, target: str, drop: Sequence[str], ranges: Collection[str], dates: Collection[str]
) -> pd.DataFrame:
    """The columns to learn from; raises UsageError when a flag names a column that does not exist."""
    frame = table.frame
    for column in drop:
        if column not in frame.columns and column not in table.left_out:
            raise UsageError(f"--drop '{column}' names no column; there are: {_joined(frame.columns)}")
    frame = frame.drop(columns=[column for column in drop if column in frame.columns])
    if target not in frame.columns:
        raise UsageError(f"the target column '{target}' is not in {name}; there are: {_joined(frame.columns)}")
    features = frame.drop(columns=[target])
    if not len(features.columns):
        raise UsageError(f"{name} has no column besides the target '{target}': there is nothing to learn from")
    for column in ranges:
        if column not in features.columns:
            raise UsageError(f"--bounds '{column}' names no feature; there are: {_joined(features.columns)}")
    for column in dates:
        if column not in features.columns:
            raise UsageError(f"--date or --epoch '{column}' names no feature; there are: {_joined(features.columns)}")
    return features


def _iris() -> tuple[pd.DataFrame, str]:
    from sklearn.datasets import load_iris

    iris = load_iris()
    frame = pd.DataFrame(iris.data, columns=list(IRIS_BOUNDS))
    frame["species"] = np.array(iris.target_names, dtype=object)[iris.target]
    return frame, sha256(frame.to_csv(index=False, lineterminator="\n").encode())


def _labels(
    name: str, column: pd.Series[Any], task: TaskChoice, texts: Mapping[str, tuple[int, str]]
) -> tuple[npt.NDArray[Any], Task]:
    """The labels as an array of texts, booleans, whole numbers or numbers, and the task; `texts` are the first gaps as texts."""
    gaps = column.isna()
    row, text = texts.get(name, (1, ""))
    if gaps.all() and not text:
        raise UsageError(f"the target column '{name}' is empty")
    if gaps.any():
        row = first_row(gaps)
        if text:
            raise UsageError(
                f"the target column '{name}' says \"{text}\" in row {row}, which is read as missing: "
                "--na '' keeps such texts as values, or fill it, or remove the row"
            )
        raise UsageError(f"the target column '{name}' is empty in row {row}: fill it, or remove the row")
    try:
        values = plain_column(name, column)
    except UsageError as error:
        raise UsageError(
            str(error).replace(f", or leave it out with --drop '{name}'", "").replace("column", "the target column", 1)
        ) from None
    numeric = pd.api.types.is_float_dtype(values.dtype)
    whole = numeric and bool((values == values.round()).all()) and float(values.abs().max()) < 2**53
    if task == "auto":
        distinct = int(values.nunique())
        few = distinct <= MAX_CLASS_NUMBERS and distinct <= max(2, len(values) // 10)
        task = "classification" if not numeric or (whole and few) else "regression"
    if task == "regression":
        _check_regression(name, values, numeric=numeric)
        return values.to_numpy(dtype=np.float64), "regression"
    _check_classes(name, values)
    return values.to_numpy(dtype=np.int64) if whole else values.to_numpy(), "classification"


def _check_regression(name: str, values: pd.Series[Any], *, numeric: bool) -> None:
    if not numeric:
        raise UsageError(
            f"the target column '{name}' holds no numbers: a regression needs them (--task classification predicts classes)"
        )
    if int(values.nunique()) < 2:
        raise UsageError(f"the target column '{name}' has one value in every row: there is nothing to learn")
    if len(values) < 5:
        raise UsageError(f"{len(values)} rows are too few: a regression needs at least 5")


def _check_classes(name: str, values: pd.Series[Any]) -> None:
    distinct = int(values.nunique())
    if distinct < 2:
        raise UsageError(f"the target column '{name}' has one class only: a classification needs at least two")
    if distinct > MAX_CLASSES:
        raise UsageError(
            f"the target column '{name}' has {distinct} classes, more than {MAX_CLASSES}: group them, or use --task regression"
        )
    counts = values.value_counts()
    if int(counts.min()) < 2:
        rare = counts.index[-1]
        row = first_row(values == rare)
        raise UsageError(f"class '{rare}' of column '{name}' has a single row (row {row}): add rows of it, or remove it")


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
    """The rows to learn from and the held-out ones, by the flags."""
    for flag, column in (("--time-column", time_column), ("--group-column", group_column)):
        if column is not None and column not in frame.columns:
            raise UsageError(f"{flag} '{column}' names no column; there are: {_joined(frame.columns)}")
    if time_column is not None and group_column is not None:
        raise UsageError("--time-column and --group-column cannot be used together: choose one")
    if time_column is not None:
        return splits.newest(time_column, frame[time_column], labels, task, test_size, forms.get(time_column))
    if group_column is not None:
        return splits.whole_groups(group_column, frame[group_column], labels, task, test_size, random_state)
    return splits.at_random(labels, task, test_size, random_state)


def _dates(features: pd.DataFrame, forms: Mapping[str, Sequence[str]]) -> dict[str, DateColumn]:
    """The columns of dates; raises UsageError when a declared column holds none."""
    dated = {}
    for name in features.columns:
        column = date_column(name, features[name], forms.get(name))
        if column is not None:
            dated[name] = column
    return dated


def _date(name: str, column: DateColumn, train: npt.NDArray[Any], bounds: tuple[float | None, float | None] | None) -> Feature:
    """A column of dates in the signature; the range is that of the training rows, as codes."""
    if bounds is not None:
        raise UsageError(f"--bounds '{name}': only a column of numbers can have bounds")
    trained = column.values[train]
    trained = trained[~np.isnan(trained)]
    if not len(trained):
        raise UsageError(
            f"column '{name}' is empty in every row to learn from: fill more rows, or leave it out with --drop '{name}'"
        )
    return Feature(
        name,
        "date",
        low=float(trained.min()),
        high=float(trained.max()),
        nullable=bool(np.isnan(column.values).any()),
        example=as_sent(float(trained[0]), column.form),
        date=column.form,
    )


def _feature(
    name: str, column: pd.Series[Any], train: npt.NDArray[Any], bounds: tuple[float | None, float | None] | None, whole: bool
) -> Feature:
    """One column of the signature. Categories and gaps are those of the whole table; the range is that of the training rows."""
    numeric = column.dtype == np.float64
    values = column.to_numpy()
    gaps = np.isnan(values) if numeric else column.isna().to_numpy()
    nullable = bool(gaps.any())
    trained = values[train][~gaps[train]]
    example: Any = _plain((trained if len(trained) else values[~gaps])[0])
    if bounds is not None and not numeric:
        raise UsageError(f"--bounds '{name}': only a column of numbers can have bounds")
    if not numeric:
        boolean = isinstance(example, bool)
        categories = () if boolean else tuple(sorted(column.dropna().unique()))
        return Feature(name, "boolean" if boolean else "category", categories=categories, nullable=nullable, example=example)
    if not len(trained):
        raise UsageError(
            f"column '{name}' is empty in every row to learn from: fill more rows, or leave it out with --drop '{name}'"
        )
    if whole:
        example = int(example)
    feature = Feature(name, low=float(trained.min()), high=float(trained.max()), nullable=nullable, example=example)
    return feature if bounds is None else _bounded(feature, column, *bounds)


def _bounded(feature: Feature, column: pd.Series[Any], minimum: float | None, maximum: float | None) -> Feature:
    """The feature with bounds, inside which every row of the table must be."""
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
