"""Lines of JSON as rows: in any pieces, bounded in each line."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from typing import Any

import numpy as np
import pytest

from serve_app.artifacts.fields import read_rows
from serve_app.artifacts.signature import Signature
from serve_app.errors import InvalidInput, Malformed, TooLarge, TooManyRows
from serve_app.protocols.ndjson_rows import LineDecoder
from tests.support.table_rows import NUMBERS, ORDER, ROWS, context, lines, values


def decoded(body: bytes, signature: Signature = ORDER, *, lists: bool = False, **changes: Any) -> Any:
    return LineDecoder(context(signature, **changes), lists=lists).decode(body)


def refusals(body: bytes, signature: Signature = NUMBERS, **changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as refused:
        decoded(body, signature, **changes)
    return [(problem.field, problem.code) for problem in refused.value.problems]


def same(matrix: Any, expected: Any) -> bool:
    return matrix.dtype == expected.dtype and repr(matrix.tolist()) == repr(expected.tolist())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n"], ids=["LF", "CRLF", "empty lines"])
def test_the_rows_of_the_lines_are_those_of_the_objects(end: str) -> None:
    expected = read_rows(ORDER, ROWS)
    assert same(decoded(lines(end=end)), expected)
    assert same(decoded(lines(end=end).rstrip()), expected)
    assert same(decoded(b"\xef\xbb\xbf" + lines(end=end)), expected)


def test_lists_are_rows_where_the_protocol_says_so() -> None:
    expected = read_rows(ORDER, ROWS)
    assert same(decoded(lines(values()), lists=True), expected)
    assert same(decoded(lines([ROWS[0], *values(ROWS[1:])]), lists=True), expected)
    assert same(decoded(lines(), lists=True), expected)
    assert refusals(lines(values()), ORDER) == [(f"instances[{at}]", "type") for at in range(len(ROWS))]


def test_nan_and_ones_are_read_as_their_protocol_reads_them() -> None:
    body = lines([{**ROWS[1], "age": float("nan"), "member": 0}])
    assert same(decoded(body, lists=True), read_rows(ORDER, ROWS[1:2]))
    assert refusals(body, ORDER) == [("instances[0].age", "not_finite"), ("instances[0].member", "type")]


def test_any_cut_into_pieces_gives_the_same_rows() -> None:
    body, source = lines(end="\r\n"), random.Random(4)
    for _ in range(50):
        reader = LineDecoder(context(), lists=False).open()
        cuts = [0, *sorted(source.sample(range(1, len(body)), 6)), len(body)]
        pieces = [reader.feed(body[start:stop]) for start, stop in itertools.pairwise(cuts)]
        assert same(np.concatenate([*pieces, reader.end()]), read_rows(ORDER, ROWS))
        assert reader.count == len(ROWS)


def test_a_wrong_row_is_named_by_its_number_without_empty_lines() -> None:
    assert refusals(b'{"a":1,"b":1}\n\n{"a":1,"b":6}\n') == [("instances[1].b", "out_of_range")]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"a":1,"b":1}\n{"a":1\n', "instances[1]"),
        (b'{"a":1,"b":1},{"a":1,"b":1}\n', "instances[0]"),
        (b'{"a":1\n,"b":1}\n', "instances[0]"),
        (b'{"a":1,"b":"\xff"}\n', "instances[0]"),
        (b"a,b\n1,2\n", "instances[0]"),
        (b"[" * 5000 + b"\n", "instances[0]"),
    ],
)
def test_a_line_that_is_no_json_is_malformed(body: bytes, field: str) -> None:
    with pytest.raises(Malformed) as refused:
        decoded(body, NUMBERS)
    assert [problem.field for problem in refused.value.problems] == [field]


@pytest.mark.parametrize("body", [b"", b"\n", b" \r\n\n"])
def test_a_body_without_rows_is_refused(body: bytes) -> None:
    assert refusals(body) == [("instances", "too_short")]


@pytest.mark.parametrize("row", ["7", "null", '"x"', "[]"])
def test_a_line_of_another_kind_is_no_row(row: str) -> None:
    assert refusals(row.encode()) == [("instances[0]", "type")]


def test_one_row_too_many_is_refused() -> None:
    assert len(decoded(lines(), max_rows=4)) == 4
    with pytest.raises(TooManyRows):
        decoded(lines(), max_rows=3)


def test_a_line_may_be_as_long_as_a_row() -> None:
    row = json.dumps({"a": 1, "b": 2}).encode()
    assert len(decoded(row.ljust(1000), NUMBERS, max_row_bytes=1000)) == 1
    with pytest.raises(TooLarge):
        decoded(row.ljust(1001), NUMBERS, max_row_bytes=1000)


@pytest.mark.parametrize(
    "body",
    [b'{"a":1,"b":1}\n' * 300_000, b"\n" * 4_000_000, b" " * 4_000_000, b"[" + b"1," * 2_000_000, b"{}\n" * 1_000_000],
    ids=["rows", "empty lines", "blanks", "row", "objects"],
)
def test_a_bomb_of_rows_takes_little_memory(body: bytes) -> None:
    decoder = LineDecoder(context(NUMBERS), lists=True)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput):
            decoder.decode(body)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 12_000_000, most


def test_wrong_rows_far_from_each_other_are_all_named_when_the_body_is_read_as_a_whole() -> None:
    rows = [dict(ROWS[0]) for _ in range(3000)]
    for at in (7, 2999):
        rows[at]["pieces"] = 70
    wanted = [("instances[7].pieces", "out_of_range"), ("instances[2999].pieces", "out_of_range")]
    assert refusals(lines(rows), ORDER, max_rows=3000) == wanted
    with pytest.raises(Malformed):
        decoded(lines(rows) + b"{\n", max_rows=4000)
