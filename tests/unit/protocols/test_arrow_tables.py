"""Arrow IPC streams and Parquet files as rows: what requests and scoring read in a column, bounded before it is unpacked."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serve_app.artifacts.dates import DateForm
from serve_app.artifacts.fields import MAX_PROBLEMS, read_rows
from serve_app.artifacts.signature import UNSEEN, Feature, Signature
from serve_app.errors import InvalidInput, Malformed, NotFinite, TooLarge, TooManyRows
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from serve_app.protocols.arrow_answers import answer_types, prediction_columns
from serve_app.protocols.arrow_tables import MOST_PIECES, arrow_decoder, arrow_encoder, parquet_decoder
from serve_app.protocols.encode import as_printed
from tests.support.answers import MODELS, fitted, rows, signature_of
from tests.support.arrow_bodies import bombs, claiming_rows, file, numbers, stream
from tests.support.table_rows import NAMES, NUMBERS, ORDER, ROWS, context

ORDERS = pa.Table.from_pylist(ROWS)
MAKE: dict[str, Callable[..., bytes]] = {"arrow": stream, "parquet": file}
TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]
every_format = pytest.mark.parametrize("form", ["arrow", "parquet"])


def decoded(form: str, body: bytes | bytearray, signature: Signature = NUMBERS, **changes: Any) -> Any:
    decoder = {"arrow": arrow_decoder, "parquet": parquet_decoder}[form]
    return decoder(context(signature, **changes))(body)


def refusals(form: str, table: pa.Table, signature: Signature = NUMBERS, **changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidInput) as refused:
        decoded(form, MAKE[form](table), signature, **changes)
    return [(problem.field, problem.code) for problem in refused.value.problems]


def same(matrix: Any, expected: Any) -> bool:
    return matrix.dtype == expected.dtype and repr(matrix.tolist()) == repr(expected.tolist())


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_the_rows_of_a_stream_are_those_of_the_objects(compression: str | None) -> None:
    expected = read_rows(ORDER, ROWS)
    assert same(decoded("arrow", stream(ORDERS, compression=compression), ORDER), expected)
    assert same(decoded("arrow", bytearray(stream(ORDERS.select(NAMES[::-1]), compression=compression)), ORDER), expected)
    parts = [ORDERS.slice(0, 1), ORDERS.slice(1, 0), ORDERS.slice(1, 3)]
    assert same(decoded("arrow", stream(*parts, compression=compression), ORDER), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd", "row_group_size": 2},
        {"compression": "gzip", "data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False, "write_statistics": False},
        {"store_schema": False, "write_page_index": True, "use_byte_stream_split": ["age", "pieces"], "use_dictionary": ["city"]},
        {"use_dictionary": False, "column_encoding": {"note": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
    ids=str,
)
def test_the_rows_of_a_file_are_those_of_the_objects(options: dict[str, Any]) -> None:
    assert same(decoded("parquet", file(ORDERS, **options), ORDER), read_rows(ORDER, ROWS))


@every_format
@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_texts_are_read_from_every_type_of_texts(form: str, kind: pa.DataType) -> None:
    table = ORDERS
    for name in ("city", "note", "placed"):
        column = pa.array(table.column(name).to_pylist(), pa.string())
        encoded = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)
        table = table.set_column(table.column_names.index(name), name, encoded)
    if pa.types.is_string_view(kind) and form == "parquet":
        pytest.skip("pyarrow writes no string_view to Parquet")
    assert same(decoded(form, MAKE[form](table), ORDER), read_rows(ORDER, ROWS))


@every_format
def test_a_dictionary_names_rows_that_are_wrong(form: str) -> None:
    signature = Signature((Feature("c", "category", categories=("x", "y")),), "regression")
    column = pa.chunked_array([pa.array(["x", "y"]).dictionary_encode(), pa.array(["y", "Oslo", None, "x"]).dictionary_encode()])
    assert refusals(form, pa.table({"c": column}), signature) == [
        ("instances[3].c", "unknown_category"),
        ("instances[4].c", "type"),
    ]
    unseen = decoded(form, MAKE[form](pa.table({"c": column.slice(0, 4)})), signature, unknown="unseen")
    assert unseen.tolist() == [[0.0], [1.0], [1.0], [UNSEEN]]


@every_format
@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint16(), pa.float16(), pa.float32(), pa.decimal128(5, 2), pa.string()])
def test_numbers_are_read_from_every_type_of_numbers(form: str, kind: pa.DataType) -> None:
    exact = pa.array(["1.00", "2.00"]) if pa.types.is_string(kind) else pa.array([1.0, 2.0]).cast(kind)
    assert decoded(form, MAKE[form](pa.table({"a": exact, "b": pa.array([3, 4])}))).tolist() == [[1.0, 3.0], [2.0, 4.0]]


@every_format
def test_large_whole_numbers_are_rounded_as_in_json(form: str) -> None:
    large = [2**53 + 1, -(2**63), 2**63 - 1]
    table = pa.table({"a": pa.array(large, pa.int64()), "b": [0.0] * 3})
    assert decoded(form, MAKE[form](table))[:, 0].tolist() == [float(number) for number in large]
    table = pa.table({"a": pa.array([2**64 - 1], pa.uint64()), "b": [0.0]})
    assert decoded(form, MAKE[form](table))[:, 0].tolist() == [float(2**64 - 1)]


@every_format
def test_a_bound_is_rounded_to_the_type_of_the_numbers(form: str) -> None:
    signature = Signature((Feature("a", "number", 0.0, 0.1),), "regression")
    table = pa.table({"a": pa.array([0.1], pa.float32())})
    assert decoded(form, MAKE[form](table), signature).tolist() == [[float(np.float32(0.1))]]
    assert refusals(form, pa.table({"a": pa.array([0.2], pa.float32())}), signature) == [("instances[0].a", "out_of_range")]


@every_format
def test_nulls_and_nan_are_missing_values(form: str) -> None:
    gap = Signature((Feature("a", nullable=True), Feature("b")), "regression")
    table = pa.table({"a": [None, float("nan"), 1.0], "b": [1.0, 2.0, 3.0]})
    assert repr(decoded(form, MAKE[form](table), gap).tolist()) == "[[nan, 1.0], [nan, 2.0], [1.0, 3.0]]"
    assert refusals(form, table) == [("instances[0].a", "type"), ("instances[1].a", "type")]
    assert repr(decoded(form, MAKE[form](pa.table({"b": [1.0]})), gap).tolist()) == "[[nan, 1.0]]"
    empty = pa.table({"a": pa.nulls(2), "b": [1.0, 2.0]})
    assert repr(decoded(form, MAKE[form](empty), gap).tolist()) == "[[nan, 1.0], [nan, 2.0]]"


@every_format
def test_dates_and_timestamps_are_read_by_their_type(form: str) -> None:
    signature = Signature((Feature("day", "date", date=DateForm(), nullable=True),), "regression")
    expected = read_rows(signature, [{"day": "2025-01-31"}, {"day": None}]).tolist()
    days = [date(2025, 1, 31), None]
    for kind in (pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns")):
        table = pa.table({"day": pa.array(days, pa.date32()).cast(kind)})
        assert repr(decoded(form, MAKE[form](table), signature).tolist()) == repr(expected), kind
    zoned = pa.table({"day": pa.array([datetime(2025, 1, 31, tzinfo=UTC)], pa.timestamp("us", "UTC"))})
    assert refusals(form, zoned, signature) == [("day", "type")]


@every_format
@pytest.mark.parametrize(
    "column",
    [
        pa.array([True]),
        pa.array([b"1"]),
        pa.array([[1.0]]),
        pa.array([{"x": 1.0}]),
        pa.array([date(2025, 1, 1)]),
        pa.array([b"1" * 40], pa.binary(40)),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_of_another_type_is_one_clear_refusal(form: str, column: pa.Array) -> None:
    assert refusals(form, pa.table({"a": column, "b": [1.0]})) == [("a", "type")]


@every_format
def test_what_is_wrong_with_the_table_is_one_clear_refusal(form: str) -> None:
    assert refusals(form, pa.table({"a": [1.0]})) == [("b", "missing")]
    assert refusals(form, pa.table({"x": [1.0]})) == [("a", "missing"), ("b", "missing")]
    assert refusals(form, numbers([])) == [("instances", "too_short")]
    assert refusals(form, numbers([[1, 1], [1, 6]])) == [("instances[1].b", "out_of_range")]
    assert refusals(form, pa.table([[1.0], [2.0], [3.0]], names=["a", "b", "a"])) == [("schema", "duplicate")]
    further = pa.table({"zip": [{"x": ["1"]}], "b": [1.0], "a": [2.0]})
    assert decoded(form, MAKE[form](further)).tolist() == [[2.0, 1.0]]
    assert refusals(form, further, unknown_fields="refuse") == [("schema", "unknown_field")]
    assert len(refusals(form, numbers([[1, 9]] * 500))) == MAX_PROBLEMS
    texts = pa.table({"a": ["ten", "1_0", "nan"], "b": ["1", "2", "3"]})
    assert [field for field, _ in refusals(form, texts)] == [f"instances[{row}].a" for row in range(3)]
    decimals = pa.table({"a": [Decimal("1.5")], "b": [Decimal("5.5")]})
    assert refusals(form, decimals) == [("instances[0].b", "out_of_range")]


@every_format
def test_one_row_too_many_is_refused(form: str) -> None:
    table = numbers([[1, 1]] * 4)
    assert len(decoded(form, MAKE[form](table), max_rows=4)) == 4
    with pytest.raises(TooManyRows):
        decoded(form, MAKE[form](table), max_rows=3)
    with pytest.raises(TooManyRows):
        decoded("arrow", stream(*[table] * 2), max_rows=7)


# --- bodies that are meant to do harm


@pytest.fixture(scope="module")
def bodies() -> dict[str, tuple[str, bytes]]:
    return bombs()


@pytest.mark.parametrize("texts", [False, True], ids=["numbers", "texts"])
def test_a_bomb_takes_little_memory(bodies: dict[str, tuple[str, bytes]], texts: bool) -> None:
    features = (Feature("a", "text"), Feature("b", "text")) if texts else NUMBERS.features
    for name, (form, body) in bodies.items():
        assert len(body) < 3_000_000, name
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        try:
            with pytest.raises(InvalidInput):
                decoded(form, body, Signature(features, "regression"), max_rows=1000)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 12_000_000, (name, most)
        assert pa.total_allocated_bytes() <= before, name


def test_a_stream_of_more_pieces_than_are_read_is_too_large() -> None:
    batch = numbers([[1, 1]]).to_batches()[0]
    assert len(decoded("arrow", stream(*[batch] * MOST_PIECES), max_rows=MOST_PIECES)) == MOST_PIECES
    with pytest.raises(TooLarge):
        decoded("arrow", stream(*[batch] * (MOST_PIECES + 1)), max_rows=10_000)


def test_a_dictionary_that_grows_is_malformed() -> None:
    sink = pa.BufferOutputStream()
    first, second = (pa.array(texts).dictionary_encode() for texts in (["x"], ["x", "y"]))
    batches = [pa.record_batch({"c": column}) for column in (first, second)]
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    signature = Signature((Feature("c", "category", categories=("x", "y")),), "regression")
    with pytest.raises(Malformed):
        decoded("arrow", bytes(sink.getvalue()), signature)
    replaced = stream(*(pa.Table.from_batches([batch]) for batch in batches))
    assert decoded("arrow", replaced, signature).tolist() == [[0.0], [0.0], [1.0]]


def invalid_texts() -> pa.Array:
    offsets = pa.array([0, 2], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])


def wrong_indexes() -> pa.Array:
    indexes = pa.Array.from_buffers(pa.int32(), 1, [None, pa.array([7], pa.int32()).buffers()[1]])
    return pa.DictionaryArray.from_arrays(indexes, pa.array(["x"]), safe=False)


@pytest.mark.parametrize("column", [invalid_texts(), wrong_indexes()], ids=["UTF-8", "indexes"])
def test_a_stream_whose_texts_are_broken_is_malformed(column: pa.Array) -> None:
    signature = Signature((Feature("t", "text"),), "regression")
    with pytest.raises(Malformed):
        decoded("arrow", stream(pa.table({"t": column})), signature)


def test_a_stream_whose_texts_have_wrong_offsets_is_malformed() -> None:
    body = stream(pa.table({"t": ["abcdefg", "x"]}))
    offsets = struct.pack("<iii", 0, 7, 8)
    assert body.count(offsets) == 1
    for wrong in ((0, 2**30, 2**30), (0, 7, -8), (5, 3, 8), (-1, 7, 8)):
        with pytest.raises(Malformed):
            decoded("arrow", body.replace(offsets, struct.pack("<iii", *wrong)), Signature((Feature("t", "text"),), "regression"))


def test_a_dictionary_of_broken_texts_is_malformed() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), invalid_texts())
    with pytest.raises(Malformed):
        decoded("arrow", stream(pa.table({"t": column})), Signature((Feature("t", "text"),), "regression"))


def test_a_file_of_broken_texts_is_malformed() -> None:
    body = file(pa.table({"t": ["naïve" * 3]}), compression="none").replace("ï".encode(), b"\xff\xff")
    with pytest.raises(Malformed):
        decoded("parquet", body, Signature((Feature("t", "text"),), "regression"))


@every_format
@pytest.mark.parametrize("body", [b"", b"PAR1" * 3, b"\xff" * 100, b"{}", b"a,b\n1,2\n", bytes(64), b"\xff" * 4 + bytes(4)])
def test_what_is_no_table_is_malformed_or_has_no_rows(form: str, body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decoded(form, body)


def test_a_claim_of_rows_that_are_not_there_is_refused() -> None:
    body = stream(numbers([[1, 1]] * 7))
    for claimed in (8, 1000, -1):
        with pytest.raises(InvalidInput):
            decoded("arrow", claiming_rows(body, 7, claimed))


@every_format
def test_a_body_that_is_cut_or_changed_is_refused_or_read(form: str) -> None:
    """Every cut, and thousands of changed bytes: a matrix of the right shape, or InvalidInput, and nothing else."""
    table = ORDERS.set_column(2, "city", ORDERS.column("city").dictionary_encode())
    bodies = (
        [stream(table), stream(table, compression="zstd")] if form == "arrow" else [file(table), file(table, compression="zstd")]
    )
    source = random.Random(1)
    outcomes = {"read": 0, "refused": 0}
    for body in bodies:
        cuts = [body[:end] for end in range(0, len(body), 7)]
        changed = []
        for _ in range(1500):
            copy = bytearray(body)
            for _ in range(source.choice((1, 1, 2, 8))):
                copy[source.randrange(len(copy))] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
            changed.append(bytes(copy))
        for each in cuts + changed:
            try:
                matrix = decoded(form, each, ORDER)
            except InvalidInput:
                outcomes["refused"] += 1
            else:
                assert matrix.shape[1] == len(NAMES)
                outcomes["read"] += 1
    assert min(outcomes.values()) > 50, outcomes


# --- answers


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_holds_the_columns_of_scoring(name: str) -> None:
    model = fitted(name)
    signature = signature_of(model)
    scores = SklearnBackend(model.estimator, signature).scores(rows()[:24])
    table = pa.ipc.open_stream(arrow_encoder(signature)(scores)).read_all()
    expected = prediction_columns(scores, signature)
    assert table.schema.names == [column for column, _ in answer_types(signature) if column in expected]
    for column, values in expected.items():
        assert table.column(column).to_pylist() == values.to_pylist()


def test_float32_scores_are_the_numbers_that_json_has() -> None:
    signature = Signature((Feature("x"),), "regression")
    scores = np.array([0.985, 1e-30], np.float32)
    table = pa.ipc.open_stream(arrow_encoder(signature)(scores)).read_all()
    assert table.column("prediction").to_pylist() == as_printed(scores).tolist() == [0.985, 1e-30]


def test_a_result_that_is_not_finite_is_named_by_its_row() -> None:
    with pytest.raises(NotFinite) as failed:
        arrow_encoder(Signature((Feature("x"),), "regression"))(np.array([1.0, np.inf, 2.0]))
    assert failed.value.rows == [1]
