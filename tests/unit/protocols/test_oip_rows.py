"""Tensors of the Open Inference Protocol become the matrix that the same rows become in the native protocol."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.fields import Unknown, read_value
from serve_app.artifacts.matrix import Matrix
from serve_app.artifacts.signature import UNSEEN, Feature, Signature
from serve_app.errors import InvalidInput, Malformed, TooLarge, TooManyRows
from serve_app.protocols.oip import ROW_BYTES
from serve_app.protocols.oip_metadata import input_datatype
from tests.support.oip import binary, codec_of, packed, request, tensor
from tests.support.signatures import rows, signatures

NUMBERS = Signature((Feature("a", minimum=0.1, maximum=0.7), Feature("b", nullable=True), Feature("c", "boolean")), "regression")
MIXED = Signature(
    (
        Feature("age", nullable=True),
        Feature("city", "category", categories=("Oslo", "Rome", "Zürich")),
        Feature("member", "boolean"),
        Feature("note", "text", nullable=True, max_length=8),
        Feature("day", "date", date=DateForm(("days",)), nullable=True),
        Feature("at", "date", date=DateForm(("days", "hour"), ("epoch s",)), nullable=True),
    ),
    "regression",
)
AGE = tensor([20.5, None], name="age")
CITY = tensor(["Rome", "Oslo"], name="city", datatype="BYTES")
MEMBER = tensor([True, False], name="member", datatype="BOOL")


def matrix(signature: Signature, body: bytes, headers: dict[str, str] | None = None, **options: Any) -> Matrix:
    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    return codec_of(signature, **options).decode(body, pairs).matrix


def refusals(signature: Signature, body: bytes, headers: dict[str, str] | None = None, **options: Any) -> list[tuple[str, str]]:
    """What is wrong with a request, as (field, code)."""
    with pytest.raises(InvalidInput) as refused:
        matrix(signature, body, headers, **options)
    return [(problem.field, problem.code) for problem in refused.value.problems]


def same(left: Any, right: Any) -> bool:
    """Whether two matrices hold the same values, to the last bit; a missing value is one."""
    return bool(left.dtype == right.dtype and repr(left.tolist()) == repr(right.tolist()))


# --- the same rows, the same matrix


def own(signature: Signature, columns: dict[str, list[Any]], unknown: Unknown) -> tuple[Any, set[tuple[str, str]]]:
    """The columns as `read_value` reads them one by one, and the rules that they break."""
    values, wrong = [], set()
    for feature in signature.features:
        column = []
        for row, value in enumerate(columns[feature.name]):
            if feature.kind == "boolean" and type(value) in (int, float) and value in (0, 1):
                value = bool(value)
            read, rule = read_value(feature, value, unknown, signature.missing_texts)
            column.append(read)
            if rule is not None:
                wrong.add((f"{feature.name}[{row}]", rule[0]))
        values.append(column)
    return list(map(list, zip(*values, strict=True))), wrong


@pytest.mark.parametrize("unknown", ["refuse", "unseen"])
@given(data=st.data())
def test_columns_are_read_as_the_native_protocol_reads_their_values(unknown: Unknown, data: st.DataObject) -> None:
    signature = data.draw(signatures())
    table = data.draw(st.lists(rows(signature), min_size=1, max_size=4))
    columns = {name: [row.get(name) for row in table] for name in signature.names}
    inputs = [
        {"name": feature.name, "shape": [len(table)], "datatype": input_datatype(feature), "data": columns[feature.name]}
        for feature in signature.features
    ]
    expected, wrong = own(signature, columns, unknown)
    body = request(*data.draw(st.permutations(inputs)))
    if wrong:
        found = set(refusals(signature, body, unknown=unknown))
        # A list or an object among the values holds more values than the shape has.
        nested = any(isinstance(value, list | dict) for column in columns.values() for value in column)
        assert found <= wrong or (nested and {code for _, code in found} == {"shape"})
    else:
        assert repr(matrix(signature, body, unknown=unknown).tolist()) == repr(expected)


@given(data=st.data())
def test_binary_columns_are_read_as_json_columns(data: st.DataObject) -> None:
    signature = Signature(MIXED.features[:4], "regression")
    table = [
        {"age": 1.5, "city": "Zürich", "member": True, "note": ""},
        {"age": data.draw(st.floats(-1e30, 1e30)), "city": "Oslo", "member": False, "note": data.draw(st.text(max_size=8))},
    ]
    inputs = [
        tensor([row[feature.name] for row in table], name=feature.name, datatype=input_datatype(feature))
        for feature in signature.features
    ]
    assert same(matrix(signature, *binary(*inputs)), matrix(signature, request(*inputs)))


def test_a_mixed_table_with_gaps_in_any_order_and_shape() -> None:
    expected = [[20.5, 1.0, 1.0, math.nan, math.nan, math.nan], [math.nan, 0.0, 0.0, math.nan, math.nan, math.nan]]
    body = request(MEMBER, {**CITY, "shape": [2, 1]}, AGE, parameters={"content_type": "pd", "priority": 1})
    assert repr(matrix(MIXED, body).tolist()) == repr(expected)
    nested = request(MEMBER, {**CITY, "shape": [2, 1], "data": [["Rome"], ["Oslo"]]}, AGE)
    assert repr(matrix(MIXED, nested).tolist()) == repr(expected)
    mixed, headers = binary({**AGE, "data": [20.5, math.nan], "json": True}, CITY, MEMBER)
    assert b"NaN" in mixed
    assert repr(matrix(MIXED, mixed, headers).tolist()) == repr(expected)


def test_texts_and_dates_are_values_of_bytes_tensors_and_epochs_numbers() -> None:
    note = tensor(["NA", 'a, "b"]'], name="note", datatype="BYTES")
    day = tensor(["1970-01-03", None], name="day", datatype="BYTES")
    at = tensor([86400, None], name="at", datatype="INT64")
    read = matrix(MIXED, request(CITY, MEMBER, note, day, at))
    assert repr(read[:, 3:].tolist()) == repr([[math.nan, 2.0, 1.0], ['a, "b"]', math.nan, math.nan]])
    seconds = tensor([86400, 43200], name="at", datatype="INT64")
    assert matrix(MIXED, *binary(CITY, MEMBER, seconds))[:, 5].tolist() == [1.0, 0.5]
    late = tensor([86400, 10**17], name="at", datatype="INT64")
    assert refusals(MIXED, *binary(CITY, MEMBER, late)) == [("at[1]", "date")]


def test_a_whole_matrix_is_one_tensor_of_any_name_nested_or_flat() -> None:
    expected = [[0.5, 2.0, 1.0], [0.25, math.nan, 0.0]]
    for name in ("input-0", "input__0", "predict", "b"):
        for data in ([[0.5, 2, 1], [0.25, None, 0]], [0.5, 2, 1, 0.25, math.nan, 0], [["0.5", "2", True], [0.25, "NA", False]]):
            body = request(tensor(data, name=name, shape=[2, 3]))
            assert repr(matrix(NUMBERS, body).tolist()) == repr(expected), (name, data)
    assert repr(matrix(NUMBERS, *binary(tensor(expected))).tolist()) == repr(expected)
    assert repr(matrix(NUMBERS, *binary(tensor(expected, datatype="FP16"))).tolist()) == repr(expected)


@pytest.mark.parametrize(
    "datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64"]
)
def test_every_number_type_is_read_from_bytes(datatype: str) -> None:
    signature = Signature((Feature("n"),), "regression")
    kind = {"I": "<i", "U": "<u", "F": "<f"}[datatype[0]] + str(int("".join(filter(str.isdigit, datatype))) // 8)
    raw = np.array([0, 1, 100], kind).tobytes()
    head = request({"name": "n", "shape": [3, 1], "datatype": datatype, "parameters": {"binary_data_size": len(raw)}})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert matrix(signature, head + raw, headers).ravel().tolist() == [0, 1, 100]


# --- bounds, booleans and missing values


@pytest.mark.parametrize("datatype", ["FP16", "FP32"])
def test_a_bound_is_rounded_to_the_type_of_the_numbers(datatype: str) -> None:
    bounds = [[0.1, 0, 1], [0.7, 0, 0]]
    assert len(matrix(NUMBERS, *binary(tensor(bounds, datatype=datatype)))) == 2
    assert len(matrix(NUMBERS, request(tensor(bounds, datatype=datatype)))) == 2
    as_written = np.array(bounds, np.float32 if datatype == "FP32" else np.float16).astype(float).tolist()
    assert len(matrix(NUMBERS, request(tensor(as_written, datatype=datatype)))) == 2
    outside = [[0.09, 0, 1], [0.71, 0, 0]]
    assert refusals(NUMBERS, *binary(tensor(outside, datatype=datatype))) == [("a[0]", "out_of_range"), ("a[1]", "out_of_range")]
    assert refusals(NUMBERS, request(tensor(outside, datatype=datatype))) == [("a[0]", "out_of_range"), ("a[1]", "out_of_range")]


def test_a_bound_of_float64_is_exact() -> None:
    assert refusals(NUMBERS, *binary(tensor([[0.1, 0, 1], [np.nextafter(0.1, 0), 0, 0]]))) == [("a[1]", "out_of_range")]


def test_numbers_that_are_missing_or_not_finite_are_named_by_row_and_feature() -> None:
    found = refusals(NUMBERS, *binary(tensor([[math.nan, 1, 1], [0.5, math.inf, 0], [0.5, 1, 2]])))
    assert found == [("a[0]", "type"), ("b[1]", "not_finite"), ("c[2]", "type")]
    assert refusals(NUMBERS, request(tensor([[0.5, math.inf, 1]]))) == [("b[0]", "not_finite")]
    assert refusals(MIXED, request(tensor([None, "Rome"], name="city", datatype="BYTES"), MEMBER)) == [("city[0]", "type")]
    assert refusals(MIXED, request(CITY, tensor([None, True], name="member", datatype="BOOL"))) == [("member[0]", "type")]


def test_numbers_that_mean_a_missing_value_are_missing() -> None:
    signature = Signature((Feature("n", minimum=0, nullable=True), Feature("m")), "regression", missing=("", "-999"))
    assert repr(matrix(signature, request(tensor([[-999, 1], [2, 3]]))).tolist()) == repr([[math.nan, 1.0], [2.0, 3.0]])
    assert repr(matrix(signature, *binary(tensor([[-999, 1], [2, 3]], datatype="INT32"))).tolist()) == repr(
        [[math.nan, 1.0], [2.0, 3.0]]
    )


def test_booleans_are_flags_or_the_numbers_0_and_1_and_numbers_are_no_flags() -> None:
    for flags in (tensor([1, 0], name="member", datatype="INT64"), tensor([0.0, 1.0], name="member"), MEMBER):
        assert matrix(MIXED, request(CITY, flags))[:, 2].tolist() == [float(flag) for flag in flags["data"]]
        assert matrix(MIXED, *binary(CITY, flags))[:, 2].tolist() == [float(flag) for flag in flags["data"]]
    assert refusals(MIXED, request(CITY, tensor([2, 0], name="member", datatype="INT64"))) == [("member[0]", "type")]
    assert refusals(MIXED, request(CITY, MEMBER, tensor([True, False], name="age", datatype="BOOL"))) == [
        ("inputs[2].datatype", "datatype")
    ]
    two = request({"name": "member", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}, {**CITY})
    assert refusals(MIXED, two + b"\x01\x02", {"Inference-Header-Content-Length": str(len(two))}) == [("inputs[0].data", "type")]


def test_an_unknown_category_is_refused_or_unseen() -> None:
    body = request(tensor(["Rome", "Paris"], name="city", datatype="BYTES"), MEMBER)
    assert refusals(MIXED, body) == [("city[1]", "unknown_category")]
    assert matrix(MIXED, body, unknown="unseen")[:, 1].tolist() == [1.0, UNSEEN]


def test_no_more_problems_are_named_than_anybody_reads() -> None:
    signature = Signature((Feature("n", maximum=1.0), Feature("m", maximum=1.0)), "regression")
    assert len(refusals(signature, request(tensor([[2, 2]] * 500)))) == 50
    assert len(refusals(signature, request(tensor([["2", 2]] * 500)))) == 50


@given(data=st.data())
def test_the_usual_request_of_one_row_is_read_as_any_other(data: st.DataObject) -> None:
    signature = Signature((Feature("a", minimum=0.1, maximum=0.7), Feature("b", nullable=True), Feature("c")), "regression")
    value = st.one_of(
        *(st.floats(-1, 1), st.integers(-1, 1), st.floats(allow_nan=True, allow_infinity=True), st.none(), st.booleans()),
        *(st.just("0.5"), st.just([0.5]), st.sampled_from((0.1, 0.7, 10**400))),
    )
    values = data.draw(st.lists(value, min_size=2, max_size=4) | st.lists(st.floats(0.1, 0.7), min_size=3, max_size=3))
    document = tensor(
        data.draw(st.sampled_from((values, [values], [values, values]))),
        name=data.draw(st.sampled_from(("x", "a", ""))),
        shape=data.draw(st.sampled_from(([1, 3], [1, 3], [3], [3, 1], [2, 3], [1, 3, 1]))),
        datatype=data.draw(st.sampled_from(("FP64", "FP32", "FP16", "INT64", "BOOL", "BYTES", "FP"))),
    )
    body = request(document, id="r7")
    read = []
    for padding in (b"", b" " * ROW_BYTES):
        try:
            batch = codec_of(signature).decode(body + padding, [])
            read.append(repr((batch.matrix.dtype, batch.matrix.tolist(), batch.meta.id)))
        except InvalidInput as refused:
            read.append(repr([(problem.field, problem.code) for problem in refused.problems]))
    assert read[0] == read[1]


# --- names and shapes


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([AGE, CITY], ("member", "missing")),
        ([CITY, MEMBER, tensor([1, 2], name="agee")], ("inputs[2].name", "unknown_input")),
        ([CITY, MEMBER, CITY], ("inputs[2].name", "duplicate_input")),
        ([CITY, {**MEMBER, "shape": [2, 2]}], ("inputs[1].shape", "shape")),
        ([CITY, {**MEMBER, "shape": []}], ("inputs[1].shape", "shape")),
        ([CITY, {**MEMBER, "shape": [1, 2]}], ("inputs[1].shape", "shape")),
        ([CITY, {**MEMBER, "shape": [3], "data": [True, True, True]}], ("inputs[1].shape", "shape")),
        ([CITY, {**MEMBER, "datatype": "BF16"}], ("inputs[1].datatype", "datatype")),
        ([CITY, {**MEMBER, "datatype": "bool"}], ("inputs[1].datatype", "datatype")),
        ([CITY, {**MEMBER, "data": [True]}], ("inputs[1].data", "shape")),
        ([CITY, {**MEMBER, "data": [[True], [False]]}], ("inputs[1].data", "shape")),
        ([{**CITY, "data": ["Rome", "Oslo", "Rome"]}, MEMBER], ("inputs[0].data", "shape")),
        ([CITY, {**MEMBER, "data": True}], ("inputs[1].data", "type")),
        ([CITY, {key: value for key, value in MEMBER.items() if key != "data"}], ("inputs[1]", "data")),
        ([CITY, {**MEMBER, "parameters": {"binary_data_size": 2}}], ("inputs[1]", "data")),
        ([tensor([[1, 2, 3, 4, 5, 6]])], ("inputs[0].name", "unknown_input")),
        ([], ("inputs", "too_short")),
    ],
)
def test_names_shapes_and_types_that_do_not_fit_are_refused_by_place(inputs: list[Any], expected: tuple[str, str]) -> None:
    assert refusals(MIXED, request(*inputs)) == [expected]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shape": [3]}, ("inputs[0].shape", "shape")),
        ({"shape": [1, 3, 1]}, ("inputs[0].shape", "shape")),
        ({"shape": [3, 1]}, ("inputs[0].shape", "shape")),
        ({"shape": [0, 3], "data": []}, ("inputs[0].shape", "too_short")),
        ({"shape": [-1, 3]}, ("inputs[0].shape", "too_short")),
        ({"shape": [2**40, 2**40]}, ("inputs[0].shape", "shape")),
        ({"shape": [2, 3]}, ("inputs[0].data", "shape")),
        ({"data": [[0.5, 1], [1]]}, ("inputs[0].data", "shape")),
        ({"data": [0.5, 1]}, ("inputs[0].data", "shape")),
        ({"data": [[0.5], 1, 1]}, ("inputs[0].data", "shape")),
        ({"data": [["0.5", 1, 1, 1]]}, ("inputs[0].data", "shape")),
        ({"data": ["0.5", 1]}, ("inputs[0].data", "shape")),
        ({"data": ["0.5", 1, 1, 1]}, ("inputs[0].data", "shape")),
        ({"datatype": "BYTES"}, ("inputs[0].datatype", "datatype")),
        ({"datatype": "BOOL"}, ("inputs[0].datatype", "datatype")),
    ],
)
def test_a_tensor_of_rows_that_does_not_fit_is_refused_by_place(change: dict[str, Any], expected: tuple[str, str]) -> None:
    assert refusals(NUMBERS, request({**tensor([[0.5, 1, 1]]), **change})) == [expected]


def test_a_single_feature_is_a_column_and_a_matrix_at_once() -> None:
    signature = Signature((Feature("n"),), "regression")
    for name, shape in (("n", [2]), ("n", [2, 1]), ("x", [2, 1])):
        assert matrix(signature, request(tensor([1, 2], name=name, shape=shape))).tolist() == [[1.0], [2.0]]


def test_too_many_rows_are_refused_before_a_value_is_read() -> None:
    for rows_, body in ((4, request(tensor([[0.5, 1, 1]] * 4))), (2**62, request(tensor([1], shape=[2**62, 3])))):
        with pytest.raises(TooManyRows):
            matrix(NUMBERS, body, max_rows=3)
        assert rows_ > 3
    with pytest.raises(TooManyRows):
        matrix(MIXED, request(CITY, {**MEMBER, "shape": [2**62]}))


# --- binary values


def test_sizes_and_lengths_that_do_not_add_up_are_refused() -> None:
    body, headers = binary(tensor([[0.5, 1, 1]]))
    length = int(headers["Inference-Header-Content-Length"])
    for wrong in (b"", b"-1", b"+1", b"0", b"1e3", b"x", b"9" * 40, str(len(body) + 1).encode()):
        with pytest.raises(InvalidInput):
            codec_of(NUMBERS).decode(body, [(b"inference-header-content-length", wrong)])
    assert refusals(NUMBERS, body[:-1], headers) == [("inputs[0].parameters.binary_data_size", "size")]
    assert refusals(NUMBERS, body + b"\0", headers) == [("body", "size")]
    assert refusals(NUMBERS, body[:length]) == [("inputs[0].parameters.binary_data_size", "size")]
    for size in (0, 8, 23, 25, -24, 2**62):
        head = body[:length].replace(b"24", str(size).encode())
        pairs = {"Inference-Header-Content-Length": str(len(head))}
        assert refusals(NUMBERS, head + body[length:], pairs)[0][1] == "size"
    with pytest.raises(Malformed):
        matrix(NUMBERS, body, {"Inference-Header-Content-Length": str(length - 1)})


@pytest.mark.parametrize(
    "raw",
    [
        packed(["Rome"], "BYTES"),
        packed(["Rome", "Oslo", ""], "BYTES"),
        packed(["Rome", "Oslo"], "BYTES") + b"\0",
        b"\xff\xff\xff\xff" + packed(["Oslo"], "BYTES"),
        packed(["Rome"], "BYTES") + b"\x05\0\0\0Oslo",
        packed([b"\xff\xfe", "Oslo"], "BYTES"),
        b"\0" * 7,
    ],
)
def test_binary_texts_that_do_not_add_up_are_refused(raw: bytes) -> None:
    head = request({"name": "city", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}, MEMBER)
    found = refusals(MIXED, head + raw, {"Inference-Header-Content-Length": str(len(head))})
    assert found[0][0].startswith("inputs[0].")


# --- memory


def bomb(piece: bytes, tail: bytes, *, shape: str = "[1,3]", datatype: str = "FP64") -> bytes:
    """A request of 4 MB whose values do not fit its shape."""
    head = b'{"inputs":[{"name":"x","shape":%b,"datatype":"%b","data":[' % (shape.encode(), datatype.encode())
    return head + piece * (4_000_000 // len(piece)) + tail + b"]}]}"


@pytest.mark.parametrize(
    ("piece", "tail"),
    [
        (b"1,", b"1"),
        (b"[1],", b"[1]"),
        (b"[],", b"[]"),
        (b'"1",', b'"1"'),
        (b"null,", b"null"),
        (b"NaN,", b"NaN"),
        (b'{"a":1},', b"1"),
        (b"true,", b"true"),
        (b'["1"],', b"[]"),
        (b'"\\\\",', b'"1"'),
    ],
)
@pytest.mark.parametrize("signature", [NUMBERS, Signature((Feature("x", "text"),), "regression")], ids=["numbers", "text"])
def test_a_long_list_for_a_small_shape_takes_no_memory(piece: bytes, tail: bytes, signature: Signature) -> None:
    codec = codec_of(signature)
    narrow = {"shape": "[1]", "datatype": "BYTES"} if signature is not NUMBERS else {}
    body = bomb(piece, tail, **narrow)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput):
            codec.decode(body, [])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[' + b'{"name":"x","shape":[1],"datatype":"FP32"},' * 50_000 + b"1]}",
        b'{"inputs":[{"name":"x","datatype":"FP64","shape":[' + b"1," * 500_000 + b'1],"data":[1]}]}',
        b'{"id":"' + b"x" * 1_000_000 + b'","inputs":[]}',
        b'{"more":[' + b"[]," * 300_000 + b'1],"inputs":[]}',
        b" " * 1_000_000 + b'{"inputs":[]}',
        b'{"inputs":' + b"[" * 1_000_000,
    ],
)
def test_what_stands_beside_the_values_is_bounded(body: bytes) -> None:
    with pytest.raises(TooLarge):
        matrix(NUMBERS, body)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"inputs":NaN}', b"\x00" * 80])
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        matrix(NUMBERS, body)


@pytest.mark.parametrize(
    "head", [b"", b'{"inputs":', b'{"more":', b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP64","data":']
)
def test_deep_lists_are_refused(head: bytes) -> None:
    for depth in (50_000, 1_000_000):
        with pytest.raises(InvalidInput):
            matrix(NUMBERS, head + b"[" * depth)


@pytest.mark.parametrize("spacing", ["", " ", "\n\t "])
def test_a_large_body_is_read_as_a_small_one(spacing: str) -> None:
    random = np.random.default_rng(1)
    table = np.column_stack([random.uniform(0.1, 0.7, 9000), random.normal(size=9000), random.integers(0, 2, 9000)])
    comma = "," + spacing
    flat = comma.join(map(repr, table.ravel().tolist()))
    nested = comma.join(f"[{spacing}{comma.join(map(repr, row))}{spacing}]" for row in table.tolist())
    for data in (
        flat,
        nested,
        nested.replace(repr(float(table[5000, 1])), "NaN"),
        nested.replace(repr(float(table[5000, 1])), '"7"'),
    ):
        expected = table.copy()
        if "NaN" in data or '"' in data:
            expected[5000, 1] = math.nan if "NaN" in data else 7.0
        head = '{"inputs":[{"name":"x","data"' + spacing + ":" + spacing
        body = head + f'[{data}]{comma}"shape":[9000,3],"datatype":"FP64"{spacing}}}{spacing}]}}'
        assert len(body) > 300_000
        assert same(matrix(NUMBERS, body.encode(), max_rows=10_000), expected)


def test_a_large_body_of_texts_is_read_as_a_small_one() -> None:
    signature = Signature((Feature("t", "text"), Feature("c", "category", categories=("]", '"'))), "regression")
    texts = ['a "quoted" ]}, text', "\\", "],", '","data":[1]', "", "ü" * 20, '"]}'] * 3000
    categories = ["]", '"'] * (len(texts) // 2)
    for nested in (False, True):
        data = [[text] for text in texts] if nested else texts
        inputs = (
            tensor(data, name="t", shape=[len(texts), 1], datatype="BYTES"),
            tensor(categories, name="c", shape=[len(texts)], datatype="BYTES"),
        )
        body = request(*inputs)
        assert len(body) > 300_000
        read = matrix(signature, body, max_rows=100_000)
        assert read[:, 0].tolist() == texts
        assert read[:, 1].tolist() == [0.0, 1.0] * (len(texts) // 2)
        assert same(matrix(signature, json.dumps(json.loads(body), indent=1).encode(), max_rows=100_000), read)


def test_wrong_values_of_several_columns_of_json_are_all_named() -> None:
    wrong = [{**AGE, "data": ["old", 1.5]}, {**CITY, "data": ["Rome", 7]}, {**MEMBER, "data": ["maybe", {}]}]
    assert sorted(refusals(MIXED, request(*wrong))) == [
        ("age[0]", "type"),
        ("city[1]", "type"),
        ("member[0]", "type"),
        ("member[1]", "type"),
    ]
