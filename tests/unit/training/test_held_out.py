"""Held-out rows: the newest ones, or whole groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from serve_app.errors import UsageError
from tests.support import tables
from training import search
from training.dataset import Dataset, load


def sales(rows: int = 200, *, seed: int = 0) -> pd.DataFrame:
    """Rows in no order of time, of 20 shops."""
    random = np.random.default_rng(seed)
    days = random.permutation(rows)
    frame = pd.DataFrame({"day": pd.Timestamp("2001-01-01") + pd.to_timedelta(days, "D"), "shop": random.integers(0, 20, rows)})
    frame["day"] = frame["day"].dt.strftime("%Y-%m-%d")
    return frame.assign(size=random.uniform(size=rows), sold=days + 0.5, big=np.where(days % 3 == 0, "yes", "no"))


def loaded(folder: Path, frame: pd.DataFrame, target: str = "sold", **options: Any) -> Dataset:
    drop = [name for name in ("sold", "big") if name in frame.columns and name != target]
    return load(tables.written(frame, folder), target=target, **{"drop": drop, **options})


def test_the_newest_rows_are_held_out(tmp_path: Path) -> None:
    dataset = loaded(tmp_path, sales(), time_column="day")
    assert len(dataset.test) == 40
    assert dataset.train_target.max() < dataset.test_target.min()
    assert (np.diff(dataset.train_target) > 0).all()
    assert dataset.signature.names == ("day", "shop", "size")
    assert any("2001-06-10" in remark for remark in dataset.remarks)


def test_a_dropped_time_column_orders_the_rows_and_is_no_feature(tmp_path: Path) -> None:
    dataset = loaded(tmp_path, sales(), time_column="day", drop=["day", "big"])
    assert dataset.signature.names == ("shop", "size")
    assert dataset.train_target.max() < dataset.test_target.min()


def test_rows_of_one_time_stay_on_one_side(tmp_path: Path) -> None:
    frame = sales().assign(week=lambda table: table["sold"] // 50)
    dataset = loaded(tmp_path, frame, time_column="week")
    assert set(dataset.test["week"]) == {3.0}
    assert set(dataset.train["week"]) == {0.0, 1.0, 2.0}


def test_most_rows_at_the_newest_time_are_held_out(tmp_path: Path) -> None:
    frame = sales().assign(step=lambda table: (table["sold"] > 10).astype(int))
    assert set(loaded(tmp_path, frame, time_column="step").test["step"]) == {1.0}


def test_groups_stay_together_and_are_no_feature(tmp_path: Path) -> None:
    frame = sales().assign(mark=lambda table: table["shop"] * 1.5)
    for target in ("sold", "big"):
        dataset = loaded(tmp_path, frame, target, group_column="shop")
        assert dataset.signature.names == ("day", "size", "mark")
        assert not set(dataset.train["mark"]) & set(dataset.test["mark"])
        assert 20 <= len(dataset.test) <= 60
        assert dataset.groups is not None
        assert len(dataset.groups) == len(dataset.train)
        assert len({*zip(dataset.groups.tolist(), dataset.train["mark"].tolist(), strict=True)}) == dataset.train["mark"].nunique()


@pytest.mark.parametrize("target", ["sold", "big"])
def test_folds_of_a_search_respect_time_and_groups(tmp_path: Path, target: str) -> None:
    by_time = loaded(tmp_path, sales(), target, time_column="day")
    for train, test in search.folds(by_time, 0):
        assert by_time.train["day"].iloc[train].max() < by_time.train["day"].iloc[test].min()
    by_group = loaded(tmp_path, sales(), target, group_column="shop")
    assert by_group.groups is not None
    folds = search.folds(by_group, 0)
    assert len(folds) == 5
    for train, test in folds:
        assert not set(by_group.groups[train]) & set(by_group.groups[test])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"time_column": "nothing"}, "'nothing'"),
        ({"group_column": "nothing"}, "'nothing'"),
        ({"time_column": "day", "group_column": "shop"}, "--group-column"),
        ({"time_column": "name"}, "'name'"),
        ({"time_column": "hole"}, "'hole' is empty in row 1"),
        ({"group_column": "hole"}, "'hole' is empty in row 1"),
        ({"time_column": "same"}, "'same'"),
        ({"group_column": "same"}, "'same'"),
        ({"dates": {"nothing": ()}}, "'nothing'"),
        ({"dates": {"size": ()}}, "'size'"),
    ],
)
def test_a_column_that_cannot_split_is_refused(tmp_path: Path, options: Any, named: str) -> None:
    frame = sales().assign(name=["b", *["a"] * 199], hole=[np.nan, *[1.0] * 199], same=1)
    with pytest.raises(UsageError, match=named):
        loaded(tmp_path, frame, **options)


def test_a_class_that_only_new_rows_have_is_refused(tmp_path: Path) -> None:
    frame = sales().assign(big=lambda table: np.where(table["sold"] > 170, "new", "old"))
    with pytest.raises(UsageError, match="class 'new' has no row"):
        loaded(tmp_path, frame, "big", time_column="day")


def test_a_class_of_one_group_is_learnt_or_refused(tmp_path: Path) -> None:
    frame = sales().assign(big=lambda table: np.where(table["shop"] == 3, "rare", "old"))
    dataset = loaded(tmp_path, frame, "big", group_column="shop")
    assert set(dataset.train_target) == {"rare", "old"}
