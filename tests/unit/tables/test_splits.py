from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import UsageError
from serve_app.tables.columns import Reading, csv_rows
from serve_app.tables.location import Location, sources
from serve_app.tables.splits import parquet_parts
from tests.support.scoring import split, texts
from tests.support.tables import lines

CELLS = st.text(alphabet='ab ,"\n\té', max_size=8)
READING = Reading(Signature((Feature("x", "category", nullable=True),), "regression"), ("a", "b"), "unseen")


@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=30),
    st.integers(1, 60),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_a_csv_file_split_anywhere_gives_its_rows_once_and_in_order(
    rows: list[tuple[str, str]], part_bytes: int, end: str, quoted: bool, open_end: bool
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    if quoted:
        rows = [(f"{one}\r", f"\r{other}") for one, other in rows]
    writer.writerows([("a", "b"), *rows])
    raw = text.getvalue().removesuffix(end) if open_end else text.getvalue()
    expected = list(csv.reader(io.StringIO(raw, newline=""), skipinitialspace=True))[1:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        path.write_bytes(raw.encode())
        location, header, parts = split(path, part_bytes)
        found: list[tuple[str, str]] = []
        for part in parts:
            assert part.first_row == len(found)
            for piece in csv_rows(location, part, header, READING):
                columns = texts(piece.kept)
                found += list(zip(columns["a"], columns["b"], strict=True))
    # A cell of spaces only is the one thing that differs: it is kept as it stands, while the csv module skips its spaces.
    assert [[cell.lstrip(" ") for cell in row] for row in found] == [[cell.lstrip(" ") for cell in row] for row in expected]


def test_empty_lines_are_no_rows_wherever_the_file_is_split(tmp_path: Path) -> None:
    path = lines(tmp_path, "a,b", "", "1,2", "", "", "3,4", "", "5,6", "", "")
    for part_bytes in range(1, 25):
        location, header, parts = split(path, part_bytes)
        rows = [piece.kept.num_rows for part in parts for piece in csv_rows(location, part, header, READING)]
        assert sum(rows) == sum(part.rows for part in parts) == 3


def test_a_quote_that_is_never_closed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"table\.csv.*\bquote\b"):
        split(lines(tmp_path, "a,b", '1,"2', "3,4"), 4)


def test_rows_that_a_stray_quote_hides_from_the_count_are_not_lost_in_silence(tmp_path: Path) -> None:
    location, header, parts = split(lines(tmp_path, "a,b", '5" pipe,1', "x,2", 'y" z,3', "w,4"), 1000)
    with pytest.raises(UsageError, match=r"\b4\b.*\b2\b"):
        list(csv_rows(location, parts[0], header, READING))


def test_a_byte_order_mark_and_spaces_are_no_part_of_the_names(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("\ufeffa, b\r\n1,2\r\n".encode())
    _, header, parts = split(path, 100)
    assert header.columns == ("a", "b")
    assert [part.rows for part in parts] == [1]


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", r"table\.csv"),
        (b"a,a\n1,2\n", r"'a'.*\b1\b.*\b2\b"),
        (b"a,,b\n1,2,3\n", r"\b2\b.*table\.csv"),
        ("рост\n1\n".encode("cp1251"), r"table\.csv.*--encoding"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(tmp_path: Path, raw: bytes, named: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=named):
        split(path, 1 << 20)


def test_a_parquet_file_is_split_between_its_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    parquet.write_table(pa.table({"a": list(range(100))}), path, row_group_size=10)
    location = Location(str(path))
    _, (source,) = sources(location)
    _, small = parquet_parts(location, source, 1, 5)
    assert [(part.number, part.start, part.stop, part.first_row, part.rows) for part in small[:2]] == [
        (5, 0, 1, 0, 10),
        (6, 1, 2, 10, 10),
    ]
    _, whole = parquet_parts(location, source, 1 << 30, 0)
    assert [(part.start, part.stop, part.rows) for part in whole] == [(0, 10, 100)]
