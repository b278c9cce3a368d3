"""Hostile requests of the Open Inference Protocol get one error of the protocol that repeats no value, and leave nothing behind."""

from __future__ import annotations

import json
import os
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.apps import DEFAULTS
from tests.support.figures import note
from tests.support.models import A_FLOWER, logistic_store
from tests.support.oip import INFER, LENGTH, NUMPY, binary, request, tensor
from tests.support.replica import Replica, replica

REQUESTS = int(os.environ.get("IRIS_TEST_REQUESTS", "4000"))
LIMIT = DEFAULTS.iris_max_body_bytes
GROWTH = 60_000_000
"""Bytes by which the memory of a replica may have grown afterwards: what its allocator keeps of the largest requests."""
SECRET = "a-value-of-the-client"
FLOWER = list(A_FLOWER.values())
DATATYPES = [*NUMPY, "INT8", "INT16", "UINT16", "UINT32", "UINT64", "BYTES", "BF16", "fp32", "", SECRET, 7, None]
NUMBERS = [0, 1, -1, 2, 3, 4, 5, 100, 2**31, 2**40, 2**62, 2**63, 2**64, 10**30, -(2**63), 1.5, "4", SECRET, None, True, [4]]
VALUES = [*FLOWER, 0, -1, 500, 1e308, 10**400, True, None, "5.1", SECRET, "", [], [1], {}, {"a": SECRET}, "\ud800", "NaN"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with replica(logistic_store(tmp_path_factory.mktemp("store")).root) as running:
        yield running


def some_tensor(dice: random.Random) -> dict[str, Any]:
    """An input of which a few things are wrong."""
    rows = dice.choice((1, 1, 2, 50))
    document: dict[str, Any] = dice.choice(
        (
            lambda: tensor([FLOWER] * rows, name=dice.choice(("x", SECRET, *A_FLOWER))),
            lambda: tensor(FLOWER * rows, shape=[rows, 4]),
            lambda: tensor([5.1] * rows, name=dice.choice(list(A_FLOWER)), shape=dice.choice(([rows], [rows, 1]))),
            lambda: tensor(["5.1"] * rows, name=dice.choice(list(A_FLOWER)), datatype="BYTES"),
        )
    )()
    if dice.random() < 0.3:
        document["shape"] = dice.choice(
            (
                [],
                [1],
                [4],
                [1, 4, 1],
                [0, 4],
                [2**40, 4],
                [2**62, 2**62],
                [dice.choice(NUMBERS) for _ in range(dice.choice((1, 2, 9)))],
            )
        )
    if dice.random() < 0.2:
        document["datatype"] = dice.choice(DATATYPES)
    if dice.random() < 0.3:
        document["data"] = [dice.choice(VALUES) for _ in range(dice.choice((0, 1, 4, 200)))]
    if dice.random() < 0.05:
        document["data"] = dice.choice(VALUES)
    if dice.random() < 0.1:
        document["parameters"] = dice.choice(({"binary_data_size": dice.choice(NUMBERS)}, [], SECRET, {"a": {"b": SECRET}}, None))
    if dice.random() < 0.1:
        document.pop(dice.choice(list(document)))
    return document


def some_request(dice: random.Random) -> dict[str, Any]:
    """The members of a request beside its inputs."""
    members: dict[str, Any] = {}
    if dice.random() < 0.1:
        members["id"] = dice.choice(("r7", "", 7, None, SECRET * 100, []))
    if dice.random() < 0.1:
        members["outputs"] = dice.choice(
            (None, [], [{"name": "predict"}] * dice.choice((1, 2, 5000)), [{"name": SECRET}], SECRET, [{"name": 7}], [None])
        )
    if dice.random() < 0.2:
        members["parameters"] = {"binary_data_output": dice.choice((True, False, None, SECRET, 1))}
    if dice.random() < 0.1:
        members["outputs"] = [{"name": "predict_proba", "parameters": {"classification": dice.choice(NUMBERS)}}]
    return members


def in_json(dice: random.Random) -> tuple[bytes, dict[str, str]]:
    inputs = [some_tensor(dice) for _ in range(dice.choice((1, 1, 4, 5)))]
    if dice.random() < 0.3:
        inputs = [tensor([5.1], name=name) for name in A_FLOWER] + inputs[: dice.randrange(2)]
    body = request(*inputs, **some_request(dice))
    if dice.random() < 0.1:
        body = body[: dice.randrange(len(body))]
    if dice.random() < 0.1:
        changed = bytearray(body)
        changed[dice.randrange(len(body))] = dice.randrange(256)
        body = bytes(changed)
    return body, {LENGTH: str(dice.choice(NUMBERS))} if dice.random() < 0.05 else {}


def in_bytes(dice: random.Random) -> tuple[bytes, dict[str, str]]:
    """Values behind the JSON: cut off, too long, with lengths of texts that do not add up, or as they should be."""
    rows = dice.choice((1, 3, 1000))
    if dice.random() < 0.5:
        body, headers = binary(
            tensor(np.tile(FLOWER, (rows, 1)), datatype=dice.choice(("FP16", "FP32", "FP64"))), **some_request(dice)
        )
    else:
        texts = [dice.choice((b"5.1", b"", b"\xff\xfe", SECRET.encode(), b"1" * 5000)) for _ in range(rows)]
        body, headers = binary(*(tensor(texts, name=name, datatype="BYTES", shape=[rows]) for name in A_FLOWER))
    length = int(headers[LENGTH])
    tail = bytearray(body[length:])
    kind = dice.randrange(6)
    if kind == 0:
        del tail[dice.randrange(len(tail)) :]
    elif kind == 1:
        tail += dice.randbytes(dice.choice((1, 4, 1000)))
    elif kind in (2, 3):
        at = dice.randrange(len(tail))
        tail[at : at + 4] = dice.choice((b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\xff\x7f", dice.randbytes(4)))
    elif kind == 4:
        headers = {LENGTH: str(dice.choice((length - 1, length + 1, len(body), len(body) + 1, *NUMBERS)))}
    return body[:length] + bytes(tail), headers


def bomb(dice: random.Random) -> tuple[bytes, dict[str, str]]:
    """A large body of nearly nothing but one thing."""
    size = dice.choice((1000, 60_000, 130_000, 1_000_000, LIMIT - 300))
    head = b'{"inputs":[{"name":"x","shape":[%d,4],"datatype":"%b","data":[' % (dice.choice((1, 25_000, 100_000)), b"FP64")
    head = dice.choice((head, head, b'{"more":[', b'{"inputs":[', b'{"id":"', b"[", b'{"inputs":[{"shape":['))
    pieces = (
        b"[],",
        b"[",
        b"1,",
        b"null,",
        b"NaN,",
        b'"1",',
        b'{"a":1},',
        b"9",
        b"\\u0041",
        b'"',
        b"]",
        b" ",
        b"\xc3",
        b"\0",
        b"[1],",
    )
    piece = dice.choice(pieces)
    tail = dice.choice((b"", b"1]}]}", b'"]}]}', b"]" * 100))
    return head + piece * (size // len(piece)) + tail, {}


KINDS: tuple[Callable[[random.Random], tuple[bytes, dict[str, str]]], ...] = (*[in_json] * 12, *[in_bytes] * 8, bomb)


def test_thousands_of_hostile_tensors_get_one_error_of_the_protocol_and_leave_nothing_behind(server: Replica) -> None:
    dice = random.Random(2026)
    statuses: Counter[int] = Counter()
    for _ in range(40):  # the allocator has seen the largest ones
        server.ask(INFER, bomb(dice)[0])
    before = peak = server.resident()
    for number in range(REQUESTS):
        body, headers = dice.choice(KINDS)(dice)
        if dice.random() < 0.1:
            body, headers = zlib.compress(body, 1), {**headers, "Content_Encoding": "deflate"}
        status, answer = server.ask(INFER, body, **headers)
        statuses[status] += 1
        if status != 200:
            error = json.loads(answer)
            assert isinstance(error["error"], str), body[:200]
            assert error["error"]
            assert SECRET.encode() not in answer, body[:200]
        if number % 50 == 0:
            peak = max(peak, server.resident())
    grown = server.resident() - before
    note(
        f"hostile tensors: {statuses.total()}, answered with {dict(sorted(statuses.items()))}; "
        f"memory {grown / 1e6:+.0f} MB, at most {(peak - before) / 1e6:+.0f} MB"
    )
    assert set(statuses) == {200, 400, 413}
    assert statuses[400] > REQUESTS // 3
    assert grown < GROWTH
    assert server.ask(INFER, request(tensor([FLOWER])))[0] == 200
