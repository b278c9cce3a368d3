"""The rows to learn from, and the signature learnt from them: the built-in iris flowers, or any table with a target column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import train_test_split

from serve_app.artifacts.bundle import sha256
from serve_app.artifacts.signature import IRIS_BOUNDS, Feature, Label, Signature, Task
from serve_app.errors import UsageError
from serve_app.tables.table import first_row, plain_column, read_table
from training.train_options import TaskChoice

MAX_CLASSES = 100
"""Different values of a target that is predicted as a class."""

MAX_CLASS_NUMBERS = 20
"""Up to so many different whole numbers a numeric target is taken for classes, when nobody says otherwise."""

Bounds = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Features (float64, boolean or text columns; gaps are NaN) with the target, cut into rows to learn from and rows held out."""

    name: str
    sha256: str
    signature: Signature
    train: pd.DataFrame
    train_target: npt.NDArray[Any]
    test: pd.DataFrame
    test_target: npt.NDArray[Any]

    @property
    def rows(self) -> int:
        return len(self.train) + len(self.test)


def load(
    path: Path | None,
    *,
    target: str | None = None,
    task: TaskChoice = "auto",
    drop: Sequence[str] = (),
    bounds: Bounds | None = None,
    test_size: float = 0.2,
    random_state: int = 42,
) -> Dataset:
    """The dataset of a file, or the iris flowers when there is none; UsageError says what is wrong with the table."""
    limits = dict(bounds or {})
    if path is None:
        frame, digest, name, target = *_iris(), "iris", target or "species"
        limits = {**IRIS_BOUNDS, **limits}
    else:
        if target is None:
            raise UsageError("--data needs --target, the name of the column to predict")
        frame, digest, name = read_table(path), _file_digest(path), path.name
    for column in drop:
        if column not in frame.columns:
            raise UsageError(f"--drop '{column}' names no column; there are: {_listed(frame.columns)}")
    frame = frame.drop(columns=list(drop))
    if target not in frame.columns:
        raise UsageError(f"the target column '{target}' is not in {name}; there are: {_listed(frame.columns)}")
    if "Unnamed: 0" in frame.columns:
        raise UsageError("the first column has no name (an exported index?): name it, or leave it out with --drop 'Unnamed: 0'")
    features = frame.drop(columns=[target])
    if not len(features.columns):
        raise UsageError(f"{name} has no column besides the target '{target}': there is nothing to learn from")
    for column in limits:
        if column not in features.columns:
            raise UsageError(f"--bounds '{column}' names no feature; there are: {_listed(features.columns)}")
    labels, found_task = _target(target, frame[target], task)
    columns = {column: plain_column(column, features[column]) for column in features.columns}
    whole = frozenset(column for column in columns if pd.api.types.is_integer_dtype(features[column].dtype))
    table = pd.DataFrame(columns)
    train_rows, test_rows = _split(labels, found_task, test_size, random_state)
    learnt = tuple(_learn(column, table[column], train_rows, limits.get(column), column in whole) for column in columns)
    classes = tuple(_plain(label) for label in np.unique(labels)) if found_task == "classification" else ()
    return Dataset(
        name=name,
        sha256=digest,
        signature=Signature(learnt, found_task, classes, target),
        train=table.iloc[train_rows].reset_index(drop=True),
        train_target=labels[train_rows],
        test=table.iloc[test_rows].reset_index(drop=True),
        test_target=labels[test_rows],
    )


def json_rows(frame: pd.DataFrame, signature: Signature) -> list[dict[str, Label | None]]:
    """Rows as clients would send them."""
    columns = {feature.name: [_sent(value) for value in frame[feature.name].tolist()] for feature in signature.features}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _sent(value: Any) -> Label | None:
    if isinstance(value, float) and math.isnan(value):
        return None
    return _plain(value)


def _iris() -> tuple[pd.DataFrame, str]:
    from sklearn.datasets import load_iris

    iris = load_iris()
    frame = pd.DataFrame(iris.data, columns=list(IRIS_BOUNDS))
    frame["species"] = np.array(iris.target_names, dtype=object)[iris.target]
    return frame, sha256(frame.to_csv(index=False, lineterminator="\n").encode())


