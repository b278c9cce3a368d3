"""Selects the held-out rows: random rows, the newest rows, or the rows of whole groups."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, train_test_split

from serve_app.artifacts.dates import write
from serve_app.artifacts.signature import Task
from serve_app.errors import UsageError
from serve_app.tables.date_columns import date_column
from serve_app.tables.frame import first_row

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the training rows and of the held-out rows; `groups` are the groups of the training rows, as numbers."""

    train: Rows
    test: Rows
    remark: str = ""
    groups: npt.NDArray[Any] | None = None


def at_random(labels: npt.NDArray[Any], task: Task, test_size: float, random_state: int) -> Split:
    """Hold out random rows, with equal shares of the classes on both sides; raises UsageError when a side lacks a class."""
    rows = len(labels)
    held_out = math.ceil(test_size * rows)
    classes = len(np.unique(labels)) if task == "classification" else 1
    if held_out < classes or rows - held_out < classes:
        raise UsageError(
            f"--test-size {test_size:g} of {rows} rows leaves a side without rows of each class ({classes}): change it, or add rows"
        )
    parts = train_test_split(
        np.arange(rows), test_size=test_size, random_state=random_state, stratify=labels if task == "classification" else None
    )
    return Split(parts[0], parts[1])


def newest(
    name: str, column: pd.Series[Any], labels: npt.NDArray[Any], task: Task, test_size: float, formats: Sequence[str] | None
) -> Split:
    """Hold out the newest rows; rows with the same time stay on one side, and the training rows are in time order.

    Raises UsageError when the column has gaps or holds neither dates nor numbers, and when a class has only new rows.
    """
    gaps = column.isna()
    if gaps.any():
        raise UsageError(f"--time-column '{name}' is empty in row {first_row(gaps)}: fill it, or remove the row")
    dates = date_column(name, column, formats)
    if dates is not None:
        times: Any = dates.values
    elif pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        times = column.to_numpy(dtype=np.float64)
    else:
        raise UsageError(f"--time-column '{name}' holds neither dates nor numbers: choose a column with the time of each row")
    order = np.argsort(times, kind="stable")
    rows = len(order)
    cut = times[order[min(rows - 1, rows - math.ceil(test_size * rows))]]
    old = times < cut if (times < cut).any() else times <= cut
    train, test = order[old[order]], order[~old[order]]
    if not len(train) or not len(test):
        raise UsageError(f"--time-column '{name}' has one value in every row: choose a column with the time of each row")
    _check_classes(labels, train, task, f"before the newest {len(test)} rows, which --time-column holds out")
    start = times[test[0]]
    written = write(float(start), dates.form) if dates is not None else f"{start:g}"
    return Split(train, test, f"the held-out rows are the {len(test)} newest by '{name}', from {written} on")


def whole_groups(
    name: str, column: pd.Series[Any], labels: npt.NDArray[Any], task: Task, test_size: float, random_state: int
) -> Split:
    """Hold out about `test_size` of the rows, as whole groups; raises UsageError when a row has no group or there is one group.

    For a classification, the shares of the classes are about equal on both sides, as far as the groups allow.
    """
    gaps = column.isna()
    if gaps.any():
        raise UsageError(f"--group-column '{name}' is empty in row {first_row(gaps)}: fill it, or remove the row")
    groups, known = pd.factorize(column)
    if len(known) < 2:
        raise UsageError(f"--group-column '{name}' has one value in every row: choose a column with several groups")
    train, test = _groups(groups, labels, task, test_size, random_state)
    _check_classes(labels, train, task, f"outside the groups that --group-column '{name}' holds out")
    held_out = len(np.unique(groups[test]))
    remark = f"the held-out rows are the {len(test)} rows of {held_out} of the {len(known)} groups of '{name}'"
    return Split(train, test, remark, groups[train])


def _groups(groups: Rows, labels: npt.NDArray[Any], task: Task, test_size: float, random_state: int) -> tuple[Rows, Rows]:
    rows, count = np.zeros(len(groups)), len(np.unique(groups))
    folds = round(1 / test_size)
    if task == "classification" and 2 <= folds <= count:
        texts = np.array([str(label) for label in labels.tolist()])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class with fewer rows than folds
            parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=random_state).split(rows, texts, groups))
        for train, test in parts:
            if len(test) and len(np.unique(texts[train])) == len(np.unique(texts)):
                return train, test
    share = min(max(round(test_size * count), 1), count - 1)
    train, test = next(GroupShuffleSplit(1, test_size=share, random_state=random_state).split(rows, labels, groups))
    return train, test


def _check_classes(labels: npt.NDArray[Any], train: Rows, task: Task, where: str) -> None:
    if task == "classification":
        missing = sorted(set(map(str, np.unique(labels))) - set(map(str, np.unique(labels[train]))))
        if missing:
            raise UsageError(f"class '{missing[0]}' has no row {where}: change --test-size, or add rows")
