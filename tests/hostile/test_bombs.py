"""Bodies that ask for much more than they weigh: gzip streams and JSON documents, generated, against one replica."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from tests.support.apps import DEFAULTS, KEY
from tests.support.figures import note
from tests.support.models import A_FLOWER, logistic_store
from tests.support.replica import Replica, replica
from tests.support.waiting import until

STREAMS = int(os.environ.get("IRIS_TEST_STREAMS", "1000"))
LIMIT = DEFAULTS.iris_max_body_bytes
FLOWER = orjson.dumps(A_FLOWER)
BATCH = b'{"instances":[' + b",".join([FLOWER] * 2000) + b"]}"
GROWTH = 60_000_000
"""Bytes by which the memory of a replica may have grown afterwards: what its allocator keeps of the largest requests."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with replica(logistic_store(tmp_path_factory.mktemp("store")).root) as running:
        yield running


def deflated(content: bytes, dice: random.Random) -> bytes:
    level, strategy = (
        dice.choice((0, 1, 6, 9)),
        dice.choice((zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_FIXED, zlib.Z_RLE)),
    )
    packer = zlib.compressobj(level, zlib.DEFLATED, 16 + zlib.MAX_WBITS, 8, strategy)
    cut = dice.randrange(len(content) + 1)
    flush = dice.choice((zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_PARTIAL_FLUSH, zlib.Z_BLOCK))
    return packer.compress(content[:cut]) + packer.flush(flush) + packer.compress(content[cut:]) + packer.flush()


def broken(stream: bytes, dice: random.Random) -> bytes:
    """Bytes of the stream changed: in its blocks, its head or its checksum."""
    content = bytearray(stream)
    for _ in range(dice.choice((1, 1, 2, 10))):
        content[dice.randrange(dice.choice((10, len(content))))] ^= 1 << dice.randrange(8)
    return bytes(content)


