from __future__ import annotations

import datetime as dt
import decimal
import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.signature import Signature
from serve_app.errors import UsageError
from serve_app.tables.frame import plain_column
from tests.support import tables
from training.dataset import json_rows, load


def feature(signature: Signature, name: str) -> Any:
    return next(feature for feature in signature.features if feature.name == name)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, **{"target": "y", **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_iris_flowers_are_built_in_with_the_names_and_bounds_of_the_contract() -> None:
    dataset = load(None)
    assert dataset.signature.names == ("sepal_length", "sepal_width", "petal_length", "petal_width")
    assert dataset.signature.classes == ("setosa", "versicolor", "virginica")
    assert dataset.signature.target == "species"
    assert all((item.minimum, item.maximum) == (0.0, 20.0) for item in dataset.signature.features)
    assert (len(dataset.train), len(dataset.test)) == (120, 30)
    assert pd.Series(dataset.test_target).value_counts().tolist() == [10, 10, 10]
    assert not any(item.nullable for item in dataset.signature.features)


def test_the_example_in_the_signature_is_a_row_that_the_contract_accepts() -> None:
    signature = load(None).signature
    assert read_rows(signature, [signature.example()]).shape == (1, 4)


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_table_of_every_kind_is_learnt_the_same_from_csv_and_parquet(tmp_path: Path, name: str) -> None:
    signature = load(tables.written(tables.customers(), tmp_path, name), target="stays").signature
    kinds = {item.name: (item.kind, item.nullable) for item in signature.features}
    assert kinds == {
        "age": ("number", True),
        "plan": ("category", True),
        "active": ("boolean", False),
        "newsletter": ("boolean", True),
        "spent": ("number", False),
    }
    assert feature(signature, "plan").categories == ("basic", "gold", "silver")
    assert signature.task == "classification"
    assert signature.classes == ("no", "yes")
    assert Signature.from_dict(signature.to_dict()) == signature


def test_the_range_is_that_of_the_rows_to_learn_from_and_the_example_one_of_them(tmp_path: Path) -> None:
    dataset = load(tables.written(tables.houses(), tmp_path), target="price")
    area = feature(dataset.signature, "area")
    assert (area.low, area.high) == (dataset.train["area"].min(), dataset.train["area"].max())
    assert area.example in set(dataset.train["area"])
    assert type(feature(dataset.signature, "rooms").example) is int


def test_categories_are_those_of_the_whole_table(tmp_path: Path) -> None:
    rows = tables.many(60, lambda row: "rare" if row == 59 else "usual", lambda row: row, lambda row: row % 2)
    path = tables.lines(tmp_path, "kind,x,y", *rows)
    for seed in range(4):
        assert feature(load(path, target="y", random_state=seed).signature, "kind").categories == ("rare", "usual")


def test_the_hash_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    path = tables.written(tables.spam(), tmp_path)
    assert load(path, target="spam").sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_same_seed_holds_out_the_same_rows(tmp_path: Path) -> None:
    path = tables.written(tables.spam(), tmp_path)
    first, again, other = (load(path, target="spam", random_state=seed) for seed in (1, 1, 2))
    assert first.test.equals(again.test)
    assert not first.test.equals(other.test)


def test_bounds_become_the_contract(tmp_path: Path) -> None:
    path = tables.written(tables.customers(), tmp_path)
    signature = load(path, target="stays", bounds={"age": (0.0, 120.0), "spent": (0.0, None)}).signature
    assert (feature(signature, "age").minimum, feature(signature, "age").maximum) == (0.0, 120.0)
    assert (feature(signature, "spent").minimum, feature(signature, "spent").maximum) == (0.0, None)


def test_held_out_rows_as_json_are_what_the_contract_accepts(tmp_path: Path) -> None:
    dataset = load(tables.written(tables.customers(), tmp_path), target="stays")
    rows = json_rows(dataset.test, dataset.signature)
    assert {type(row["active"]) for row in rows} == {bool}
    assert None in {row["age"] for row in rows}
    assert read_rows(dataset.signature, rows).shape == (len(dataset.test), 5)


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([0, 1] * 30, "classification", (0, 1)),
        ([1.0, 2.0, 3.0] * 20, "classification", (1, 2, 3)),
        (["True", "False"] * 30, "classification", (False, True)),
        (["b", "a"] * 30, "classification", ("a", "b")),
        ([0.5, 1.5] * 30, "regression", ()),
        (list(range(0, 180, 3)), "regression", ()),
    ],
)
def test_the_task_follows_from_the_target(tmp_path: Path, values: list[Any], task: str, classes: tuple[Any, ...]) -> None:
    path = tables.written(pd.DataFrame({"x": range(60), "y": values}), tmp_path)
    signature = load(path, target="y").signature
    assert (signature.task, signature.classes) == (task, classes)
    assert [type(label) for label in signature.classes] == [type(label) for label in classes]


