"""One message names everything that keeps a table from being learnt, and the flags that go on without it."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from serve_app.errors import UsageError
from tests.support import tables
from training.dataset import Dataset, load
from training.train_options import TrainOptions


def wrong(folder: Path) -> Path:
    """A table with four columns that cannot be used, two rows without a target and two classes with a single row."""
    rows = 80
    table = pd.DataFrame(
        {
            "size": [row / 7 for row in range(rows)],
            "Men's name": [f"person {row}" for row in range(rows)],
            "empty": [None] * rows,
            "joined": [f"2026-01-{1 + row % 28:02d} 10:00" for row in range(rows)],
            "a, b": [1.5] * (rows - 1) + ["?"],
            "kind": ["x", "y"] * (rows // 2 - 2) + [None, "z", "w", None],
        }
    )
    return tables.written(table, folder)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, target="kind", **options)
    return str(caught.value)


def flags(sentence: str) -> dict[str, Any]:
    """What the pasted flags mean to `load`."""
    words = shlex.split(sentence[re.search(r"--drop|--rows", sentence).start() :])  # type: ignore[union-attr]
    return {
        "drop": [value for flag, value in pairwise(words) if flag == "--drop"],
        "drop_unlabelled": "--drop-rows-without-target" in words,
        "drop_rare": "--drop-rare-classes" in words,
    }


def loaded(path: Path, **options: Any) -> Dataset:
    return load(path, target="kind", **options)


def test_the_flags_of_one_message_make_the_table_usable(tmp_path: Path) -> None:
    path = wrong(tmp_path)
    sentence = refusal(path, drop=["joined"])
    for what in ("Men's name", "empty", "a, b", "'z' (row 78)", "'w' (row 79)", "2 rows, first in row 77"):
        assert what in sentence
    options = flags(sentence[sentence.rindex(": correct") :])
    assert options == {"drop": ["Men's name", "empty", "a, b"], "drop_unlabelled": True, "drop_rare": True}
    dataset = loaded(path, **{**options, "drop": [*options["drop"], "joined"]})
    assert dataset.signature.names == ("size",)
    assert dataset.signature.classes == ("x", "y")
    assert dataset.rows == 76
    assert len([remark for remark in dataset.remarks if "left out" in remark]) == 2


def test_a_name_in_the_flags_is_quoted_for_the_shell(tmp_path: Path) -> None:
    table = pd.DataFrame({"size": range(20), "$(id) 'x'": [None] * 20, "kind": ["x", "y"] * 10})
    sentence = refusal(tables.written(table, tmp_path))
    assert flags(sentence)["drop"] == ["$(id) 'x'"]


def test_rows_are_counted_as_they_are_in_the_file_whatever_leaves(tmp_path: Path) -> None:
    table = pd.DataFrame({"size": [*range(19), 99], "kind": [None, "x", "y", "x", "y"] * 4})
    path = tables.written(table, tmp_path)
    assert "in 4 rows, first in row 1:" in refusal(path)
    sentence = refusal(path, drop_unlabelled=True, bounds={"size": (0.0, 50.0)})
    assert "in row 20" in sentence
    assert loaded(path, drop_unlabelled=True).rows == 16


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([None, True, False, True, False] * 6, (False, True)),
        ([None, 1, 2, 1, 2] * 6, (1, 2)),
        ([None, "a", "b", "a", "b"] * 6, ("a", "b")),
        ([None, 0.25, 1.5, 2.75, 3.5] * 6, ()),
    ],
)
def test_rows_without_a_target_leave_targets_of_every_kind_as_they_are(
    tmp_path: Path, values: list[Any], classes: tuple[Any, ...]
) -> None:
    path = tables.written(pd.DataFrame({"size": range(30), "kind": pd.Series(values, dtype=object)}), tmp_path)
    dataset = loaded(path, drop_unlabelled=True)
    assert dataset.signature.classes == classes
    assert [type(label) for label in dataset.signature.classes] == [type(label) for label in classes]
    assert dataset.rows == 24
    assert not pd.isna(dataset.train_target).any()


def test_a_column_that_is_empty_once_rows_have_left_is_a_complaint(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"size": range(20), "note": ["only here", *[None] * 19], "code": [1.5, *[None] * 19], "kind": [None, "x"] + ["x", "y"] * 9}
    )
    sentence = refusal(tables.written(table, tmp_path), drop_unlabelled=True)
    assert flags(sentence[sentence.rindex(": correct") :])["drop"] == ["note", "code"]


def test_a_target_that_cannot_be_predicted_is_named_with_the_columns(tmp_path: Path) -> None:
    table = pd.DataFrame({"size": range(20), "empty": [None] * 20, "kind": ["x"] * 20})
    sentence = refusal(tables.written(table, tmp_path))
    assert "one class only" in sentence
    assert "--drop empty" in sentence


def test_the_flags_are_options_of_the_command() -> None:
    options = TrainOptions(drop_rows_without_target=True, drop_rare_classes=True)
    assert (options.drop_rows_without_target, options.drop_rare_classes) == (True, True)
