"""Connections that are read on after their response are bounded in number."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_app.http.body import LINGER_SECONDS, PROXIED_BODIES, Body, BodyBudget, BodyTimeout
from serve_app.http.lingering import FLUSH_SECONDS, LINGER_CONNECTIONS, Lingering
from tests.support.waiting import eventually


async def test_one_connection_too_many_is_closed_as_soon_as_its_response_can_be_read() -> None:
    released = asyncio.Event()
    ended: list[int] = []

    async def receive() -> dict[str, Any]:
        await released.wait()
        return {"type": "http.disconnect"}

    async def end(number: int) -> None:
        async def send(message: Any) -> None:
            assert message == {"type": "http.response.body"}
            ended.append(number)

        await lingering.end(Body(receive, limit=100, seconds=10, budget=BodyBudget(100)), send)

    lingering = Lingering()
    tasks = [asyncio.create_task(end(number)) for number in range(LINGER_CONNECTIONS)]
    await eventually(lambda: lingering.connections == LINGER_CONNECTIONS, what="all connections")
    started = asyncio.get_running_loop().time()
    await end(LINGER_CONNECTIONS)
    assert FLUSH_SECONDS <= asyncio.get_running_loop().time() - started < LINGER_SECONDS
    assert ended == [LINGER_CONNECTIONS]
    released.set()
    await asyncio.gather(*tasks)
    assert (len(ended), lingering.connections) == (LINGER_CONNECTIONS + 1, 0)


PROXIED = ((b"content-length", b"5000000"), (b"x-forwarded-for", b"198.51.100.7"))


def arriving(pieces: int) -> tuple[Any, list[int]]:
    """A body of some large pieces, and the numbers of those that were read."""
    taken: list[int] = []

    async def receive() -> dict[str, Any]:
        taken.append(len(taken))
        return {"type": "http.request", "body": b" " * 100_000, "more_body": len(taken) < pieces}

    return receive, taken


async def test_a_large_body_that_comes_through_a_proxy_is_read_to_its_end_before_the_response() -> None:
    for headers, read in ((PROXIED, 50), (PROXIED[:1], 0), ((*PROXIED, (b"expect", b"100-continue")), 0)):
        receive, taken = arriving(50)
        must_close = await Body(receive, limit=100, seconds=10, budget=BodyBudget(100)).drain(headers)
        assert (len(taken), must_close) == (read, read == 0)


async def test_so_many_large_bodies_of_proxies_are_read_at_once_and_no_more() -> None:
    budget, released = BodyBudget(100), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await released.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    def drain() -> Any:
        return Body(receive, limit=100, seconds=10, budget=budget).drain(PROXIED)

    tasks = [asyncio.create_task(drain()) for _ in range(PROXIED_BODIES)]
    await eventually(lambda: budget.discarding == PROXIED_BODIES, what="all bodies")
    assert await drain() is True
    released.set()
    assert await asyncio.gather(*tasks) == [False] * PROXIED_BODIES
    assert budget.discarding == 0


async def test_a_body_that_came_too_late_is_not_waited_for_once_more() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    body = Body(receive, limit=100, seconds=0.05, budget=BodyBudget(100))
    with pytest.raises(BodyTimeout):
        await body.read()
    async with asyncio.timeout(1):
        assert await body.drain(PROXIED) is True
