from __future__ import annotations

import io
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas._libs.parsers import STR_NA_VALUES  # type: ignore[import-not-found]
from pyarrow import parquet

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.signature import MISSING, Feature, Signature
from serve_app.errors import InvalidInput, UsageError
from serve_app.tables.columns import Reading, Rows, check_columns, check_types, csv_rows, parquet_rows
from serve_app.tables.csv_format import check_names
from serve_app.tables.frame import read_table
from serve_app.tables.location import Location, sources
from serve_app.tables.splits import parquet_parts
from tests.support.scoring import split
from tests.support.tables import lines

SIGNATURE = Signature(
    (
        Feature("age", minimum=0, maximum=120, nullable=True),
        Feature("spent"),
        Feature("plan", "category", categories=("basic", "gold, or more", 'the "best"'), nullable=True),
        Feature("town", "category", categories=("Bonn", "Oslo")),
        Feature("active", "boolean", nullable=True),
    ),
    "regression",
)
READING = Reading(SIGNATURE, (), "refuse")


def read_csv(path: Path, reading: Reading = READING) -> Rows:
    location, header, parts = split(path, 1 << 20)
    check_columns(reading, header.columns, str(path))
    (rows,) = csv_rows(location, parts[0], header, reading)
    return rows


def read_parquet(table: pa.Table, folder: Path, reading: Reading = READING) -> Rows:
    path = folder / "table.parquet"
    parquet.write_table(table, path)
    location = Location(str(path))
    _, (source,) = sources(location)
    schema, (part,) = parquet_parts(location, source, 1 << 20, 0)
    check_columns(reading, schema.names, "table.parquet")
    check_types(reading, schema, "table.parquet")
    (rows,) = parquet_rows(location, part, reading)
    return rows


ROWS = st.fixed_dictionaries(
    {
        "age": st.none() | st.floats(allow_infinity=False, allow_nan=False) | st.integers(-5, 130),
        "spent": st.none() | st.floats(allow_nan=False),
        "plan": st.none() | st.sampled_from(["basic", "gold, or more", 'the "best"', "platinum"]),
        "town": st.none() | st.sampled_from(["Bonn", "Oslo", "Rome"]),
        "active": st.none() | st.booleans(),
    }
)


def judged(row: dict[str, Any]) -> tuple[list[float] | None, set[str]]:
    """What the served API makes of a row: its numbers, or the rules that it breaks."""
    try:
        return read_rows(SIGNATURE, [row])[0].tolist(), set()
    except InvalidInput as error:
        return None, {f"{problem.field.removeprefix('[0].')}: {problem.message}" for problem in error.problems}


def check_same(rows: list[dict[str, Any]], found: Rows) -> None:
    for at, row in enumerate(rows):
        numbers, broken = judged(row)
        assert set(found.problems[at].split("; ")) == broken if broken else at not in found.problems
        if numbers is not None:
            np.testing.assert_array_equal(found.matrix[at], numbers)


@given(st.lists(ROWS, min_size=1, max_size=20))
def test_a_csv_cell_is_judged_as_the_value_in_a_request(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        pd.DataFrame(rows, dtype=object).to_csv(path, index=False)
        check_same(rows, read_csv(path))


@given(st.lists(ROWS, min_size=1, max_size=20))
def test_a_parquet_value_is_judged_as_the_value_in_a_request(rows: list[dict[str, Any]]) -> None:
    types = {"age": pa.float64(), "spent": pa.float64(), "plan": pa.string(), "town": pa.dictionary(pa.int32(), pa.string())}
    schema = pa.schema([*types.items(), ("active", pa.bool_())])
    with tempfile.TemporaryDirectory() as folder:
        check_same(rows, read_parquet(pa.Table.from_pylist(rows, schema), Path(folder)))


def test_what_pandas_takes_for_empty_is_empty_here() -> None:
    assert set(MISSING) == set(STR_NA_VALUES)


@pytest.mark.parametrize("empty", ["", "NA", "null", "None", "NaN", "  ", " NA"])
def test_an_empty_cell_is_a_gap_in_every_kind_of_column(tmp_path: Path, empty: str) -> None:
    found = read_csv(lines(tmp_path, "age,spent,plan,town,active", f"{empty},1,{empty},Bonn,{empty}"))
    assert found.problems == {}
    np.testing.assert_array_equal(found.matrix, [[np.nan, 1, np.nan, 0, np.nan]])


def test_spaces_before_a_value_are_skipped_as_in_training(tmp_path: Path) -> None:
    found = read_csv(
        lines(tmp_path, "age, spent, plan, town, active", '1, 2.5, "gold, or more", Oslo, True', "1, 2, basic, Bonn, false")
    )
    assert found.problems == {}
    np.testing.assert_array_equal(found.matrix, [[1, 2.5, 1, 1, 1], [1, 2, 0, 0, 0]])


@pytest.mark.parametrize(
    "text", ["0.1", "1e-7", "179769.313486231570814", "9007199254740993", "2.2250738585072011e-308", ".3", "+4"]
)
def test_a_number_is_the_nearest_float_as_in_json(tmp_path: Path, text: str) -> None:
    assert read_csv(lines(tmp_path, "spent,town", f"{text},Bonn")).matrix[0, 1] == float(text)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("121,1,basic,Bonn,True", "age: must be between 0 and 120"),
        ("old,1,basic,Bonn,True", "age: must be a finite number"),
        ("1,inf,basic,Bonn,True", "spent: must be a finite number"),
        ("1,NAN,basic,Bonn,True", "spent: must be a finite number"),
        ("1,,basic,Bonn,True", "spent: must not be null"),
        ("1,1,platinum,Bonn,True", "plan: is not one of the categories"),
        ("1,1,basic,,True", "town: must not be null"),
        ("1,1,basic,Bonn,1", "active: must be true or false"),
        ("1,1,basic,Bonn", "it has 4 values, but the header names 5"),
        ("1,1,basic,Bonn,True,7", "it has 6 values, but the header names 5"),
    ],
)
def test_a_bad_cell_is_named_and_its_neighbours_are_read(tmp_path: Path, row: str, problem: str) -> None:
    found = read_csv(lines(tmp_path, "age,spent,plan,town,active", "1,1,basic,Bonn,True", row, "2,2,,Oslo,False"))
    assert list(found.problems) == [1]
    assert problem in found.problems[1]
    np.testing.assert_array_equal(found.matrix[[0, 2]], [[1, 1, 0, 0, 1], [2, 2, np.nan, 1, 0]])


