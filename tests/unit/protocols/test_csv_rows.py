"""CSV text as rows: what scoring and training read in a cell, and bounded before it is decoded."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.fields import MAX_PROBLEMS, read_rows
from serve_app.artifacts.signature import Feature, Signature
from serve_app.errors import InvalidInput, Malformed, TooLarge, TooManyRows
from serve_app.protocols.csv_rows import GROUP_ROWS, csv_decoder
from serve_app.tables.columns import Reading, csv_rows
from serve_app.tables.dialect import DialectFlags
from serve_app.tables.header import csv_header
from serve_app.tables.location import Location
from serve_app.tables.splits import Part
from tests.support.table_rows import NAMES, NUMBERS, ORDER, ROWS, context, csv_text


def decoded(
    text: bytes, signature: Signature = ORDER, *, header: bool | None = None, without_header: bool = False, **changes: Any
) -> Any:
    return csv_decoder(context(signature, **changes), without_header=without_header)(text, header)


def refusals(text: bytes, signature: Signature = NUMBERS, **changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as refused:
        decoded(text, signature, **changes)
    return [(problem.field, problem.code) for problem in refused.value.problems]


def same(matrix: Any, expected: Any) -> bool:
    return matrix.dtype == expected.dtype and repr(matrix.tolist()) == repr(expected.tolist())


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_the_rows_of_the_text_are_those_of_the_objects(end: str) -> None:
    expected = read_rows(ORDER, ROWS)
    assert same(decoded(csv_text(end=end)), expected)
    assert same(decoded(b"\xef\xbb\xbf" + csv_text(end=end)), expected)
    assert same(decoded(csv_text(end=end).rstrip()), expected)
    assert same(decoded(csv_text(names=NAMES[::-1], end=end)), expected)


def test_more_rows_than_a_group_are_in_their_order() -> None:
    rows = [ROWS[at % len(ROWS)] for at in range(2 * GROUP_ROWS + 1)]
    assert same(decoded(csv_text(rows), max_rows=len(rows)), read_rows(ORDER, rows))


def test_without_a_header_the_values_are_in_the_order_of_the_signature() -> None:
    expected = read_rows(ORDER, ROWS)
    assert same(decoded(csv_text(header=False), without_header=True), expected)
    assert same(decoded(csv_text(), without_header=True), expected)
    assert same(decoded(csv_text(header=False), header=False), expected)
    assert refusals(csv_text(header=False), ORDER)[0] == ("pieces", "missing")
    assert refusals(b"1,2,3\n", without_header=True) == [("header", "columns")]


@pytest.mark.parametrize(
    ("cell", "number"),
    [(b"5", 5.0), (b".5", 0.5), (b"5.", 5.0), (b"+5", 5.0), (b"-0.5e-3", -0.0005), (b" 5", 5.0), (b'"5"', 5.0), (b"5 ", 5.0)],
)
def test_a_number_is_what_it_is_in_a_table(cell: bytes, number: float) -> None:
    assert decoded(b"a,b\n%b,1\n" % cell, NUMBERS).tolist() == [[number, 1.0]]


@pytest.mark.parametrize("cell", [b"1_0", b"0x1F", b"\xd9\xa1", b"1 2", b"ten", b"1,5", b"--1", b"1e", b"$5"])
def test_nothing_else_is_a_number(cell: bytes) -> None:
    assert refusals(b'a,b\n"%b",1\n' % cell) == [("instances[0].a", "type")]


@pytest.mark.parametrize(("cell", "code"), [(b"", "type"), (b"nan", "type"), (b"inf", "type"), (b"1e999", "not_finite")])
def test_a_gap_and_what_is_not_finite_are_refused_where_the_model_takes_none(cell: bytes, code: str) -> None:
    assert refusals(b"a,b\n1,1\n%b,1\n" % cell) == [("instances[1].a", code)]


@pytest.mark.parametrize("cell", ["", "NA", "null", "NaN"])
def test_the_texts_that_training_read_as_missing_are_gaps(cell: str) -> None:
    rows = csv_text([{**ROWS[0], "age": cell, "city": cell, "note": cell}])
    assert same(decoded(rows), read_rows(ORDER, [{**ROWS[0], "age": None, "city": None, "note": None}]))


def test_a_number_that_means_a_gap_is_one() -> None:
    signature = Signature((Feature("a", nullable=True), Feature("b")), "regression", missing=("", "-999"))
    assert repr(decoded(b"a,b\n-999,1\n-999.0,2\n3,-999\n", signature).tolist()) == "[[nan, 1.0], [nan, 2.0], [3.0, -999.0]]"


@pytest.mark.parametrize(("cell", "code"), [("true", 1.0), ("False", 0.0), ("TRUE", 1.0), ("1", 1.0), ("0", 0.0)])
def test_a_boolean_is_a_word_or_one_or_zero(cell: str, code: float) -> None:
    assert decoded(csv_text([{**ROWS[0], "member": cell}]))[0, NAMES.index("member")] == code


@pytest.mark.parametrize("cell", ["yes", "2", "", "1.0", "tRUE"])
def test_nothing_else_is_a_boolean(cell: str) -> None:
    assert refusals(csv_text([{**ROWS[0], "member": cell}]), ORDER) == [("instances[0].member", "type")]


def test_leading_zeros_are_kept_in_texts_and_categories() -> None:
    signature = Signature((Feature("zip", "category", categories=("007", "7")), Feature("id", "text")), "regression")
    assert decoded(b"zip,id\n007,001\n7,1\n", signature).tolist() == [[0.0, "001"], [1.0, "1"]]


def test_further_columns_are_ignored_or_refused() -> None:
    text = b",zip,b,a\n0,x,1,2\n1,y,3,4\n"
    assert decoded(text, NUMBERS).tolist() == [[2.0, 1.0], [4.0, 3.0]]
    assert refusals(text, unknown_fields="refuse") == [("header", "unknown_field")]
    assert decoded(b",b,a\n0,1,2\n", NUMBERS, unknown_fields="refuse").tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", ("body", "too_short")),
        (b"\n\n", ("body", "too_short")),
        (b"a,b\n", ("instances", "too_short")),
        (b"a\n1\n", ("b", "missing")),
        (b"a;b\n1;2\n", ("a", "missing")),
        (b"a,b,a\n1,2,3\n", ("header", "duplicate")),
        (b"a,b\n1,2\n1\n", ("instances[1]", "shape")),
        (b"a,b\n1,2,3\n", ("instances[0]", "shape")),
        (b"a,b\n1,6\n", ("instances[0].b", "out_of_range")),
    ],
)
def test_a_text_of_another_shape_is_one_clear_refusal(text: bytes, problem: tuple[str, str]) -> None:
    assert refusals(text)[0] == problem


@pytest.mark.parametrize(
    "text",
    [b"a,b\n1,\xff\n", b"a,b\n1,\x002\n", b"\xff\xfea\0,\0b\0", b"a,b\n1,2\xed\xa0\x80\n", b"a,b\n1,2\n\xc3"],
)
def test_what_is_no_text_is_malformed(text: bytes) -> None:
    with pytest.raises(Malformed):
        decoded(text, NUMBERS)


def test_one_row_too_many_is_refused() -> None:
    assert len(decoded(csv_text(), max_rows=4)) == 4
    with pytest.raises(TooManyRows):
        decoded(csv_text(), max_rows=3)


def test_no_more_problems_are_named_than_a_response_holds() -> None:
    assert len(refusals(b"a,b\n" + b"x,y\n" * 500)) == MAX_PROBLEMS


@pytest.mark.parametrize(
    "body",
    [
        b"a,b\n" + b"1,2\n" * 1_000_000,
        b"a,b\n" + b"\n" * 4_000_000,
        b"a,b\n" + b"," * 4_000_000,
        b"," * 4_000_000,
        b'a,b\n"' + b"\n" * 4_000_000,
        b'a,b\n"' + b"x" * 4_000_000 + b'",1\n',
        b"a,b\n" + b'""' * 2_000_000,
    ],
    ids=["rows", "empty lines", "row", "header", "lines in quotes", "cell", "quotes"],
)
def test_a_bomb_of_rows_or_cells_takes_little_memory(body: bytes) -> None:
    decode = csv_decoder(context(NUMBERS), without_header=True)
    tracemalloc.start()
    try:
        with pytest.raises((TooLarge, TooManyRows)):
            decode(body, None)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5_000_000, most  # a copy of the body is not among it


UNITS = Signature(
    (
        Feature("price", unit="€", nullable=True),
        Feature("age", "number", 0.0, 120.0),
        Feature("city", "category", categories=("", " Rome", "Bern", "NA")),
        Feature("day", "date", date=DateForm(("year",), ("%d/%m/%Y",)), nullable=True),
        Feature("note", "text", nullable=True, max_length=3),
    ),
    "regression",
)


@pytest.mark.parametrize(
    "row",
    [
        b'"1,000 \xe2\x82\xac",5,Bern,31/12/2001,x',
        b'"1,000 \xe2\x82\xac", 5.5,NA,2001-12-31 , NA',
        b'"1,000 $",5,Oslo,32/12/2001,abcd',
        b",,,,",
        b'12," 5"," Rome", 1/2/2003,"  a"',
        b"nan,1e400,Bern,NA,",
        b"\xe2\x82\xac 5,-0,NA,x,\xf0\x9f\x9a\x9a",
    ],
)
def test_a_cell_is_read_as_scoring_reads_it(row: bytes, tmp_path: Path) -> None:
    text = b"price,age,city,day,note\n" + row + b"\n"
    file = tmp_path / "rows.csv"
    file.write_bytes(text)
    location = Location.of(file)
    header = csv_header(location, str(file), len(text), DialectFlags(separator=",", decimal="."))
    part = Part(number=0, path=str(file), start=header.start, stop=len(text), first_row=0, rows=1)
    (scored,) = csv_rows(location, part, header, Reading(UNITS, (), "refuse"))
    if scored.problems:
        with pytest.raises(InvalidInput) as refused:
            decoded(text, UNITS)
        if "value" not in scored.problems[0]:
            named = [f"{problem.field.removeprefix('instances[0].')}: {problem.message}" for problem in refused.value.problems]
            assert "; ".join(named) == scored.problems[0]
    else:
        matrix = decoded(text, UNITS)
        assert repr(matrix.tolist()) == repr(np.asarray(scored.matrix).tolist())
