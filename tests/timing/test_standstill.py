"""No body, right or wrong, plain or compressed, holds up the requests of another client."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import orjson
import pytest

from tests.support.apps import DEFAULTS
from tests.support.figures import note
from tests.support.models import A_FLOWER, logistic_store
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
    statuses: set[int] = set()

    def attack() -> None:
        headers = {"Content_Encoding": "gzip"} if packed else {}
        statuses.add(server.ask(path, sent, **headers)[0])

    before = server.resident()
    started = time.perf_counter()
    delays = [longest_delay(server, attack)]
    while min(delays) >= SECONDS and len(delays) < ROUNDS:  # other processes of the machine delay a client too, but not each time
        delays.append(longest_delay(server, attack))
    seconds = (time.perf_counter() - started) / len(delays)
    grown = (server.resident() - before) / 1e6
    note(
        f"{path}, {shape}{', gzip' if packed else ''} ({len(sent) / 1e6:.1f} MB): {statuses}, delay {min(delays) * 1e3:.0f} ms,"
        f" answered after {seconds:.2f} s, memory {grown:+.0f} MB"
    )
    assert not any(status >= 500 for status in statuses)
    assert min(delays) < SECONDS
