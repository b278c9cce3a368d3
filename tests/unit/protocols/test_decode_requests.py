"""Bytes to numbers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.fields import MAX_PROBLEMS, read_rows
from serve_app.artifacts.signature import TEXT_LENGTH, UNSEEN, Feature, Signature
from serve_app.errors import InvalidInput, Malformed, TooLarge, TooManyRows
from serve_app.protocols import decode as codec
from serve_app.protocols.limits import MAX_CELLS, row_bytes, rows_within
from tests.support.models import A_FLOWER, iris_signature
from tests.support.signatures import rows, signatures

MIXED = Signature(
    (
        Feature("age", "number", 0.0, 120.0),
        Feature("member", "boolean"),
        Feature("city", "category", categories=("Bern", "Zürich")),
        Feature("income", "number", nullable=True),
        Feature("owner", "boolean", nullable=True),
        Feature("colour", "category", categories=("blue", "red"), nullable=True),
    ),
    "regression",
)
ROW = 10_000
A_CLIENT = {"age": 33, "member": True, "city": "Zürich", "income": 1.5, "owner": False, "colour": "red"}
decode = codec.row_decoder(MIXED, unknown="refuse")
decode_all = codec.rows_decoder(MIXED, max_rows=3, max_row_bytes=ROW, unknown="refuse")
either_reading = pytest.mark.parametrize("unknown", ["refuse", "unseen"])


def body(row: Any = A_CLIENT, /, **changes: Any) -> bytes:
    return orjson.dumps({**row, **changes})


def without(name: str) -> bytes:
    return orjson.dumps({key: value for key, value in A_CLIENT.items() if key != name})


def refusals(raw: bytes) -> list[tuple[str, str]]:
    """What is wrong with a row, as (field, code)."""
    with pytest.raises(InvalidInput) as refused:
        decode(raw)
    return [(problem.field, problem.code) for problem in refused.value.problems]


def exact(matrix: Any) -> Any:
    """The values of a matrix to the last bit."""
    return matrix.dtype, matrix.tobytes() if matrix.dtype == np.float64 else repr(matrix.tolist())


def outcome(read: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return exact(read(*arguments, **options))
    except InvalidInput as error:
        return [(problem.code, problem.message) for problem in error.problems]


@given(st.data(), signatures())
@either_reading
def test_the_fast_reader_and_the_careful_one_agree_on_every_row(unknown: Any, data: st.DataObject, signature: Signature) -> None:
    row = data.draw(rows(signature))
    fast = outcome(codec.row_decoder(signature, unknown=unknown), json.dumps(row).encode())
    careful = outcome(read_rows, signature, [row], unknown=unknown)
    assert fast == careful


@given(st.data(), signatures())
def test_a_batch_is_its_rows_in_their_order(data: st.DataObject, signature: Signature) -> None:
    table = data.draw(st.lists(rows(signature), min_size=1, max_size=4))
    one = codec.row_decoder(signature, unknown="refuse")
    many = codec.rows_decoder(signature, max_rows=4, max_row_bytes=ROW, unknown="refuse")
    try:
        expected = np.vstack([one(json.dumps(row).encode()) for row in table])
    except InvalidInput:
        with pytest.raises(InvalidInput):
            many(json.dumps({"instances": table}).encode())
    else:
        assert exact(many(json.dumps({"instances": table}).encode())) == exact(expected)


WITH_TEXT = Signature((Feature("note", "text", max_length=5), Feature("n"), Feature("more", "text", nullable=True)), "regression")
decode_text = codec.row_decoder(WITH_TEXT, unknown="refuse")


def test_texts_stay_texts_beside_the_numbers_and_a_gap_is_nan() -> None:
    ((note, number, more),) = decode_text('{"note": "Zü 😀", "n": 1, "more": null}'.encode()).tolist()
    assert (note, number) == ("Zü 😀", 1.0)
    assert math.isnan(more)


def test_a_text_that_means_a_gap_is_one_only_where_null_is_taken() -> None:
    ((note, _, more),) = decode_text(b'{"note": "NA", "n": "1.5", "more": "NA"}').tolist()
    assert note == "NA"
    assert math.isnan(more)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b'{"note": "sixsix", "n": 1}', "too_long"),
        (b'{"note": 5, "n": 1}', "type"),
        (b'{"note": null, "n": 1}', "type"),
        (b'{"n": 1}', "missing"),
        (b'{"note": "\\ud800", "n": 1}', "type"),
    ],
)
def test_a_wrong_text_is_refused_by_its_rule(raw: bytes, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode_text(raw)
    assert [(problem.field, problem.code) for problem in refused.value.problems] == [("note", code)]


def test_a_text_of_a_signature_that_names_no_length_is_bounded_too() -> None:
    read = codec.row_decoder(Signature((Feature("note", "text"),), "regression"), unknown="refuse")
    assert read(orjson.dumps({"note": "x" * TEXT_LENGTH})).tolist() == [["x" * TEXT_LENGTH]]
    with pytest.raises(InvalidInput):
        read(orjson.dumps({"note": "x" * (TEXT_LENGTH + 1)}))


@given(st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
def test_a_number_is_read_as_python_reads_it(text: str) -> None:
    signature = Signature((Feature("x"), Feature("y", nullable=True)), "regression")
    read = codec.row_decoder(signature, unknown="refuse")
    wanted = float(text)
    raw = f'{{"x": {text}, "y": {text}}}'.encode()
    if abs(wanted) <= signature.features[0].bounds[1]:
        assert read(raw).tolist() == [[wanted, wanted]]
    else:
        with pytest.raises(InvalidInput):
            read(raw)


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
def test_any_bytes_at_all_are_answered_or_refused_never_more(raw: bytes) -> None:
    for read in (decode, decode_all):
        with pytest.raises(InvalidInput):
            read(raw)


def test_kinds_become_numbers_in_the_order_of_the_signature() -> None:
    assert decode(body()).tolist() == [[33.0, 1.0, 1.0, 1.5, 0.0, 1.0]]


def test_columns_that_take_null_may_be_null_or_left_out() -> None:
    assert math.isnan(decode(body(income=None))[0, 3])
    row = decode(orjson.dumps({"age": 1, "member": False, "city": "Bern"}))
    assert row[0, :3].tolist() == [1.0, 0.0, 0.0]
    assert np.isnan(row[0, 3:]).all()


def test_the_order_holds_when_optional_columns_come_first() -> None:
    signature = Signature((Feature("a", nullable=True), Feature("b"), Feature("c", nullable=True), Feature("d")), "regression")
    assert codec.row_decoder(signature, unknown="refuse")(b'{"d": 4, "c": 3, "b": 2, "a": 1}').tolist() == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("raw", "problems"),
    [
        (body(age="old"), [("age", "type")]),
        (body(age=True), [("age", "type")]),
        (body(age=None), [("age", "type")]),
        (body(age=[1]), [("age", "type")]),
        (body(age={}), [("age", "type")]),
        (body(age=120.5), [("age", "out_of_range")]),
        (body(age=-1e-9), [("age", "out_of_range")]),
        (body(age="121"), [("age", "out_of_range")]),
        (body(income=True), [("income", "type")]),
        (body(income=1e39), [("income", "out_of_range")]),
        (body(member=1), [("member", "type")]),
        (body(member="true"), [("member", "type")]),
        (body(owner=0), [("owner", "type")]),
        (body(city="Paris"), [("city", "unknown_category")]),
        (body(city="bern"), [("city", "unknown_category")]),
        (body(city=3), [("city", "type")]),
        (body(city=None), [("city", "type")]),
        (body(colour="green"), [("colour", "unknown_category")]),
        (without("age"), [("age", "missing")]),
        (b"{}", [("age", "missing"), ("member", "missing"), ("city", "missing")]),
        (body(age="x", city=1, member=2), [("age", "type"), ("member", "type"), ("city", "type")]),
        (body().replace(b"33", b"NaN"), [("age", "not_finite")]),
        (body().replace(b"33", b"Infinity"), [("age", "not_finite")]),
        (body().replace(b"33", b"-Infinity"), [("age", "not_finite")]),
        (body().replace(b"33", b"1e999"), [("age", "not_finite")]),
        (body().replace(b"33", b"1" * 5000), [("age", "not_finite")]),
        (body(age="NaN"), [("age", "type")]),
        (body(age="1e999"), [("age", "not_finite")]),
        (body(income="-inf"), [("income", "type")]),
        (b"[]", [("body", "type")]),
        (b"null", [("body", "type")]),
        (b"3", [("body", "type")]),
        (b'"text"', [("body", "type")]),
    ],
    ids=lambda value: str(value)[:70],
)
def test_a_wrong_row_is_refused_by_the_name_of_the_field(raw: bytes, problems: list[tuple[str, str]]) -> None:
    assert refusals(raw) == problems


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"{'age': 3}",
        b'{"age": 3,}',
        b'{"age": 03}',
        b'{"age": }',
        b"\xff\xfe",
        b'{"city": "\xff"}',
        b"[" * 100_000,
        b'{"extra":' * 100_000,
    ],
    ids=lambda raw: str(raw[:20]),
)
def test_what_is_not_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed) as refused:
        decode(raw)
    assert [problem.field for problem in refused.value.problems] == ["body"]


@pytest.mark.parametrize("age", ["33", "3.3e1", "33.0", "330E-1", "33.00e+0"])
def test_a_number_written_as_a_string_is_a_number(age: str) -> None:
    assert decode(body(age=age))[0, 0] == 33.0


@pytest.mark.parametrize(
    "age",
    [
        *("1_0", " 33 ", "33\n", "+33", "033", "33.", ".5", "0x1", "1e", "1e5.0", "", "-", "inf", "nan", "1,5", "3 3"),
        *("\u0663\u0663", "\uff13\uff13", "\u0967", "3\u0663", "\u221233", "33\u200b", "\ufeff33", "\u2003" + "33"),
    ],
)
def test_text_that_is_no_number_of_json_is_none(age: str) -> None:
    assert refusals(body(age=age)) == [("age", "type")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "cp037"])
def test_json_in_another_encoding_than_utf_8_is_malformed(encoding: str) -> None:
    text = json.dumps({**A_CLIENT, "city": "Bern", "age": "33"})
    for raw, read in ((text, decode), (f'{{"instances": [{text}]}}', decode_all)):
        with pytest.raises(Malformed):
            read(raw.encode(encoding))


def test_a_byte_order_mark_of_utf_8_is_ignored() -> None:
    assert decode(b"\xef\xbb\xbf" + body())[0, 0] == 33.0
    assert decode_all(b'\xef\xbb\xbf{"instances":[' + body() + b"]}")[0, 0] == 33.0


def test_an_int_without_end_in_a_field_that_nobody_reads_is_ignored() -> None:
    assert decode(body().replace(b"{", b'{"extra":' + b"9" * 5000 + b",", 1))[0, 0] == 33.0
    assert decode(body(age="33").replace(b"{", b'{"extra":' + b"9" * 5000 + b",", 1))[0, 0] == 33.0


def test_extra_fields_are_ignored_and_of_two_equal_names_the_last_counts() -> None:
    assert decode(body(extra={"deep": [1, {"er": None}]}))[0, 0] == 33.0
    assert decode(body()[:-1] + b',"age":44}')[0, 0] == 44.0
    assert decode(b'{"age":"x",' + body()[1:])[0, 0] == 33.0
    assert refusals(body()[:-1] + b',"age":"x"}') == [("age", "type")]


@pytest.mark.parametrize("city", ["Genf", "", "Z\u00fc", "🌷"])
def test_an_unknown_category_can_be_taken_as_unseen(city: str) -> None:
    lenient = codec.row_decoder(MIXED, unknown="unseen")
    assert lenient(body(city=city))[0, 2] == UNSEEN
    assert lenient(body(city=city, age="33"))[0, 2] == UNSEEN
    with pytest.raises(InvalidInput):
        lenient(body(city=7))


@pytest.mark.parametrize("name", ['a "b"', "back\\slash", "line\nbreak", "", "🌷", "f0", "instances", "'", "a.b", "{x}"])
def test_any_column_name_works(name: str) -> None:
    signature = Signature((Feature(name, "number", 0.0, 1.0), Feature("f1", "category", categories=('"',))), "regression")
    row = {name: 0.5, "f1": '"'}
    for dumped in (json.dumps(row).encode(), orjson.dumps(row)):
        assert codec.row_decoder(signature, unknown="refuse")(dumped).tolist() == [[0.5, 0.0]]
    many = codec.rows_decoder(signature, max_rows=2, max_row_bytes=ROW, unknown="refuse")
    assert many(json.dumps({"instances": [row, row]}).encode()).tolist() == [[0.5, 0.0]] * 2
    with pytest.raises(InvalidInput) as refused:
        codec.row_decoder(signature, unknown="refuse")(json.dumps({**row, name: 2}).encode())
    assert refused.value.problems[0].field == name


def test_a_message_never_repeats_what_was_sent() -> None:
    secret = "4111-1111-1111-1111"
    everywhere = dict.fromkeys(MIXED.names, secret)
    for raw in (
        body(everywhere),
        body(age=secret, extra=secret),
        body(everywhere, age=[secret], city=[secret]),
        body() + secret.encode(),
    ):
        for wrapped, read in ((raw, decode), (b'{"instances":[' + raw + b"]}", decode_all)):
            with pytest.raises(InvalidInput) as refused:
                read(wrapped)
            assert "4111" not in str(refused.value)
            assert refused.value.__cause__ is None
            assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize(
    ("minimum", "maximum", "says"),
    [
        (0.0, 20.0, "must be between 0 and 20"),
        (None, 1234567.5, "must be at most 1234567.5"),
        (0.1, None, "must be at least 0.1"),
    ],
)
def test_a_message_names_the_bounds_exactly(minimum: float | None, maximum: float | None, says: str) -> None:
    signature = Signature((Feature("x", "number", minimum, maximum),), "regression")
    for value in (-1e30, 1e30):
        if not (signature.features[0].bounds[0] <= value <= signature.features[0].bounds[1]):
            with pytest.raises(InvalidInput, match=f"^x: {says}$"):
                codec.row_decoder(signature, unknown="refuse")(orjson.dumps({"x": value}))


def test_a_wide_row_full_of_mistakes_gets_a_short_list() -> None:
    signature = Signature(tuple(Feature(f"x{i}") for i in range(1000)), "regression")
    for read, raw in (
        (codec.row_decoder(signature, unknown="refuse"), b"{}"),
        (codec.rows_decoder(signature, max_rows=9, max_row_bytes=ROW, unknown="refuse"), b'{"instances":[{},{}]}'),
    ):
        with pytest.raises(InvalidInput) as refused:
            read(raw)
        assert len(refused.value.problems) == MAX_PROBLEMS


@pytest.mark.parametrize(
    ("raw", "problems"),
    [
        (b"{}", [("instances", "missing")]),
        (b'{"instances": {}}', [("instances", "type")]),
        (b'{"instances": null}', [("instances", "type")]),
        (b'{"instances": []}', [("instances", "too_short")]),
        (b'{"instances": [3, null]}', [("instances[0]", "type"), ("instances[1]", "type")]),
        (
            b'{"instances": [' + body() + b", {}]}",
            [("instances[1].age", "missing"), ("instances[1].member", "missing"), ("instances[1].city", "missing")],
        ),
        (b'{"instances": [' + body() + b"," + body(age=500) + b"]}", [("instances[1].age", "out_of_range")]),
        (b'{"instances": [' + body(city="Paris") + b"]}", [("instances[0].city", "unknown_category")]),
    ],
    ids=lambda value: str(value)[:70],
)
def test_a_wrong_batch_is_refused_by_row_and_field(raw: bytes, problems: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode_all(raw)
    assert [(problem.field, problem.code) for problem in refused.value.problems] == problems


def test_a_batch_keeps_its_order_and_takes_strings_for_numbers() -> None:
    table = [{**A_CLIENT, "age": age} for age in (3, "1", 2)]
    assert decode_all(orjson.dumps({"instances": table}))[:, 0].tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("row", [A_CLIENT, {**A_CLIENT, "age": "1"}, {}], ids=["right", "to be read carefully", "wrong"])
def test_more_rows_than_allowed_are_refused_whatever_they_hold(row: dict[str, Any]) -> None:
    with pytest.raises(TooManyRows, match="at most 3 rows"):
        decode_all(orjson.dumps({"instances": [row] * 4}))


def test_the_flower_of_the_documentation_is_read() -> None:
    assert codec.row_decoder(iris_signature(), unknown="refuse")(orjson.dumps(A_FLOWER)).tolist() == [[5.1, 3.5, 1.4, 0.2]]


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b'{"instances": [' + body(extra="x" * ROW) + b"," + body(age="1") + b"]}", TooLarge),
        (b'{"instances": [' + body() + b'], "more": "' + b"x" * ROW + b'"}', TooLarge),
        (b'{"a":1,' * 1 + b'"a":[],' * (ROW // 7) + b'"instances": [' + body(age="1") + b"]}", TooLarge),
        (b'{"instances":[' + b"[]," * 300_000 + b"[]]}", InvalidInput),
        (b"[" + b"[]," * 300_000 + b"[]]", TooLarge),
    ],
    ids=["a long row", "a long field beside the rows", "many fields beside the rows", "lists for rows", "a list"],
)
def test_what_is_too_large_to_be_read_slowly_is_refused(raw: bytes, error: type[InvalidInput]) -> None:
    careful = raw + b" " * codec.PIECE_BYTES
    with pytest.raises(error) as refused:
        decode_all(careful)
    assert len(refused.value.problems) <= MAX_PROBLEMS


def test_rows_that_leave_out_all_columns_fill_no_matrix_without_end() -> None:
    signature = Signature(tuple(Feature(f"x{i}", nullable=True) for i in range(1000)), "regression")
    read = codec.rows_decoder(signature, max_rows=100_000, max_row_bytes=ROW, unknown="refuse")
    limit = rows_within(signature, 100_000)
    assert limit == MAX_CELLS // 1000
    row = b'{"x0":1}'
    assert len(read(b'{"instances":[' + b",".join([row] * limit) + b"]}")) == limit
    for other in (row, b"{}"):
        with pytest.raises(TooManyRows, match=f"at most {limit} rows"):
            read(b'{"instances":[' + b",".join([other] * (limit + 1)) + b"]}")


OPTIONAL = Signature(
    (
        Feature("Temp", nullable=True),
        Feature("windy", "boolean", nullable=True),
        Feature("sky", "category", categories=("blue",), nullable=True),
    ),
    "regression",
)


@pytest.mark.parametrize("row", [{}, {"temp": 90, "wind": 3}, {"instances": [{"Temp": 90}]}, {"Temp ": 1}, {"": None}], ids=str)
def test_a_row_without_any_field_of_the_model_is_refused_though_all_may_be_left_out(row: dict[str, Any]) -> None:
    one = codec.row_decoder(OPTIONAL, unknown="refuse")
    with pytest.raises(InvalidInput) as refused:
        one(orjson.dumps(row))
    assert [(problem.field, problem.code) for problem in refused.value.problems] == [("body", "missing")]
    assert "Temp, windy, sky" in refused.value.problems[0].message
    many = codec.rows_decoder(OPTIONAL, max_rows=20_000, max_row_bytes=ROW, unknown="refuse")
    for before in (2, 18_000):  # a body that is read at once, and one that is read in pieces
        with pytest.raises(InvalidInput) as refused:
            many(orjson.dumps({"instances": [{"Temp": 1.0}] * before + [row]}))
        assert [(problem.field, problem.code) for problem in refused.value.problems] == [(f"instances[{before}]", "missing")]


def test_a_row_of_gaps_that_names_a_field_is_a_row() -> None:
    one = codec.row_decoder(OPTIONAL, unknown="refuse")
    for row in ({"Temp": None}, {"sky": None, "more": 1}, {"windy": True}, {"Temp": "1"}):
        assert one(orjson.dumps(row)).shape == (1, 3)
    many = codec.rows_decoder(OPTIONAL, max_rows=9, max_row_bytes=ROW, unknown="refuse")
    assert np.isnan(many(b'{"instances": [{"Temp": null}, {"sky": null}]}')).all()


@pytest.mark.parametrize("signature", [MIXED, OPTIONAL], ids=["some are needed", "all may be left out"])
def test_a_field_that_the_model_does_not_have_is_refused_when_the_setting_says_so(signature: Signature) -> None:
    row = A_CLIENT if signature is MIXED else {"Temp": 3.0}
    one = codec.row_decoder(signature, unknown="refuse", unknown_fields="refuse")
    many = codec.rows_decoder(signature, max_rows=20_000, max_row_bytes=ROW, unknown="refuse", unknown_fields="refuse")
    assert one(orjson.dumps(row)).shape == (1, len(signature.features))
    assert len(many(orjson.dumps({"instances": [row, row]}))) == 2
    with pytest.raises(InvalidInput) as refused:
        one(orjson.dumps({**row, "a secret name": 1}))
    assert [(problem.field, problem.code) for problem in refused.value.problems] == [("body", "unknown_field")]
    assert "a secret name" not in str(refused.value)
    for before in (1, 9000):
        with pytest.raises(InvalidInput) as refused:
            many(orjson.dumps({"instances": [row] * before + [{**row, "a secret name": 1}]}))
        assert [(problem.field, problem.code) for problem in refused.value.problems] == [(f"instances[{before}]", "unknown_field")]
    for body in ({"instances": [row], "other": 1}, {"other": 1, "instances": [row]}):
        with pytest.raises(InvalidInput) as refused:
            many(orjson.dumps(body))
        assert [(problem.field, problem.code) for problem in refused.value.problems] == [("body", "unknown_field")]


def test_a_wide_row_has_a_limit_that_its_signature_gives() -> None:
    wide = Signature(tuple(Feature(f"column number {i}") for i in range(5000)), "regression")
    row = orjson.dumps(dict.fromkeys(wide.names, 0.12345678901234566))
    assert row_bytes(wide, 1000) > len(row) > 64 * 1024
    assert row_bytes(iris_signature(), 65_536) == 65_536
    as_text = orjson.dumps(dict.fromkeys(wide.names, "0.5"))
    assert codec.row_decoder(wide, unknown="refuse")(as_text).tolist() == [[0.5] * 5000]
    many = codec.rows_decoder(wide, max_rows=9, max_row_bytes=row_bytes(wide, 1000), unknown="refuse")
    assert many(b'{"instances":[' + b",".join([row, as_text]) + b"]}")[:, 7].tolist() == [0.12345678901234567, 0.5]
