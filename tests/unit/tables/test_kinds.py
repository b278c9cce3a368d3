"""The kind of a column is what a flag says, what the type of a Parquet file says, or a guess that loses nothing.

A value of the table is the same number for the model in training, in CSV and Parquet scoring, and in requests.
"""

from __future__ import annotations

import decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import InvalidInput, UsageError
from serve_app.tables.columns import Reading, check_types, csv_rows, parquet_rows
from serve_app.tables.frame import Table, read_table
from serve_app.tables.location import Location, sources
from serve_app.tables.numerals import numeral
from serve_app.tables.splits import parquet_parts
from serve_app.tables.unusable import UnusableColumn
from tests.support import tables
from tests.support.scoring import split
from training.dataset import json_rows, load


def written(folder: Path, values: list[Any], name: str = "table.csv") -> Path:
    """A table with the column `x` of these values, repeated to 240 rows, and the target `y`."""
    x = (values * 240)[:240]
    frame = pd.DataFrame({"x": x, "size": np.arange(240) * 0.5, "y": ["a", "b"] * 120})
    path = folder / name
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def feature(path: Path, **kinds: Any) -> Feature:
    return load(path, target="y", kinds=kinds).signature.features[0]


def refusal(path: Path, target: str = "y", **kinds: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, target=target, kinds=kinds)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def scored(path: Path, signature: Signature) -> Any:
    """The matrix of a whole file, as scoring reads it."""
    reading = Reading(Signature.from_dict(orjson.loads(orjson.dumps(signature.to_dict()))), (), "refuse")
    if path.suffix == ".csv":
        location, header, (part,) = split(path, 1 << 20)
        (rows,) = csv_rows(location, part, header, reading)
    else:
        location = Location(str(path))
        check_types(reading, parquet.read_schema(path), str(path))
        _, (part,) = parquet_parts(location, sources(location)[1][0], 1 << 20, 0)
        (rows,) = parquet_rows(location, part, reading)
    assert not rows.problems
    return rows.matrix


def check_alike(path: Path, target: str = "y", **kinds: Any) -> Signature:
    """Check that training, requests and scoring make the same matrix of a table."""
    signature = load(path, target=target, kinds=kinds).signature
    table = read_table(path, kinds=kinds)
    trained = pd.DataFrame({name: table.column(name) for name in signature.names})
    matrix = read_rows(signature, json_rows(trained, signature))
    np.testing.assert_array_equal(scored(path, signature), matrix)
    return signature


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        (["01234", "02139", "94103"], ("01234", "02139", "94103")),
        (["007", "7", "042"], ("007", "042", "7")),
        (["+4930123456", "+4930123457"], ("+4930123456", "+4930123457")),
        (["0", "1", "2", "3+"], ("0", "1", "2", "3+")),
        (["yes", "no", "Y", "N", "0", "1"], ("0", "1", "N", "Y", "no", "yes")),
        (["00ff", "12e5", "0a10", "1234"], ("00ff", "0a10", "1234", "12e5")),
        (["01", "02", "unknown"], ("01", "02", "unknown")),
    ],
    ids=["zip codes", "agents", "telephones", "three or more", "yes and 1", "hexadecimal", "codes and a word"],
)
def test_texts_that_are_no_numbers_are_categories_everywhere(
    tmp_path: Path, values: list[str], categories: tuple[str, ...]
) -> None:
    path = written(tmp_path, values)
    assert check_alike(path).features[0].categories == categories
    assert load(path, target="x").signature.classes == categories


def test_a_gap_does_not_make_numbers_of_codes(tmp_path: Path) -> None:
    signature = check_alike(written(tmp_path, ["01234", None, "10234"]))
    assert (signature.features[0].categories, signature.features[0].nullable) == (("01234", "10234"), True)


@pytest.mark.parametrize("values", [["0", "1"], ["0.5", "00.5"], ["-1", "0"], ["1e3", "2"], ["+5", "7"], ["0", "100"]])
def test_numbers_stay_numbers(tmp_path: Path, values: list[str]) -> None:
    assert check_alike(written(tmp_path, values)).features[0].kind == "number"


