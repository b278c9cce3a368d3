"""Training shows what it makes of each column before it fits, and predicts no identifiers that nobody asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest

from serve_app.command_line import REFUSED, WRONG_USAGE, run_command
from serve_app.errors import UsageError
from tests.support import tables
from training.column_report import MAX_LINES, ColumnReport, lines
from training.commands import app
from training.dataset import load


def report(folder: Path, **columns: Any) -> dict[str, ColumnReport]:
    """The report on a table of 60 rows with these columns and the target `y`."""
    frame = pd.DataFrame({**{name: (list(values) * 60)[:60] for name, values in columns.items()}, "y": ["a", "b"] * 30})
    dataset = load(tables.written(frame, folder), target="y")
    return {each.name: each for each in dataset.columns}


def remarks(folder: Path, **columns: Any) -> str:
    """All remarks on a column `x`, or on the single column that is given."""
    (name,) = columns
    return "; ".join(report(folder, **columns, size=[0.5, 1.5, 2.5])[name].remarks)


def test_each_column_has_its_kind_counts_and_values(tmp_path: Path) -> None:
    dataset = load(tables.written(tables.customers(), tmp_path), target="stays", kinds={"spent": "number"})
    found = {each.name: (each.role, each.kind, each.source, each.missing > 0) for each in dataset.columns}
    assert found == {
        "stays": ("target", "class", "guessed", False),
        "age": ("feature", "number", "guessed", True),
        "plan": ("feature", "category", "guessed", True),
        "active": ("feature", "boolean", "guessed", False),
        "newsletter": ("feature", "boolean", "guessed", True),
        "spent": ("feature", "number", "declared", False),
    }
    by_name = {each.name: each for each in dataset.columns}
    frame = tables.customers()
    for name in found:
        assert (by_name[name].distinct, by_name[name].missing) == (frame[name].nunique(), frame[name].isna().sum())
    assert by_name["plan"].values == "basic, gold, silver"
    assert by_name["age"].values == f"{frame['age'].min():g} to {frame['age'].max():g}"


def test_the_kind_of_a_parquet_text_is_that_of_the_file(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": ["1", "2", "3"] * 20, "size": range(60), "y": ["a", "b"] * 30})
    frame.to_parquet(tmp_path / "t.parquet")
    columns = {each.name: each for each in load(tmp_path / "t.parquet", target="y").columns}
    assert (columns["x"].kind, columns["x"].source) == ("category", "by the file")
    assert columns["size"].source == "by the file"


def test_labels_that_differ_in_blanks_or_case_are_said(tmp_path: Path) -> None:
    path = tables.lines(tmp_path, "x,y", *tables.many(60, lambda row: row / 7, lambda row: ("yes", "Yes", "no")[row % 3]))
    assert "'Yes' and 'yes'" in " ".join(load(path, target="y").columns[0].remarks)


@pytest.mark.parametrize(
    ("values", "remark"),
    [
        (["7"], "constant"),
        (range(60), "one value per row"),
        (range(500, 560), "identifier"),
        (["Yes", "yes ", "no"], "differ in blanks or case only"),
        (["0", "1", "2", "3+"], "--na 3+"),
        (["01234", "02139"], "leading zeros"),
        (["5 kg", "6 kg", "7 kg"], "unit"),
        (["yes", "no", "Y", "0"], "several ways"),
    ],
)
def test_what_is_worth_a_look_is_said(tmp_path: Path, values: Any, remark: str) -> None:
    assert remark in remarks(tmp_path, x=values)


def test_a_plain_column_has_no_remark(tmp_path: Path) -> None:
    assert remarks(tmp_path, x=[0.5, 1.5, 2.5]) == ""
    assert remarks(tmp_path, x=["red", "green"]) == ""


def test_a_column_named_as_an_identifier_is_said(tmp_path: Path) -> None:
    assert "--drop customerId" in remarks(tmp_path, customerId=[row * 977 % 6133 for row in range(60)])
    assert "--category store_id" in remarks(tmp_path, store_id=[3, 8, 11])


def test_numbers_that_a_flag_rounds_are_said(tmp_path: Path) -> None:
    path = tables.lines(tmp_path, "x,y", *tables.many(60, lambda row: 2**60 + row, lambda row: row % 2))
    x = load(path, target="y", kinds={"x": "number"}).columns[1]
    assert "rounded" in " ".join(x.remarks)
    assert not load(path, target="y", kinds={"x": "category"}).signature.features[0].unit


def test_a_header_that_is_a_row_is_said_for_each_column(tmp_path: Path) -> None:
    path = tables.lines(tmp_path, "5.1,3.5,y", *tables.many(60, lambda row: row / 7, lambda row: row / 3, lambda row: row % 2))
    for each in load(path, target="y").columns[1:]:
        assert "the header looks like data" in each.remarks


def test_a_header_of_texts_that_are_values_is_said(tmp_path: Path) -> None:
    rows = tables.many(60, lambda row: ("red", "blue")[row % 2], lambda row: row / 7, lambda row: ("a", "b")[row % 2])
    header = tables.lines(tmp_path, "red,5.1,a", *rows)
    assert all("the header looks like data" in each.remarks for each in load(header, target="a").columns)
    name = tables.lines(tmp_path, "red,size,y", *rows)
    assert not any(each.remarks for each in load(name, target="y").columns)


def test_names_that_differ_in_case_are_said(tmp_path: Path) -> None:
    path = tables.lines(tmp_path, "width,Width,y", *tables.many(60, lambda row: row / 7, lambda row: row / 3, lambda row: row % 2))
    assert "'width'" in " ".join({each.name: each for each in load(path, target="y").columns}["Width"].remarks)


def test_the_lines_of_a_wide_table_are_bounded() -> None:
    columns = [ColumnReport(f"c{at}", "feature", "number", "guessed", 2, 0, "0 to 1") for at in range(100)]
    assert len(lines(columns)) == MAX_LINES + 1
    assert "60 more" in lines(columns)[-1]
    assert len(lines(columns[:MAX_LINES])) == MAX_LINES


class TestIdentifiers:
    """A target of identifiers is no regression unless a flag says so."""

    @staticmethod
    def table(folder: Path, name: str, values: list[int]) -> Path:
        frame = pd.DataFrame({"x": [row / 7 for row in range(len(values))], name: values})
        return tables.written(frame, folder)

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("row", list(range(1, 121))),
            ("unnamed", list(range(900, 1020))[::-1]),
            ("order_id", [1000 + row * 17 % 500 for row in range(120)]),
            ("PassengerId", [7 * row for row in range(120)]),
            ("zip", [10115 + row % 60 * 31 for row in range(120)]),
            ("Ticket", [113803 + row * row for row in range(120)]),
        ],
    )
    def test_are_refused_with_the_way_out(self, tmp_path: Path, name: str, values: list[int]) -> None:
        path = self.table(tmp_path, name, values)
        with pytest.raises(UsageError, match="--task regression"):
            load(path, target=name)
        assert load(path, target=name, task="regression").signature.task == "regression"

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("price", list(range(100, 340, 2))),
            ("humid", [row * 7 for row in range(120)]),
            ("count", [row % 60 for row in range(120)]),
            ("population", [1000 + row * row for row in range(120)]),
        ],
    )
    def test_quantities_are_none(self, tmp_path: Path, name: str, values: list[int]) -> None:
        assert load(self.table(tmp_path, name, values), target=name).signature.task == "regression"


class TestDryRun:
    """`--dry-run` reads, prints and stops."""

    def test_nothing_is_published_or_recorded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = tables.written(tables.spam(), tmp_path)
        arguments = ["train", "--data", str(path), "--target", "spam", "--dry-run"]
        assert run_command(app, arguments, "training") == 0
        assert sorted(item.name for item in tmp_path.iterdir()) == ["table.csv"]
        printed = capfd.readouterr().err
        assert all(name in printed for name in ("spam: ", "links: ", "length: "))
        assert run_command(app, [*arguments, "--report", "columns.json"], "training") == 0
        columns = orjson.loads((tmp_path / "columns.json").read_bytes())["columns"]
        assert [column["name"] for column in columns] == ["spam", "links", "length"]

    def test_a_table_that_cannot_be_learnt_fails_as_in_training(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        path = tables.lines(tmp_path, "x,y", *tables.many(200, lambda row: f"customer{row}", lambda row: row % 2))
        assert run_command(app, ["train", "--data", str(path), "--target", "y", "--dry-run"], "training") == WRONG_USAGE

    def test_a_column_of_two_kinds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        path = tables.written(tables.spam(), tmp_path)
        flags = ["--category", "links", "--number", "links"]
        assert run_command(app, ["train", "--data", str(path), "--target", "spam", *flags], "training") == WRONG_USAGE


def test_the_report_of_a_training_has_every_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tables.written(tables.spam(), tmp_path)
    flags = ["--no-tracking", "--n-estimators", "2", "--category", "links"]
    assert run_command(app, ["train", "--data", str(path), "--target", "spam", *flags], "training") in (0, REFUSED)
    columns = orjson.loads((tmp_path / "models" / "verdict.json").read_bytes())["columns"]
    assert [(column["name"], column["kind"], column["source"]) for column in columns] == [
        ("spam", "class", "guessed"),
        ("links", "category", "declared"),
        ("length", "number", "guessed"),
    ]
