"""Connections that are read on after their response are bounded in number."""

from __future__ import annotations

import asyncio
from typing import Any

from serve_app.http.body import Body, BodyBudget
from serve_app.http.lingering import LINGER_CONNECTIONS, Lingering
from tests.support.waiting import eventually


async def test_one_connection_too_many_is_closed_at_once() -> None:
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
    await end(LINGER_CONNECTIONS)
    assert ended == [LINGER_CONNECTIONS]
    released.set()
    await asyncio.gather(*tasks)
    assert (len(ended), lingering.connections) == (LINGER_CONNECTIONS + 1, 0)