def test_a_request_must_send_a_category_of_digits_as_text(tmp_path: Path) -> None:
    signature = load(written(tmp_path, ["01234", "02139"]), target="y").signature
    with pytest.raises(InvalidInput):
        read_rows(signature, [{"x": 1234, "size": 1}])
    assert read_rows(signature, [{"x": "01234", "size": 1}])[0, 0] == 0


def test_a_flag_overrules_the_guess(tmp_path: Path) -> None:
    codes = written(tmp_path, ["01", "02", "10"])
    assert feature(codes, x="number").kind == "number"
    assert check_alike(codes, x="number").features[0].high == 10
    numbers = written(tmp_path, ["1", "2", "2.0"], "numbers.csv")
    assert check_alike(numbers, x="category").features[0].categories == ("1", "2", "2.0")
    assert check_alike(written(tmp_path, ["True", "False"], "b.csv"), x="category").features[0].categories == ("False", "True")
    assert load(numbers, target="x", kinds={"x": "category"}).signature.classes == ("1", "2", "2.0")


def test_more_categories_than_a_guess_allows_can_be_declared(tmp_path: Path) -> None:
    path = tables.lines(
        tmp_path, "ticket,n,y", *tables.many(900, lambda row: f"A/5 {row % 600}", lambda row: row, lambda row: row % 2)
    )
    assert "--category ticket" in refusal(path)
    assert len(load(path, target="y", kinds={"ticket": "category"}).signature.features[0].categories) == 600


def test_a_declared_number_that_is_none_is_named_by_its_row(tmp_path: Path) -> None:
    rows = tables.many(100, lambda row: "three" if row == 6 else row, lambda row: row % 2)
    sentence = refusal(tables.lines(tmp_path, "x,y", *rows), x="number")
    assert "row 7 says 'three'" in sentence
    assert "--na three" in sentence


def test_mostly_numbers_with_many_values_are_refused_with_every_way_out(tmp_path: Path) -> None:
    rows = tables.many(100, lambda row: f"[{row}]" if row % 30 == 6 else row / 7, lambda row: row % 2)
    sentence = refusal(tables.lines(tmp_path, "atomic mass,y", *rows))
    for way in ("row 7 says '[6]'", "--na '[6]' --na", "--category 'atomic mass'", "--drop 'atomic mass'"):
        assert way in sentence


@pytest.mark.parametrize(
    ("values", "number"),
    [
        (["1,234.5", "950"], 1234.5),
        (["1'234", "950"], 1234),
        (["1\u00a0234", "950"], 1234),
        (["45%", "5.5 %"], 45),
        (["$1,200", "$-5"], 1200),
        (["7 €", "950"], 7),
        (["12,34,567", "1"], 1234567),
        (["(1,200)", "950", "-5"], -1200),
    ],
    ids=["comma", "apostrophe", "no-break space", "percent", "dollar", "euro", "lakh", "accounts"],
)
@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_numbers_with_separators_and_signs_are_read_when_a_flag_says_so(
    tmp_path: Path, values: list[str], number: float, name: str
) -> None:
    path = written(tmp_path, values, name)
    signature = check_alike(path, x="number")
    assert scored(path, signature)[0, 0] == number
    assert check_alike(path, x="category").features[0].categories == tuple(sorted(values))


@pytest.mark.parametrize("values", [["1,234.5", "950"], ["45%", "5.5%"], ["$1,200", "$5"], ["1 234", "12"]])
def test_numbers_with_separators_and_signs_are_never_categories_by_themselves(tmp_path: Path, values: list[str]) -> None:
    path = written(tmp_path, values)
    for target in ("y", "x"):
        sentence = refusal(path, target)
        assert "--number x" in sentence
        assert "--category x" in sentence
    assert "--drop x" in refusal(path)


def test_german_numbers_between_commas_are_named_with_the_flag(tmp_path: Path) -> None:
    path = tables.lines(tmp_path, "x,y", *tables.many(60, lambda row: f'"{row},5"', lambda row: row % 2))
    assert "--decimal ," in refusal(path)


