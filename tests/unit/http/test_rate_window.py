"""Limits on rate: never more than the limit, hardly less, over any number of replicas."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.http import rate_window as limits
from serve_app.http.rate_window import Grant, Rate, RateLimitClient, RateLimitWindow, parse_rate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def counter_of(windows: RateLimitWindow) -> Callable[[str, Rate], Awaitable[Grant]]:
    async def take(name: str, rate: Rate) -> Grant:
        await asyncio.sleep(0)  # as a call to an actor would
        return windows.take(name, rate)

    return take


@pytest.mark.parametrize(
    ("text", "rate"), [("600/minute", Rate(600, 60)), (" 5/second ", Rate(5, 1)), ("100000/hour", Rate(100000, 3600))]
)
def test_a_rate_is_read(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "600", "0/minute", "-1/minute", "6/day", "6/minutes", "six/minute", "1e3/minute"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="600/minute"):
        parse_rate(text)


@pytest.mark.parametrize("step", [3600, -3600])
async def test_a_step_of_the_clock_opens_no_window_and_closes_none(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = Rate(3, 1800)
    alone, shared = RateLimitClient(), RateLimitClient(counter_of(RateLimitWindow()))
    for limiter in (alone, shared):
        assert [await limiter.wait_of("a", rate) for _ in range(3)] == [0, 0, 0]
    now = time.time() + step
    monkeypatch.setattr(time, "time", lambda: now)
    for limiter in (alone, shared):
        assert 0 < await limiter.wait_of("a", rate) <= rate.seconds
        assert [await limiter.wait_of("b", rate) for _ in range(3)] == [0, 0, 0]


async def test_one_replica_admits_the_limit_and_then_says_how_long_to_wait() -> None:
    clock = Clock()
    limiter = RateLimitClient(clock=clock)
    rate = Rate(3, 60)
    assert [await limiter.wait_of("a", rate) for _ in range(3)] == [0, 0, 0]
    clock.now += 20
    assert await limiter.wait_of("a", rate) == 40
    assert await limiter.wait_of("b", rate) == 0
    clock.now += 40
    assert [await limiter.wait_of("a", rate) for _ in range(4)] == [0, 0, 0, 60]


@pytest.mark.parametrize("replicas", [1, 2, 10])
@pytest.mark.parametrize("count", [10, 600, 20_000])
async def test_replicas_together_admit_the_limit_within_five_percent(replicas: int, count: int) -> None:
    clock = Clock()
    windows = RateLimitWindow(clock)
    calls = 0

    async def counter(name: str, rate: Rate) -> Grant:
        nonlocal calls
        calls += 1
        return await counter_of(windows)(name, rate)

    limiters = [RateLimitClient(counter, clock=clock) for _ in range(replicas)]
    rate = Rate(count, 60)
    for _ in range(3):
        waits = [await limiters[number % replicas].wait_of("alice", rate) for number in range(count * 2)]
        admitted = waits.count(0)
        assert 0.95 * count <= admitted <= count
        assert all(0 < wait <= 60 for wait in waits if wait)
        clock.now += 60
    assert calls < 3 * (1000 + replicas)  # most requests do not wait for the counter


async def test_requests_that_come_at_once_ask_the_counter_once_for_a_share() -> None:
    windows = RateLimitWindow()
    limiters = [RateLimitClient(counter_of(windows)) for _ in range(3)]
    rate = Rate(300, 60)
    waits = await asyncio.gather(*(limiters[number % 3].wait_of("alice", rate) for number in range(1000)))
    assert 285 <= waits.count(0) <= 300


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 30)), max_size=200))
def test_no_window_ever_gives_out_more_than_the_limit(steps: list[tuple[int, float]]) -> None:
    clock = Clock()
    windows = RateLimitWindow(clock)
    given_out: dict[float, int] = {}
    for share, pause in steps:
        clock.now += pause
        tokens, left = windows.take("alice", Rate(7, 60), share=share + 1)
        end = round(clock.now + left, 6)
        given_out[end] = given_out.get(end, 0) + tokens
        assert 0 < left <= 60
        assert given_out[end] <= 7


@pytest.mark.parametrize("failure", ["dead", "hanging"])
async def test_without_the_counter_each_replica_counts_for_itself_and_asks_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    monkeypatch.setattr(limits, "COUNTER_SECONDS", 0.01)
    clock = Clock()
    windows = RateLimitWindow(clock)
    broken = True

    async def counter(name: str, rate: Rate) -> Grant:
        if broken and failure == "dead":
            raise ConnectionError
        if broken:
            await asyncio.Event().wait()
        return windows.take(name, rate)

    limiter = RateLimitClient(counter, clock=clock)
    rate = Rate(5, 60)
    with caplog.at_level(logging.WARNING, "iris_api.limits"):
        waits = [await limiter.wait_of("alice", rate) for _ in range(8)]
    assert waits.count(0) == 5
    assert len(caplog.records) == 1
    broken = False
    clock.now += 60
    assert [await limiter.wait_of("alice", rate) for _ in range(6)].count(0) == 5
    assert windows.take("alice", rate) == (0, 60)


def test_names_that_nobody_uses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_NAMES", 100)
    windows = RateLimitWindow()
    rate = Rate(1, 60)
    for number in range(1000):
        assert windows.take(str(number), rate)[0] == 1
    assert len(windows._used) <= 100
    assert windows.take("999", rate)[0] == 0