def stream(dice: random.Random) -> bytes:
    content: bytes = dice.choice((FLOWER, BATCH, b"", b" " * 100_000, dice.randbytes(1000)))
    empty = gzip.compress(b"")
    kinds: tuple[Callable[[], bytes], ...] = (
        *[lambda: broken(deflated(content, dice), dice)] * 8,
        lambda: deflated(content, dice)[: dice.randrange(200)],
        lambda: deflated(content, dice) + dice.choice((b"\0", b"more", empty, deflated(content, dice))),
        lambda: empty * dice.choice((2, 1000, LIMIT // len(empty))),
        lambda: gzip.compress(bytes(dice.choice((10_000, 1_000_000, LIMIT + 1, 3 * LIMIT))), 1),
        lambda: empty[:10] + b"\0\0\0\xff\xff" * dice.choice((10, LIMIT // 5 - 10)) + empty[10:],  # blocks of no bytes
        lambda: gzip.compress(gzip.compress(bytes(LIMIT))),
        lambda: b"\x1f\x8b\x08\x1f" + dice.randbytes(dice.choice((20, 100_000))),  # a head with all its optional fields
    )
    return dice.choice(kinds)()


def test_a_thousand_gzip_streams_get_no_server_error_and_leave_nothing_behind(server: Replica) -> None:
    dice = random.Random(2026)
    statuses: Counter[int] = Counter()
    streams = [stream(dice) for _ in range(40)]
    for content in streams:  # the allocator has seen the largest ones
        server.ask("/predict/batch", content, Content_Encoding="gzip")
    before = server.resident()
    for _ in range(STREAMS):
        path = dice.choice(("/predict", "/predict/batch"))
        statuses[server.ask(path, stream(dice), Content_Encoding="gzip")[0]] += 1
    grown = server.resident() - before
    note(f"gzip streams: {statuses.total()}, answered with {dict(sorted(statuses.items()))}; memory {grown / 1e6:+.0f} MB")
    assert set(statuses) <= {200, 400, 413, 422}
    assert statuses[400] > STREAMS // 4
    assert grown < GROWTH
    assert server.ask("/predict", FLOWER)[0] == 200


def bomb(dice: random.Random) -> bytes:
    """A JSON document of up to the largest size, of nearly nothing but one thing."""
    size = dice.choice((1000, 60_000, 130_000, 1_000_000, LIMIT - 200))
    head = dice.choice(
        (b"", b"[", b"{", b'{"instances":', b'{"instances":[', b'{"instances":[{"a":', b'{"a":[', FLOWER[:-1] + b',"a":[')
    )
    piece = dice.choice(
        (
            *(b"[],", b"{},", b"[", b'{"a":', b"1,", b"1", b"null,", b'"",', b'"a":1,', b'{"a":1},', b"\\u0041", b'"', b"\\", b" "),
            *(
                b'"instances":[],',
                FLOWER + b",",
                b"[" + FLOWER + b"],",
                b"-",
                b"1e9,",
                b"9",
                b'"sepal_length":"1",',
                b"\xc3",
                b"\0",
            ),
        )
    )
    tail = dice.choice((b"", b"]}", b"}", b"0]}", FLOWER + b"]}", b"]" * 100, b'"}'))
    return head + piece * (size // len(piece)) + tail


def test_json_bombs_get_no_server_error_and_leave_nothing_behind(server: Replica) -> None:
    dice = random.Random(7)
    statuses: Counter[int] = Counter()
    server.ask("/predict/batch", BATCH * 3)
    before = server.resident()
    peak = before
    for _ in range(STREAMS // 2):
        body, packed = bomb(dice), dice.random() < 0.3
        headers = {"Content_Encoding": "gzip"} if packed else {}
        path = dice.choice(("/predict", "/predict/batch", "/predict/batch"))
        statuses[server.ask(path, gzip.compress(body, 1) if packed else body, **headers)[0]] += 1
        peak = max(peak, server.resident())
    grown = server.resident() - before
    note(
        f"JSON bombs: {statuses.total()}, answered with {dict(sorted(statuses.items()))}; "
        f"memory {grown / 1e6:+.0f} MB, at most {(peak - before) / 1e6:+.0f} MB"
    )
    assert set(statuses) <= {200, 400, 413, 422}
    assert grown < GROWTH
    assert server.ask("/predict", FLOWER)[0] == 200


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "https://a.example"}, {"Content_Encoding": "gzip"}], ids=["plain", "origin", "gzip"]
)
def test_sixty_large_bodies_at_once_share_one_budget(server: Replica, headers: dict[str, str]) -> None:
    """All but the last byte of each body arrives, then the memory is looked at, then the rest arrives."""
    size = LIMIT - 1_000_000
    body = random.Random(1).randbytes(size) if "Content_Encoding" in headers else b'{"instances":["' + b"x" * size + b'"]}'
    before = server.resident()
    held = threading.Barrier(61)
    statuses: Counter[int] = Counter()

    def send() -> None:
        with contextlib.closing(server.connect()) as connection:
            connection.putrequest("POST", "/predict/batch")
            for name, value in {"X-API-Key": KEY, "Content-Length": str(len(body)), **headers}.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            with contextlib.suppress(OSError):  # a refused body is discarded for a while, then its connection is closed
                connection.send(memoryview(body)[:-1])
            held.wait(120)
            held.wait(120)
            with contextlib.suppress(OSError):
                connection.send(body[-1:])
            try:
                statuses[connection.getresponse().status] += 1
            except OSError:
                statuses[0] += 1  # the connection was closed before the response was read

    with ThreadPoolExecutor(60) as senders:
        for _ in range(60):
            senders.submit(send)
        held.wait(120)
        at_once = server.resident() - before
        held.wait(120)
    with contextlib.suppress(AssertionError):
        until(lambda: server.resident() - before < GROWTH, seconds=12, what="the release of the bodies")
    left = server.resident() - before
    memory = f"memory {at_once / 1e6:+.0f} MB, afterwards {left / 1e6:+.0f} MB"
    note(f"60 bodies of {size / 1e6:.0f} MB at once{', ' if headers else ''}{', '.join(headers)}: {dict(statuses)}, {memory}")
    assert statuses.total() == 60
    assert statuses[429] + statuses[0] >= 50
    assert statuses[429] > 0
    assert statuses[413] + statuses[400] > 0  # those within the budget are read: a row too long, no gzip
    assert not [status for status in statuses if status >= 500]
    assert at_once < 300_000_000
    assert left < GROWTH
    assert json.loads(server.ask("/predict", FLOWER)[1])["prediction"] == "setosa"