def test_groups_in_a_table_with_decimal_commas(tmp_path: Path) -> None:
    rows = [f"{1000 + row * 3:,}".replace(",", ".") + f",5;{row},25;{row % 2}" for row in range(60)]
    path = tables.lines(tmp_path, "x;size;y", *rows)
    assert "--number x" in refusal(path)
    signature = check_alike(path, x="number")
    assert scored(path, signature)[1].tolist() == [1003.5, 1.25]


@pytest.mark.parametrize("values", [["45%", "0.45"], ["$5", "€5"]])
def test_two_units_in_one_column_are_refused(tmp_path: Path, values: list[str]) -> None:
    assert "row 2" in refusal(written(tmp_path, values), x="number")


def test_a_sign_that_training_did_not_see_is_refused_by_scoring(tmp_path: Path) -> None:
    signature = load(written(tmp_path, ["$5", "$1,000"]), target="y", kinds={"x": "number"}).signature
    assert signature.features[0].unit == "$"
    location, header, (part,) = split(tables.lines(tmp_path, "x,size", "€5,1", '"$2,000",1', name="s.csv"), 1 << 20)
    (rows,) = csv_rows(location, part, header, Reading(signature, (), "refuse"))
    assert list(rows.problems) == [0]
    plain = load(written(tmp_path, ["5", "1000"]), target="y").signature
    (rows,) = csv_rows(location, part, header, Reading(plain, (), "refuse"))
    assert list(rows.problems) == [0, 1]


class TestLongNumbers:
    """Whole numbers beyond 2^53 are texts or refused, in features and labels."""

    LONG = ("9007199254740993", "9007199254740992")

    @pytest.mark.parametrize("gap", [False, True])
    @pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
    def test_in_features_and_target(self, tmp_path: Path, name: str, gap: bool) -> None:
        values = [*map(int, self.LONG), *([None] if gap else [])]
        frame = pd.DataFrame({"x": pd.array((values * 90)[:90], dtype="Int64"), "size": range(90), "y": [0, 1] * 45})
        path = tmp_path / name
        frame.to_csv(path, index=False) if name == "t.csv" else frame.to_parquet(path)
        assert "--category x" in refusal(path)
        signature = check_alike(path, x="category")
        assert signature.features[0].categories == (self.LONG[1], self.LONG[0])
        if not gap:
            assert "--category x" in refusal(path, "x")
            assert load(path, target="x", kinds={"x": "category"}).signature.classes == (self.LONG[1], self.LONG[0])

    def test_as_decimals_of_a_database(self, tmp_path: Path) -> None:
        column = pa.array([decimal.Decimal(text) for text in self.LONG] * 30, pa.decimal128(38, 0))
        parquet.write_table(pa.table({"x": column, "size": list(range(60)), "y": [0, 1] * 30}), tmp_path / "t.parquet")
        assert "--category x" in refusal(tmp_path / "t.parquet")
        assert check_alike(tmp_path / "t.parquet", x="category").features[0].categories == (self.LONG[1], self.LONG[0])

    def test_large_numbers_that_are_written_as_such_are_numbers(self, tmp_path: Path) -> None:
        assert check_alike(written(tmp_path, ["1e20", "1.5"])).features[0].kind == "number"
        assert check_alike(written(tmp_path, ["9007199254740992", "1"], "exact.csv")).features[0].kind == "number"

    def test_beyond_int64_with_a_flag(self, tmp_path: Path) -> None:
        path = written(tmp_path, ["123456789012345678901234567890", "1"])
        assert "--number x" in refusal(path)
        assert check_alike(path, x="number").features[0].kind == "number"