def _file_digest(path: Path) -> str:
    return sha256(path.read_bytes())


def _target(name: str, column: pd.Series[Any], task: TaskChoice) -> tuple[npt.NDArray[Any], Task]:
    """The labels as an array of texts, booleans, whole numbers or numbers, and what they are to be predicted as."""
    gaps = column.isna()
    if gaps.all():
        raise UsageError(f"the target column '{name}' is empty")
    if gaps.any():
        raise UsageError(f"the target column '{name}' is empty in row {first_row(gaps)}: fill it, or remove the row")
    try:
        values = plain_column(name, column)
    except UsageError as error:
        raise UsageError(
            str(error).replace(f", or leave it out with --drop '{name}'", "").replace("column", "the target column", 1)
        ) from None
    numeric = pd.api.types.is_float_dtype(values.dtype)
    whole = numeric and bool((values == values.round()).all()) and float(values.abs().max()) < 2**53
    distinct = int(values.nunique())
    if task == "auto":
        few = distinct <= MAX_CLASS_NUMBERS and distinct <= max(2, len(values) // 10)
        task = "classification" if not numeric or (whole and few) else "regression"
    if task == "regression":
        if not numeric:
            raise UsageError(
                f"the target column '{name}' holds no numbers: a regression needs them (--task classification predicts classes)"
            )
        if distinct < 2:
            raise UsageError(f"the target column '{name}' has one value in every row: there is nothing to learn")
        if len(values) < 5:
            raise UsageError(f"{len(values)} rows are too few: a regression needs at least 5")
        return values.to_numpy(dtype=np.float64), "regression"
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
    if whole:
        return values.to_numpy(dtype=np.int64), "classification"
    return values.to_numpy(), "classification"


def _split(labels: npt.NDArray[Any], task: Task, test_size: float, random_state: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rows = len(labels)
    held = math.ceil(test_size * rows)
    classes = len(np.unique(labels)) if task == "classification" else 1
    if held < classes or rows - held < classes:
        raise UsageError(
            f"--test-size {test_size:g} of {rows} rows leaves one side without a row per class ({classes}): change it, or add rows"
        )
    parts = train_test_split(
        np.arange(rows), test_size=test_size, random_state=random_state, stratify=labels if task == "classification" else None
    )
    return parts[0], parts[1]


def _learn(
    name: str, column: pd.Series[Any], train: npt.NDArray[Any], limits: tuple[float | None, float | None] | None, whole: bool
) -> Feature:
    """One column of the signature. Names and gaps are the table's; the range is what the model sees."""
    nullable = bool(column.isna().any())
    seen = column.iloc[train].dropna()
    example: Any = _plain((seen if len(seen) else column.dropna()).iloc[0])
    numeric = pd.api.types.is_float_dtype(column.dtype)
    if limits is not None and not numeric:
        raise UsageError(f"--bounds '{name}': only a column of numbers can have bounds")
    if not numeric:
        boolean = isinstance(example, bool)
        categories = () if boolean else tuple(sorted(column.dropna().unique()))
        return Feature(name, "boolean" if boolean else "category", categories=categories, nullable=nullable, example=example)
    if not len(seen):
        raise UsageError(
            f"column '{name}' is empty in every row to learn from: fill more rows, or leave it out with --drop '{name}'"
        )
    feature = Feature(
        name, low=float(seen.min()), high=float(seen.max()), nullable=nullable, example=int(example) if whole else example
    )
    if limits is None:
        return feature
    minimum, maximum = limits
    outside = column[(column < (-math.inf if minimum is None else minimum)) | (column > (math.inf if maximum is None else maximum))]
    if len(outside):
        row = int(np.asarray(outside.index)[0]) + 1
        raise UsageError(f"column '{name}' is {outside.iloc[0]:g} in row {row}, outside its bounds: correct the row or the bounds")
    return replace(feature, minimum=minimum, maximum=maximum)


def _plain(value: Any) -> Label:
    plain: Label = value.item() if isinstance(value, np.generic) else value
    return plain


def _listed(names: Any) -> str:
    texts = [str(name) for name in names]
    return ", ".join(texts[:20]) + (f" and {len(texts) - 20} more" if len(texts) > 20 else "")