def test_the_task_can_be_said(tmp_path: Path) -> None:
    path = tables.written(tables.spam(), tmp_path)
    assert load(path, target="spam", task="regression").signature.task == "regression"


def test_a_text_target_is_no_regression(tmp_path: Path) -> None:
    path = tables.written(tables.customers(), tmp_path)
    assert "holds no numbers" in refusal(path, target="stays", task="regression")


def test_decimals_and_whole_numbers_with_gaps_from_parquet_are_numbers(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "price": [decimal.Decimal(f"{row}.50") for row in range(40)],
            "count": pd.array([None if row == 3 else row for row in range(40)], dtype="Int64"),
            "size": pd.Categorical(["s", "m"] * 20),
            "y": ["a", "b"] * 20,
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    signature = load(tmp_path / "t.parquet", target="y").signature
    assert [item.kind for item in signature.features] == ["number", "number", "category"]
    assert [item.nullable for item in signature.features] == [False, True, False]


class TestBadTables:
    """Each is refused by one sentence that names column, row and remedy."""

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        assert "does not exist" in refusal(tmp_path / "none.csv")

    def test_a_folder(self, tmp_path: Path) -> None:
        assert "holds no table" in refusal(tmp_path)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_bytes(b"")
        assert "is empty" in refusal(tmp_path / "t.csv")

    def test_a_header_alone(self, tmp_path: Path) -> None:
        assert "no rows" in refusal(tables.lines(tmp_path, "x,y"))

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_bytes(b"x,y\n\xff\xfe\x00,1\n")
        assert "UTF-8" in refusal(tmp_path / "t.csv")

    def test_a_line_with_too_many_values(self, tmp_path: Path) -> None:
        assert "row 2: it has 3 values" in refusal(tables.lines(tmp_path, "x,y", "1,2", "1,2,3", "1,2"))

    def test_a_parquet_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "t.parquet").write_bytes(b"no parquet here")
        assert "cannot be read as Parquet" in refusal(tmp_path / "t.parquet")

    def test_no_target_named(self, tmp_path: Path) -> None:
        assert "--target" in refusal(tables.written(tables.spam(), tmp_path), target=None)

    def test_a_target_that_is_not_there(self, tmp_path: Path) -> None:
        sentence = refusal(tables.written(tables.spam(), tmp_path), target="ham")
        assert "'ham'" in sentence
        assert "links, length, spam" in sentence

    def test_nothing_besides_the_target(self, tmp_path: Path) -> None:
        assert "columns to learn from" in refusal(tables.lines(tmp_path, "y", *tables.many(10, lambda row: row % 2)))

    def test_two_columns_of_one_name(self, tmp_path: Path) -> None:
        assert "'x' (columns 1 and 3)" in refusal(tables.lines(tmp_path, "x,y,x", "1,2,3"))

    def test_a_column_without_a_name(self, tmp_path: Path) -> None:
        assert "column 2" in refusal(tables.lines(tmp_path, "x,,y", "1,2,3"))

    def test_an_exported_index(self, tmp_path: Path) -> None:
        tables.spam().to_csv(tmp_path / "t.csv")
        dataset = load(tmp_path / "t.csv", target="spam")
        assert dataset.signature.names == ("links", "length")
        assert any("'Unnamed: 0'" in remark for remark in dataset.remarks)
        assert load(tmp_path / "t.csv", target="spam", drop=["Unnamed: 0"]).signature.names == ("links", "length")

    def test_a_column_that_is_empty(self, tmp_path: Path) -> None:
        rows = tables.many(20, lambda row: row, "", lambda row: row % 2)
        assert "'hole' is empty in every row" in refusal(tables.lines(tmp_path, "x,hole,y", *rows))

    def test_a_text_among_numbers(self, tmp_path: Path) -> None:
        rows = tables.many(20, lambda row: "unknown!" if row == 6 else row, lambda row: row % 2)
        assert "row 7 says 'unknown!'" in refusal(tables.lines(tmp_path, "x,y", *rows))

    def test_kinds_mixed_in_one_column(self) -> None:
        with pytest.raises(UsageError, match=r"mixes kinds, number and text \(row 3\)"):
            plain_column("x", pd.Series([1, None, "a", 2.5], dtype=object))

    @pytest.mark.parametrize("text", ["inf", "-inf", "1e999", "1e39"])
    def test_an_infinite_number(self, tmp_path: Path, text: str) -> None:
        rows = tables.many(20, lambda row: text if row == 4 else row, lambda row: row % 2)
        assert "'x' is infinite or beyond 3.4e+38 in row 5" in refusal(tables.lines(tmp_path, "x,y", *rows))

    @pytest.mark.parametrize("day", ["2026-01-{:02d}", "2026-01-{:02d}T10:00:00", "{:02d}.01.2026", "Jan {} 2026", "{:02d}:00"])
    def test_dates_as_the_target(self, tmp_path: Path, day: str) -> None:
        rows = tables.many(20, lambda row: row, lambda row: day.format(row % 2 + 14))
        assert "the target column 'y' holds dates" in refusal(tables.lines(tmp_path, "x,y", *rows))

    def test_dates_of_parquet_as_the_target(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"x": range(20), "y": [dt.date(2026, 1, 1 + row % 2) for row in range(20)]})
        frame.to_parquet(tmp_path / "a.parquet")
        frame.assign(y=pd.to_datetime(frame["y"])).to_parquet(tmp_path / "b.parquet")
        for name in ("a.parquet", "b.parquet"):
            assert "the target column 'y' holds dates" in refusal(tmp_path / name)

    def test_lists_in_a_column(self, tmp_path: Path) -> None:
        pd.DataFrame({"x": [[1, 2]] * 20, "y": [0, 1] * 10}).to_parquet(tmp_path / "t.parquet")
        assert "not numbers, booleans or texts" in refusal(tmp_path / "t.parquet")

    def test_an_identifier(self, tmp_path: Path) -> None:
        rows = tables.many(200, lambda row: f"customer{row}", lambda row: row % 2)
        sentence = refusal(tables.lines(tmp_path, "name,y", *rows))
        assert "200 different texts" in sentence
        assert sentence.endswith("--drop name")

    def test_a_gap_in_the_target(self, tmp_path: Path) -> None:
        rows = tables.many(20, lambda row: row, lambda row: "" if row == 2 else row % 2)
        assert "'y' is empty in row 3" in refusal(tables.lines(tmp_path, "x,y", *rows))

    def test_one_class_only(self, tmp_path: Path) -> None:
        assert "one class only" in refusal(tables.lines(tmp_path, "x,y", *tables.many(20, lambda row: row, "a")))

    def test_a_class_with_a_single_row(self, tmp_path: Path) -> None:
        rows = tables.many(20, lambda row: row, lambda row: "odd" if row == 8 else "even")
        sentence = refusal(tables.lines(tmp_path, "x,y", *rows))
        assert "'odd'" in sentence
        assert "row 9" in sentence

    def test_a_target_with_a_class_per_row(self, tmp_path: Path) -> None:
        rows = tables.many(400, lambda row: row, lambda row: f"class{row // 2}")
        assert "200 classes" in refusal(tables.lines(tmp_path, "x,y", *rows))

    def test_a_constant_number_to_predict(self, tmp_path: Path) -> None:
        path = tables.lines(tmp_path, "x,y", *tables.many(20, lambda row: row, 1.5))
        assert "same value in every row" in refusal(path, task="regression")

    def test_too_few_rows_for_the_share_held_out(self, tmp_path: Path) -> None:
        path = tables.lines(tmp_path, "x,y", *tables.many(8, lambda row: row, lambda row: "abcd"[row % 4]))
        assert "--test-size 0.2 of 8 rows" in refusal(path)

    def test_a_row_outside_its_bounds(self, tmp_path: Path) -> None:
        path = tables.lines(tmp_path, "x,y", *tables.many(20, lambda row: row, lambda row: row % 2))
        assert "'x' is 11 in row 12" in refusal(path, bounds={"x": (0.0, 10.0)})

    def test_bounds_of_a_text(self, tmp_path: Path) -> None:
        path = tables.written(tables.customers(), tmp_path)
        assert "only a column of numbers" in refusal(path, target="stays", bounds={"plan": (0.0, 1.0)})

    @pytest.mark.parametrize("options", [{"drop": ["z"]}, {"bounds": {"z": (0.0, 1.0)}}])
    def test_a_flag_that_names_no_column(self, tmp_path: Path, options: dict[str, Any]) -> None:
        assert "'z' is not a " in refusal(tables.written(tables.spam(), tmp_path), target="spam", **options)


def test_true_among_other_texts_is_a_category(tmp_path: Path) -> None:
    rows = tables.many(20, lambda row: "True" if row % 2 else "on", lambda row: row % 2)
    assert load(tables.lines(tmp_path, "x,y", *rows), target="y").signature.features[0].categories == ("True", "on")