class TestParquet:
    """The type of a Parquet column decides."""

    @pytest.mark.parametrize("values", [["1", "2", "3"], ["01", "2", "3"], ["1.5", "2", "x"]])
    def test_digits_of_the_type_string_are_a_category(self, tmp_path: Path, values: list[str]) -> None:
        path = written(tmp_path, values, "t.parquet")
        assert check_alike(path).features[0].categories == tuple(values)
        assert load(path, target="x").signature.classes == tuple(values)
        assert "--category" not in refusal(tmp_path / "none.parquet")

    def test_a_dictionary_of_whole_numbers_is_a_category(self, tmp_path: Path) -> None:
        path = tmp_path / "t.parquet"
        pd.DataFrame({"x": pd.Categorical([3, 1, 2] * 20), "size": range(60), "y": [0, 1] * 30}).to_parquet(path)
        assert check_alike(path).features[0].categories == ("1", "2", "3")

    @pytest.mark.parametrize("values", [[1, 2, 3], [1.0, None, 3.0]])
    def test_whole_numbers_are_numbers_unless_a_flag_says_category(self, tmp_path: Path, values: list[Any]) -> None:
        path = written(tmp_path, values, "t.parquet")
        assert check_alike(path).features[0].kind == "number"
        categories = tuple(str(int(value)) for value in values if value is not None)
        assert check_alike(path, x="category").features[0].categories == categories

    @pytest.mark.parametrize("values", [[0.5, 1.5], [True, False]])
    def test_what_has_no_texts_cannot_be_a_category(self, tmp_path: Path, values: list[Any]) -> None:
        assert f"row 1 has {values[0]}" in refusal(written(tmp_path, values, "t.parquet"), x="category")

    def test_booleans_are_no_numbers(self, tmp_path: Path) -> None:
        assert "row 1 says 'True'" in refusal(written(tmp_path, [True, False], "t.parquet"), x="number")

    def test_keys_of_folders_are_guessed(self, tmp_path: Path) -> None:
        for code in ("01", "02"):
            folder = tmp_path / "t" / f"region={code}"
            folder.mkdir(parents=True)
            pd.DataFrame({"size": range(30), "y": ["a", "b"] * 15}).to_parquet(folder / "part.parquet")
        signature = load(tmp_path / "t", target="y").signature
        assert {item.name: item.categories for item in signature.features}["region"] == ("01", "02")
        numbers = load(tmp_path / "t", target="y", kinds={"region": "number"}).signature
        assert {item.name: item.kind for item in numbers.features}["region"] == "number"


def test_a_kind_of_no_column_is_refused(tmp_path: Path) -> None:
    assert "--category 'z'" in refusal(written(tmp_path, ["1"]), z="category")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        ".",
        "1.2.3",
        "12 kg",
        "76 (+1)",
        "[98]",
        "3+",
        "1,2",
        "12,34",
        "1,2345",
        "01,234",
        "--5",
        "$",
        "5%%",
        "1_000",
        "nan",
        "inf",
        "٣",
    ],
)
def test_a_text_that_is_no_numeral(text: str) -> None:
    assert numeral(text) is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    ["1" + " " * 200_000 + "x", "(" * 100_000 + "1" + ")" * 100_000, "1" + ",111" * 50_000 + "x", "$" * 100_000],
    ids=["blanks", "parentheses", "groups", "signs"],
)
def test_a_long_text_is_no_numeral_at_once(text: str) -> None:
    assert numeral(text) is None


def test_very_long_digits_are_refused_or_texts(tmp_path: Path) -> None:
    path = written(tmp_path, ["9" * 300, "1"])
    assert "--category x" in refusal(path)
    assert feature(path, x="category").categories == ("1", "9" * 300)
    for text in ("9" * 5_000, "a" * 5_000):
        path = written(tmp_path, [text, "1"])
        assert "5000 characters in row 1" in refusal(path)
        assert "5000 characters in row 1" in refusal(path, x="category")


def test_the_table_says_the_unit_of_declared_columns_only() -> None:
    frame = pd.DataFrame({"x": ["5%", "6%"]})
    table = Table(frame, "", "", ("",), kinds={"x": "number"})
    assert table.column("x").tolist() == [5, 6]
    assert table.unit("x") == "%"
    with pytest.raises(UnusableColumn):
        Table(frame, "", "", ("",)).column("x")
