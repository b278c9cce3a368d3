"""Lines of JSON that are answered while further lines arrive."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serve_app.artifacts.store import Store
from serve_app.http.rate_window import Rate
from tests.support.apps import KEY, client_of, rate_limits
from tests.support.asgi import Reply, ask
from tests.support.models import A_FLOWER, forest, logistic_store, publish_iris
from tests.support.waiting import eventually

FLOWER = json.dumps(A_FLOWER).encode() + b"\n"
LINES = (b"accept", b"application/x-ndjson")
HEADERS = ((b"x-api-key", KEY.encode()), (b"content-type", b"application/x-ndjson"), LINES, (b"transfer-encoding", b"chunked"))
BATCH = "/predict/batch"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return logistic_store(tmp_path_factory.mktemp("store"))


class Conversation:
    """A client that sends a piece of its body when it likes, and sees what has been answered by then."""

    def __init__(self, app: Any, path: str = BATCH, headers: Any = HEADERS) -> None:
        self._sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.messages: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "query_string": b"", "http_version": "1.1"}
        self.task = asyncio.create_task(app({**scope, "headers": list(headers)}, self._sent.get, self._take))

    def say(self, piece: bytes, *, more: bool = True) -> None:
        self._sent.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    def has_said_all(self) -> bool:
        """Whether the server has taken everything."""
        return self._sent.empty()

    def leave(self) -> None:
        self._sent.put_nowait({"type": "http.disconnect"})

    async def lines(self, count: int) -> list[dict[str, Any]]:
        """The lines of the response, once there are so many."""
        async with asyncio.timeout(30):
            while len(found := self.body().splitlines()) < count:
                self._changed.clear()
                await self._changed.wait()
        return [json.loads(line) for line in found]

    def body(self) -> bytes:
        return b"".join(bytes(message.get("body", b"")) for message in self.messages)

    async def _take(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.messages.append(message)
        self._changed.set()


def holds_nothing(app: Any) -> bool:
    return (app.state.gateway._budget.bytes, app.state.collector.in_flight) == (0, 0)


async def whole(app: Any, *pieces: bytes, path: str = BATCH, headers: Any = HEADERS, leaves: bool = False) -> Reply:
    return await ask(app, "POST", path, headers, pieces, leaves=leaves)


@pytest.mark.parametrize("path", [BATCH, "/invocations"])
async def test_a_row_is_answered_before_the_next_one_is_sent(store: Store, path: str) -> None:
    app: Any = client_of(store).app
    client = Conversation(app, path)
    for count in range(1, 4):
        client.say(FLOWER[:10])
        client.say(FLOWER[10:])
        assert (await client.lines(count))[-1]["prediction"] == "setosa"
        assert len(client.body().splitlines()) == count
    client.say(b"", more=False)
    await client.task
    start = client.messages[0]
    assert start["status"] == 200
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/x-ndjson"
    assert headers[b"x-model-version"] == b"1"
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"x-request-id"]
    assert b"content-length" not in headers
    assert not client.messages[-1].get("more_body")
    assert holds_nothing(app)


async def test_any_cut_into_pieces_gives_the_same_answer(store: Store) -> None:
    app: Any = client_of(store).app
    body = FLOWER * 40
    expected = await whole(app, body)
    assert (expected.status, expected.body.count(b"\n"), expected.starts, expected.ends) == (200, 40, 1, 1)
    for size in (1, 7, len(FLOWER), 1000):
        reply = await whole(app, *(body[at : at + size] for at in range(0, len(body), size)))
        assert (reply.status, reply.body, reply.ends) == (200, expected.body, 1)
    assert holds_nothing(app)


async def test_all_rows_are_answered_by_one_model_while_it_is_replaced(tmp_path_factory: pytest.TempPathFactory) -> None:
    store = logistic_store(tmp_path_factory.mktemp("store"))
    client = client_of(store)
    talk = Conversation(client.app)
    talk.say(FLOWER)
    first = (await talk.lines(1))[0]
    publish_iris(store, forest(), onnx=True)
    client.app_state["slot"].refresh()
    assert client.app_state["slot"].predictor.version == "2"
    talk.say(FLOWER, more=False)
    await talk.task
    assert await talk.lines(2) == [first, first]


@pytest.mark.parametrize(
    ("piece", "status", "code"),
    [
        (b"{", 400, "malformed"),
        (b"", 422, "invalid_input"),
        (b'{"sepal_length":1}\n', 422, "invalid_input"),
        (b" " * 70_000, 413, "row_too_large"),
        (FLOWER * 9, 413, "too_many_rows"),
    ],
)
async def test_a_problem_of_the_first_piece_is_a_response_of_its_own(store: Store, piece: bytes, status: int, code: str) -> None:
    app: Any = client_of(store, max_rows=8).app
    reply = await whole(app, piece)
    assert (reply.status, json.loads(reply.body)["code"]) == (status, code)
    assert reply.header(b"content-type") == b"application/problem+json"
    assert (reply.starts, reply.ends) == (1, 1)
    assert holds_nothing(app)


@pytest.mark.parametrize(
    ("piece", "code"),
    [
        (b"{\n", "malformed"),
        (b'{"sepal_length":1}\n', "invalid_input"),
        (b" " * 70_000, "row_too_large"),
        (FLOWER * 8, "too_many_rows"),
        (b"\n" * 200_000, "body_too_large"),
    ],
)
async def test_a_later_problem_is_the_last_line(store: Store, piece: bytes, code: str) -> None:
    client = client_of(store, max_rows=8, max_body_bytes=150_000)
    reply = await whole(client.app, FLOWER, piece, FLOWER)
    first, last = reply.body.splitlines()
    assert (reply.status, json.loads(first)["prediction"]) == (200, "setosa")
    assert json.loads(last)["error"]["code"] == code
    assert (reply.starts, reply.ends) == (1, 1)
    assert holds_nothing(client.app)
    assert f'api_errors_total{{endpoint="{BATCH}",error_type="{code}"}} 1.0' in client.get("/metrics").text


async def test_a_wrong_row_is_named_by_its_number_in_the_whole_body(store: Store) -> None:
    reply = await whole(client_of(store).app, FLOWER * 3, FLOWER + b'{"sepal_length":-1}\n')
    error = json.loads(reply.body.splitlines()[-1])["error"]
    assert error["errors"][0]["field"] == "instances[4].sepal_length"


async def test_the_last_line_of_mlflow_has_its_error(store: Store) -> None:
    reply = await whole(client_of(store).app, FLOWER, b"{\n", path="/invocations")
    assert json.loads(reply.body.splitlines()[-1])["error"]["error_code"] == "BAD_REQUEST"


async def test_a_client_that_sends_all_before_it_reads_is_answered(store: Store) -> None:
    app: Any = client_of(store).app
    client = Conversation(app)
    client.reads.clear()
    for _ in range(20):
        client.say(FLOWER * 500)
    client.say(b"", more=False)
    await eventually(client.has_said_all, what="a server that goes on reading although nobody reads its answers")
    assert app.state.gateway._budget.bytes > 100_000
    client.reads.set()
    await client.task
    assert len(await client.lines(10_000)) == 10_000
    assert holds_nothing(app)


async def test_answers_that_nobody_reads_are_within_the_budget_of_bodies(store: Store) -> None:
    app: Any = client_of(store, max_body_bytes=120_000).app
    clients = [Conversation(app) for _ in range(8)]
    for client in clients:
        client.reads.clear()
        client.say(FLOWER * 1000, more=False)
    for client in clients:
        await eventually(client.has_said_all)
    assert app.state.gateway._budget.bytes <= app.state.gateway._budget.limit + 200_000
    for client in clients:
        client.reads.set()
    await asyncio.gather(*(client.task for client in clients))
    ends = [json.loads(client.body().splitlines()[-1]) for client in clients]
    assert {(end.get("error") or end).get("code", "answered") for end in ends} <= {"answered", "too_busy"}
    assert holds_nothing(app)


async def test_memory_does_not_grow_with_the_body(store: Store) -> None:
    app: Any = client_of(store, max_body_bytes=64_000_000).app
    client = Conversation(app)
    most = 0
    for _ in range(60):
        client.say(FLOWER * 500)
        async with asyncio.timeout(30):
            while not client.has_said_all():
                await asyncio.sleep(0)
                most = max(most, app.state.gateway._budget.bytes)
    client.say(b"", more=False)
    await client.task
    assert len(await client.lines(30_000)) == 30_000
    assert most < 500_000


async def test_a_client_that_leaves_is_let_go(store: Store) -> None:
    client = client_of(store)
    for pieces in ((), (FLOWER,), (FLOWER[:5],)):
        reply = await whole(client.app, *(pieces or (b"",)), leaves=True)
        assert reply.status in (200, 499)
        assert holds_nothing(client.app)
    talk = Conversation(client.app)
    talk.say(FLOWER)
    await talk.lines(1)
    talk.task.cancel()
    await asyncio.gather(talk.task, return_exceptions=True)
    assert holds_nothing(client.app)


async def test_a_stream_asks_for_the_key_and_is_within_limits(store: Store) -> None:
    assert (await whole(client_of(store).app, FLOWER, headers=HEADERS[1:])).status == 401
    assert (await whole(client_of(store, max_in_flight=0).app, FLOWER)).status == 429
    limited = client_of(store, rate_limits=rate_limits(per_key=Rate(1, 3600.0))).app
    assert [(await whole(limited, FLOWER)).status for _ in range(2)] == [200, 429]


async def test_a_body_that_is_too_slow_ends_with_that_problem(store: Store) -> None:
    client = Conversation(client_of(store, max_body_seconds=0.2).app)
    client.say(FLOWER)
    assert (await client.lines(2))[1]["error"]["code"] == "body_too_slow"
    client.leave()
    await client.task
