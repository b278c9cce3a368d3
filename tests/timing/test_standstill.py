"""No body, right or wrong, plain or compressed, holds up the requests of another client."""

from __future__ import annotations

import gzip
import json
import math
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import orjson
import pytest

from tests.support.apps import DEFAULTS
from tests.support.figures import note
from tests.support.models import A_FLOWER, logistic_store
from tests.support.oip import INFER, LENGTH, binary, request, tensor
from tests.support.replica import Replica, post, replica

LIMIT = DEFAULTS.iris_max_body_bytes
MOST_ROWS = DEFAULTS.iris_max_rows
SECONDS = 0.05
"""The longest delay that a request may cause to those of another client."""
ROUNDS = 8
"""Each body is sent at most so many times; the shortest of the longest delays counts, because other processes disturb too."""
FLOWER = orjson.dumps(A_FLOWER)


def repeated(piece: bytes, *, head: bytes = b"", tail: bytes = b"") -> bytes:
    """`piece` again and again between `head` and `tail`, as large as a body may be."""
    return head + piece * ((LIMIT - len(head) - len(tail)) // len(piece)) + tail


def rows(row: bytes, count: int = MOST_ROWS) -> bytes:
    """A batch of equal rows, cut to what a body may be."""
    count = min(count, (LIMIT - 20) // (len(row) + 1))
    return b'{"instances":[' + b",".join([row] * count) + b"]}"


def padded(count: int) -> bytes:
    """A batch of right rows in a body of the largest size."""
    size = (LIMIT - 20) // count - len(FLOWER) - 12
    return rows(FLOWER[:-1] + b',"note":"' + b"x" * size + b'"}', count)


BODIES: dict[str, Callable[[], bytes]] = {
    "lists": lambda: repeated(b"[],", head=b'{"instances":[', tail=b"[]]}"),
    "lists beside the rows": lambda: repeated(b"[],", head=b'{"more":[', tail=b'[]],"instances":[' + FLOWER + b"]}"),
    "lists in a row": lambda: repeated(b"[],", head=b'{"instances":[{"more":[', tail=b"[]]," + FLOWER[1:] + b"]}"),
    "lists in each row": lambda: rows(b'{"more":[' + b"[]," * 5000 + b'[]],"sepal_length":"5"' + FLOWER[FLOWER.index(b",") :]),
    "empty rows": lambda: repeated(b"{},", head=b'{"instances":[', tail=b"{}]}"),
    "deep lists": lambda: b'{"instances":' + b"[" * (LIMIT // 2 - 10) + b"]" * (LIMIT // 2 - 10) + b"}",
    "deep objects": lambda: repeated(b'{"a":', head=b'{"instances":[', tail=b"1"),
    "a long string": lambda: b'{"instances":[{"sepal_length":"' + b"1" * (LIMIT - 40) + b'"}]}',
    "a long field name": lambda: b'{"' + b"a" * (LIMIT - 100) + b'":1,"instances":[' + FLOWER + b"]}",
    "escapes": lambda: repeated(b"\\u0041", head=b'{"instances":[{"sepal_length":"', tail=b'"}]}'),
    "a long number": lambda: b'{"instances":[{"sepal_length":' + b"1" * (LIMIT - 40) + b"}]}",
    "a long fraction": lambda: b'{"instances":[{"sepal_length":1.' + b"3" * (LIMIT - 42) + b"}]}",
    "unknown fields": lambda: b'{"instances":[{' + b",".join(b'"%x":1' % i for i in range(LIMIT // 12)) + b"," + FLOWER[1:] + b"]}",
    "unknown fields beside the rows": lambda: (
        b"{" + b",".join(b'"%x":1' % i for i in range(LIMIT // 12)) + b',"instances":[' + FLOWER + b"]}"
    ),
    "one field again and again": lambda: repeated(b'"sepal_length":"1",', head=b'{"instances":[{', tail=FLOWER[1:] + b"]}"),
    "rows again and again": lambda: repeated(b'"instances":[],', head=b"{", tail=b'"instances":[' + FLOWER + b"]}"),
    "white space": lambda: b" " * (LIMIT - 200) + rows(FLOWER, 1),
    "white space inside": lambda: repeated(b"} ", head=b'{"instances":[{', tail=b"]}"),
    "numbers": lambda: repeated(b"1,", head=b'{"instances":[', tail=b"1]}"),
    "no JSON": lambda: repeated(b'"', head=b"\xff"),
    "UTF-16": lambda: rows(FLOWER, 50_000).decode().encode("utf-16"),
    "the most rows": lambda: rows(FLOWER),
    "the most rows, indented": lambda: json.dumps({"instances": [A_FLOWER] * (MOST_ROWS // 2)}, indent=1).encode(),
    "numbers as text": lambda: rows(orjson.dumps({name: str(number) for name, number in A_FLOWER.items()})),
    "one number as text, last": lambda: rows(FLOWER)[:-3].replace(b"}", b"}") + b',"sepal_length":"5"}]}',
    "long rows": lambda: padded(1000),
    "a wrong field in each row": lambda: rows(FLOWER.replace(b"5.1", b"500")),
    "a wrong last row": lambda: rows(FLOWER)[:-2] + b",{}]}",
    "a row too many": lambda: rows(b'{"sepal_length":1,"sepal_width":1,"petal_length":1,"petal_width":1}', MOST_ROWS + 1),
}


Tensors = tuple[bytes, dict[str, str]]
TABLE = np.tile(list(A_FLOWER.values()), (MOST_ROWS, 1))
BINARY = {"parameters": {"binary_data_output": True}}
HEAD = b'{"inputs":[{"name":"x","shape":[%d,4],"datatype":"FP64","data":[' % MOST_ROWS


def columns(datatype: str, values: list[Any]) -> list[dict[str, Any]]:
    """One input for each feature, all with the same values."""
    return [tensor(values, name=name, datatype=datatype) for name in A_FLOWER]


def flat(value: bytes, tail: bytes = b"5") -> Tensors:
    """One tensor of the most rows; each of its numbers is `value`, and the last one `tail`."""
    return HEAD + (value + b",") * (4 * MOST_ROWS - 1) + tail + b"]}]}", {}


TENSORS: dict[str, Callable[[], Tensors]] = {
    "the most rows": lambda: (request(tensor(TABLE.tolist())), {}),
    "the most rows, flat": lambda: flat(b"5.1"),
    "the most rows in columns": lambda: (request(*columns("FP64", [5.1] * MOST_ROWS)), {}),
    "the most rows in bytes": lambda: binary(tensor(TABLE)),
    "the most rows in bytes, in and out": lambda: binary(tensor(TABLE), **BINARY),
    "the most rows, ranked": lambda: binary(
        tensor(TABLE), outputs=[{"name": "predict_proba", "parameters": {"classification": 3, "binary_data": True}}]
    ),
    "the most rows in columns of bytes": lambda: binary(*columns("FP32", [5.1] * MOST_ROWS), **BINARY),
    "numbers as text": lambda: (request(*columns("BYTES", ["5.1"] * MOST_ROWS)), {}),
    "numbers as text in one tensor": lambda: flat(b'"5.1"'),
    "numbers as text in bytes": lambda: binary(*columns("BYTES", ["5.1"] * MOST_ROWS)),
    "one number as text, last": lambda: flat(b"5.1", b'"5.1"'),
    "missing numbers": lambda: flat(b"null"),
    "NaN": lambda: flat(b"NaN"),
    "NaN in bytes": lambda: binary(tensor(TABLE * math.nan)),
    "numbers outside of their bounds": lambda: flat(b"500"),
    "a wrong last row": lambda: flat(b"5.1", b"500"),
    "long numbers": lambda: flat(b"5." + b"1" * 30),
    "long texts": lambda: (request(*columns("BYTES", ["5" * 4_000_000])), {}),
    "long texts in bytes": lambda: binary(*columns("BYTES", ["5" * 4_000_000])),
    "empty texts in bytes": lambda: binary(*columns("BYTES", [""] * MOST_ROWS)),
    "texts that are no UTF-8": lambda: binary(*columns("BYTES", [b"\xff"] * MOST_ROWS)),
    "a value too many": lambda: flat(b"5.1", b"5.1,5.1"),
    "lists": lambda: (repeated(b"[],", head=HEAD, tail=b"[]]}]}"), {}),
    "lists beside the values": lambda: (repeated(b"[],", head=b'{"more":[', tail=b"[]]," + request(tensor([[1]]))[1:]), {}),
    "deep lists": lambda: (repeated(b"[", head=HEAD), {}),
    "objects": lambda: (repeated(b'{"a":1},', head=HEAD, tail=b"1]}]}"), {}),
    "escapes": lambda: (repeated(b"\\u0041", head=HEAD + b'"', tail=b'"]}]}'), {}),
    "a text without end": lambda: (repeated(b"a", head=HEAD + b'"'), {}),
    "many inputs": lambda: (
        repeated(b'{"name":"x","shape":[1],"datatype":"FP64","data":[1]},', head=b'{"inputs":[', tail=b"1]}"),
        {},
    ),
    "a shape of many dimensions": lambda: (repeated(b"1,", head=b'{"inputs":[{"name":"x","shape":[', tail=b"1]}]}"), {}),
    "a shape of more rows than there are": lambda: (request(tensor([1], shape=[2**40, 4])), {}),
    "many outputs": lambda: (
        repeated(
            b'{"name":"predict"},', head=request(tensor(TABLE[:1].tolist()))[:-1] + b',"outputs":[', tail=b'{"name":"predict"}]}'
        ),
        {},
    ),
    "a long id": lambda: (repeated(b"a", head=b'{"id":"', tail=b'",' + request(tensor(TABLE[:1].tolist()))[1:]), {}),
    "white space": lambda: (repeated(b" ", tail=request(tensor(TABLE[:1].tolist()))), {}),
    "white space among the values": lambda: (repeated(b" ", head=HEAD, tail=b"1]}]}"), {}),
    "no JSON": lambda: (repeated(b'"', head=b"\xff"), {}),
    "a length of the JSON that is all": lambda: (repeated(b"1,", head=HEAD, tail=b"1]}]}"), {LENGTH: str(LIMIT)}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with replica(logistic_store(tmp_path_factory.mktemp("store")).root) as running:
        yield running


def longest_delay(server: Replica, attack: Callable[[], None]) -> float:
    """The longest time that a request for one row took while `attack` ran, in seconds."""
    attacker = threading.Thread(target=attack)
    longest = 0.0
    with closing(server.connect()) as connection:
        assert post(connection, "/predict", FLOWER)[0] == 200
        attacker.start()
        while attacker.is_alive():
            started = time.perf_counter()
            assert post(connection, "/predict", FLOWER)[0] == 200
            longest = max(longest, time.perf_counter() - started)
            time.sleep(0.0005)
    return longest


@pytest.mark.parametrize("path", ["/predict/batch", "/predict"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", BODIES)
def test_no_body_holds_up_another_client(server: Replica, shape: str, packed: bool, path: str) -> None:
    body = BODIES[shape]()
    assert len(body) <= LIMIT
    sent = gzip.compress(body, 6) if packed else body
    check_delay(server, f"{shape}{', gzip' if packed else ''}", path, sent, {"Content_Encoding": "gzip"} if packed else {})


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("shape", TENSORS)
def test_no_tensors_hold_up_another_client(server: Replica, shape: str, packed: bool) -> None:
    body, headers = TENSORS[shape]()
    assert len(body) <= LIMIT
    sent = zlib.compress(body, 6) if packed else body
    if packed:
        headers = {**headers, "Content_Encoding": "deflate"}
    check_delay(server, f"{shape}{', deflate' if packed else ''}", INFER, sent, headers)


def check_delay(server: Replica, name: str, path: str, sent: bytes, headers: dict[str, str]) -> None:
    """A body holds up no request of another client, and gets no server error."""
    statuses: set[int] = set()

    def attack() -> None:
        statuses.add(server.ask(path, sent, **headers)[0])

    before = server.resident()
    started = time.perf_counter()
    delays = [longest_delay(server, attack)]
    while min(delays) >= SECONDS and len(delays) < ROUNDS:  # other processes of the machine delay a client too, but not each time
        delays.append(longest_delay(server, attack))
    seconds = (time.perf_counter() - started) / len(delays)
    grown = (server.resident() - before) / 1e6
    note(
        f"{path}, {name} ({len(sent) / 1e6:.1f} MB): {statuses}, delay {min(delays) * 1e3:.0f} ms,"
        f" answered after {seconds:.2f} s, memory {grown:+.0f} MB"
    )
    assert not any(status >= 500 for status in statuses)
    assert min(delays) < SECONDS
