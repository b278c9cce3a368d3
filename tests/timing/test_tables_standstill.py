"""No table, in any format and right or wrong, holds up the requests of another client."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import orjson
import pyarrow as pa
import pytest

from tests.support.arrow_bodies import bombs, file, numbers, stream
from tests.support.models import A_FLOWER, logistic_store
from tests.support.replica import Replica, replica
from tests.timing.test_standstill import FLOWER, LIMIT, MOST_ROWS, check_delay, repeated

CSV, LINES = "text/csv", "application/x-ndjson"
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
NAMES = list(A_FLOWER)
HEADER = ",".join(NAMES).encode() + b"\n"
ROW = [5.1, 3.5, 1.4, 0.2]
STRUCTS = b"\x19\xfc\xff\xff\x07" + b"\0" * 60_000
"""A list of structs of Thrift, nearly all of them empty."""
FOOTER = (2_000_000).to_bytes(4, "little") + b"PAR1"

TABLES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "the most rows of CSV": lambda: (CSV, HEADER + b"5.1,3.5,1.4,0.2\n" * MOST_ROWS),
    "CSV rows in quotes": lambda: (CSV, HEADER + b'"5.1","3.5","1.4","0.2"\n' * MOST_ROWS),
    "CSV numbers with blanks": lambda: (CSV, HEADER + b" 5.1, 3.5, 1.4, 0.2\n" * MOST_ROWS),
    "a wrong cell in each row of CSV": lambda: (CSV, HEADER + b"500,3.5,1.4,wide\n" * MOST_ROWS),
    "a row too many of CSV": lambda: (CSV, HEADER + b"1,1,1,1\n" * (MOST_ROWS + 1)),
    "cells without end": lambda: (CSV, repeated(b",")),
    "empty lines of CSV": lambda: (CSV, repeated(b"\n", head=HEADER)),
    "a quote that does not end": lambda: (CSV, repeated(b"1\n", head=HEADER + b'"')),
    "the most lines": lambda: (LINES, (FLOWER + b"\n") * MOST_ROWS),
    "wrong lines": lambda: (LINES, (FLOWER.replace(b"5.1", b"500") + b"\n") * MOST_ROWS),
    "empty lines": lambda: (LINES, repeated(b"\n")),
    "empty objects in lines": lambda: (LINES, repeated(b"{}\n")),
    "a line without end": lambda: (LINES, repeated(b"[")),
    "the most rows of Arrow": lambda: (ARROW, stream(numbers([ROW] * MOST_ROWS, NAMES))),
    "numbers as text in Arrow": lambda: (ARROW, stream(pa.table({name: ["5.1"] * MOST_ROWS for name in NAMES}))),
    "wrong numbers in Arrow": lambda: (ARROW, stream(numbers([[500.0] * 4] * MOST_ROWS, NAMES))),
    "the most rows of Parquet": lambda: (PARQUET, file(numbers([ROW] * MOST_ROWS, NAMES))),
    "a footer of lists of empty structs": lambda: (
        PARQUET,
        repeated(b"\x19\xfc\xff\xff\x07" + b"\0" * 60_000, head=b"PAR1", tail=FOOTER),
    ),
    "a footer of zeros": lambda: (PARQUET, b"PAR1" + bytes(LIMIT - 12) + FOOTER),
}
FRAMES: dict[str, Callable[[], bytes]] = {
    "a split frame": lambda: orjson.dumps({"dataframe_split": {"columns": NAMES, "data": [ROW] * MOST_ROWS}}),
    "a split frame, columns last": lambda: orjson.dumps(
        {"dataframe_split": {"index": [*range(MOST_ROWS)], "data": [ROW] * MOST_ROWS, "columns": NAMES[::-1]}}
    ),
    "rows as lists, one of them wrong": lambda: orjson.dumps({"instances": [*[ROW] * MOST_ROWS, ["x"]]}),
    "columns": lambda: orjson.dumps({"inputs": {name: [1.0] * MOST_ROWS for name in NAMES}}),
    "columns of texts": lambda: orjson.dumps({"inputs": {name: ["1.0"] * MOST_ROWS for name in NAMES}}),
    "columns of lists": lambda: orjson.dumps({"inputs": {name: [[1.0]] * MOST_ROWS for name in NAMES}}),
    "lists beside columns": lambda: repeated(b"[],", head=b'{"inputs":{"more":[', tail=b"[]]}}"),
    "numbers beside the frame": lambda: repeated(b"1,", head=b'{"params":[', tail=b'1],"instances":[[5.1,3.5,1.4,0.2]]}'),
    "a column that does not end": lambda: repeated(b"1,", head=b'{"inputs":{"sepal_length":['),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with replica(logistic_store(tmp_path_factory.mktemp("store")).root) as running:
        yield running


@pytest.mark.parametrize("accept", ["application/json", "text/csv", "application/x-ndjson", ARROW])
@pytest.mark.parametrize("shape", TABLES)
def test_no_table_holds_up_another_client(server: Replica, shape: str, accept: str) -> None:
    media_type, body = TABLES[shape]()
    check_delay(server, f"{shape} to {accept}", "/predict/batch", body, {"Content_Type": media_type, "Accept": accept})


@pytest.mark.parametrize("shape", FRAMES)
def test_no_table_of_mlflow_holds_up_another_client(server: Replica, shape: str) -> None:
    check_delay(server, shape, "/invocations", FRAMES[shape](), {})


def test_no_bomb_of_arrow_or_parquet_holds_up_another_client(server: Replica) -> None:
    for name, (form, body) in bombs(NAMES).items():
        check_delay(server, name, "/invocations", body, {"Content_Type": {"arrow": ARROW, "parquet": PARQUET}[form]})
