"""Calls over gRPC with generated broken messages, messages that grow in memory, and clients that do not finish."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grpc
import pytest

from serve_app.artifacts.store import Store
from tests.support.apps import KEY
from tests.support.calls import INFERENCE, infer, served
from tests.support.message_bombs import BOMBS
from tests.support.models import A_FLOWER, logistic_store
from tests.support.oip import tensor
from tests.support.server import ROOT
from tests.support.waiting import eventually

MESSAGES = int(os.environ.get("IRIS_TEST_MESSAGES", "3000"))
FLOWER = list(A_FLOWER.values())
INFER = f"/{INFERENCE}/ModelInfer"
MOST_MEGABYTES = 40
"""A message of 16 MB is copied once, and its values once more."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


def broken(message: bytes, dice: random.Random) -> bytes:
    """The message with bits turned, pieces cut out, doubled or put in."""
    content = bytearray(message)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at, size = dice.randrange(len(content) + 1), dice.choice((1, 2, 8, 40))
        match dice.randrange(4):
            case 0 if at < len(content):
                content[at] ^= 1 << dice.randrange(8)
            case 1:
                del content[at : at + size]
            case 2:
                content[at:at] = content[at : at + size]
            case _:
                content[at:at] = dice.randbytes(size)
    return bytes(content)


async def test_broken_messages_are_answered_or_refused_and_never_fail(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    dice = random.Random(17)
    rows = tensor([FLOWER] * 2)
    messages = [
        infer(rows, raw=raw, outputs=[{"name": "predict_proba", "parameters": {"classification": 2}}]).SerializeToString()
        for raw in (False, True)
    ]
    columns = [tensor([value] * 2, name=name) for name, value in A_FLOWER.items()]
    messages += [infer(*columns, raw=raw, id="r7").SerializeToString() for raw in (False, True)]
    async with served(store, log_every=0) as server:
        codes: Counter[str] = Counter()
        for _ in range(MESSAGES // 50):
            batch = [broken(dice.choice(messages), dice) for _ in range(50)]
            replies = await asyncio.gather(*[server.client.call("ModelInfer", message) for message in batch])
            codes.update(reply.code for reply in replies)
            assert all("x-request-id" in reply.metadata for reply in replies)
        assert set(codes) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}, codes
        assert codes["INVALID_ARGUMENT"] > MESSAGES / 10
        assert not [record for record in caplog.records if record.exc_info]
        assert server.app.state.collector.in_flight == 0
        assert (await server.client.call("ModelInfer", messages[0])).code == "OK"


@pytest.mark.parametrize("name", BOMBS)
def test_a_message_takes_little_more_memory_than_its_size(name: str) -> None:
    command = [sys.executable, "-m", "tests.support.message_bombs", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    megabytes, error = done.stdout.split()
    print(f"{name}: {megabytes} MB, {error}")
    assert int(megabytes) <= MOST_MEGABYTES
    assert error in ("TooLarge", "InvalidInput")


async def test_a_compressed_message_is_bounded_by_its_size_in_memory(store: Store) -> None:
    async with (
        served(store, max_body_bytes=1024 * 1024) as server,
        grpc.aio.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel,
    ):
        small = infer(tensor([FLOWER] * 1000), raw=True).SerializeToString()
        assert await channel.unary_unary(INFER)(small, metadata=[("x-api-key", KEY)])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(INFER)(bytes(50 * 1024 * 1024), metadata=[("x-api-key", KEY)])
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_clients_that_leave_in_the_middle_leave_nothing(store: Store, tmp_path: Path) -> None:
    dice = random.Random(5)
    row = infer(tensor([FLOWER] * 500), raw=True).SerializeToString()
    async with served(store) as server:
        for _ in range(10):
            calls = [server.client.channel.stream_unary(INFER)(metadata=[("x-api-key", KEY)]) for _ in range(30)]
            for call in calls:
                if dice.random() < 0.5:
                    await call.write(row)
            await asyncio.sleep(dice.random() / 50)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await eventually(lambda: server.app.state.collector.in_flight == 0)
        budget = server.app.state.gateway._budget
        await eventually(lambda: budget.bytes == 0)
        assert (await server.client.call("ModelInfer", row)).code == "OK"