def test_an_unseen_category_is_predicted_when_the_operator_allows_it(tmp_path: Path) -> None:
    found = read_csv(lines(tmp_path, "spent,town", "1,Rome"), Reading(SIGNATURE, (), "unseen"))
    assert found.problems == {}
    assert found.matrix[0, 3] == -1


def test_a_column_may_be_missing_only_where_training_saw_gaps(tmp_path: Path) -> None:
    assert np.isnan(read_csv(lines(tmp_path, "spent,town", "1,Bonn")).matrix[0, 0])
    with pytest.raises(UsageError, match=r"'town'.*: spent, plan$"):
        read_csv(lines(tmp_path, "spent,plan", "1,basic"))


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("spent", [True], "bool"),
        ("active", [1], "int64"),
        ("town", [1.5], "double"),
        ("spent", [pd.Timestamp("2026-01-01")], "timestamp"),
    ],
)
def test_a_parquet_column_of_another_kind_is_refused_whole(tmp_path: Path, column: str, values: list[Any], kind: str) -> None:
    with pytest.raises(UsageError, match=rf"'{column}'.*\b{kind}"):
        read_parquet(pa.table({"spent": [1.0], "town": ["Bonn"], column: values}), tmp_path)


def test_integers_decimals_and_texts_of_numbers_are_numbers_in_parquet(tmp_path: Path) -> None:
    for kind, value in ((pa.int64(), 2**53 + 1), (pa.decimal128(20, 3), Decimal("0.1")), (pa.string(), "1e3"), (pa.float32(), 0.1)):
        column = pa.array([value], kind)
        found = read_parquet(pa.table({"spent": column, "town": ["Bonn"]}), tmp_path)
        assert found.matrix[0, 1] == float(column[0].as_py())


def test_kept_columns_keep_their_text(tmp_path: Path) -> None:
    path = lines(tmp_path, "id,spent,town", "007,1.50,Bonn", "NA,2,Oslo")
    found = read_csv(path, Reading(SIGNATURE, ("id", "spent"), "refuse"))
    assert found.kept.to_pylist() == [{"id": "007", "spent": "1.50"}, {"id": "NA", "spent": "2"}]
    with pytest.raises(UsageError, match="--keep 'nonsense'"):
        read_csv(path, Reading(SIGNATURE, ("nonsense",), "refuse"))


def test_training_and_scoring_read_the_same_table_from_the_same_text(tmp_path: Path) -> None:
    text = "age,spent,plan,town,active\n1,2.5,NA,Bonn,True\n , 7,basic,Oslo,\n"
    path = tmp_path / "table.csv"
    path.write_text(text)
    frame = pd.read_csv(io.StringIO(text), skipinitialspace=True)
    found = read_csv(path)
    np.testing.assert_array_equal(found.matrix[:, 0], frame["age"])
    np.testing.assert_array_equal(found.matrix[:, 1], frame["spent"])
    assert np.isnan(found.matrix[:, 2]).tolist() == frame["plan"].isna().tolist()


def test_thirty_thousand_columns_are_read_in_a_time_that_grows_with_their_number(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    names = [f"column_{at}" for at in range(30_000)]
    path.write_text(",".join(names) + "\n" + ",".join(["1.5"] * len(names)) + "\n")
    started = time.process_time()
    check_names(names)
    assert time.process_time() - started < 0.2  # 3.9 s when each name was compared with all before it
    assert list(read_table(path).frame.columns) == names


def test_two_columns_of_one_name_are_refused_by_their_numbers() -> None:
    with pytest.raises(UsageError, match=r"columns 2 and 4"):
        check_names(["a", "b", "c", "b"])
