"""More load than there is capacity, and load for longer: two replicas behind HAProxy, no limits on rate."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.artifacts.store import Store
from tests.support import processes
from tests.support.checker import check_history, quantile
from tests.support.experiment import expected_bodies, served
from tests.support.figures import note
from tests.support.load import Attempt, closed_loop, matches, open_loop
from tests.support.models import A_FLOWER, logistic, publish_iris, slow_model
from tests.support.server import KEY, Server, serving
from tests.support.soak import CONNECTIONS, soak
from tests.support.waiting import until

SECONDS = float(os.environ.get("IRIS_TEST_OVERLOAD_SECONDS", "10"))
REQUESTS = 30_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("models"), keep=100)
    publish_iris(store, logistic(), onnx=True)
    return store


@pytest.fixture(scope="module")
def server(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(store.root, tmp_path_factory.mktemp("server"), replicas=2) as server:
        until(lambda: len(processes.replicas(server.process.pid)) == 2, seconds=150, what="two replicas")
        until(lambda: "iris-api: ready after" in server.output.read_text(), seconds=150, what="the end of the start")
        yield server


def test_requests_beyond_the_capacity_are_refused_at_once_and_the_others_answered(
    server: Server, store: Store, tmp_path: Path
) -> None:
    """The model costs time and no work, so that capacity is known and the machine has enough left to make the load."""
    version = str(publish_iris(store, slow_model()).version)
    until(lambda: server.versions() == {version}, seconds=60, what="the slow model")
    maximum = capacity(server, expected_bodies(served(store)))
    for factor in (2, 5):
        over = sent(server, tmp_path / f"{factor}.jsonl", rate=factor * maximum, seconds=SECONDS)
        after = sent(server, tmp_path / "after.jsonl", rate=maximum / 2, seconds=3)
        report = check_history(over, expected_bodies(served(store)), [(0.0, version)], minimum=100)
        assert report.violations == ()
        refused = sorted(attempt.end - attempt.sent for attempt in over if attempt.status in (429, 503))
        good = goodput(over)
        start = min(attempt.sent for attempt in after)
        recovery = max((attempt.end - start for attempt in after if attempt.status != 200), default=0.0)
        note(
            f"{factor} x the {maximum:.0f} requests a second of two replicas: {good / maximum:.0%} of that answered right, "
            f"{len(refused)} of {report.requests} refused, p50, p90, p99 of a refusal "
            f"{', '.join(f'{quantile(refused, share) * 1000:.1f}' for share in (0.5, 0.9, 0.99))} ms, "
            f"p99 of an answer {report.p99:.2f} s, failed {report.failed_first}, all well again after {recovery:.1f} s"
        )
        assert all(attempt.retry_after for attempt in over if attempt.status in (429, 503))
        assert report.failed_first == 0
        assert len(refused) > report.requests * (factor - 1) / factor / 2
        assert good >= 0.8 * maximum
        assert quantile(refused, 0.9) < 0.1  # and nearly all of the rest, where nothing else takes the processor away
        assert recovery <= 10


def sent(server: Server, history: Path, *, rate: float, seconds: float) -> list[Attempt]:
    """The history of so many requests a second, whatever becomes of them."""
    with open_loop(server.url, A_FLOWER, key=KEY, rate=rate, timeout=20, history=history) as load:
        until(lambda: load.finished >= rate * seconds, seconds=seconds * 5, what=f"{rate:.0f} requests a second")
    return load.history


def capacity(server: Server, expected: dict[str, str]) -> float:
    """Right responses a second when there is always a request that waits."""
    with closed_loop(server.url, A_FLOWER, key=KEY, clients=24, check=matches(expected)) as load:
        until(lambda: load.answered > 100, seconds=60, what="a warm start")
        started, before = time.monotonic(), load.answered
        until(lambda: time.monotonic() > started + SECONDS / 2, seconds=SECONDS, what="the end of the measurement")
        rate = (load.answered - before) / (time.monotonic() - started)
    assert (load.failures, load.reconnects) == ([], 0)
    return rate


def goodput(history: list[Attempt]) -> float:
    """Right responses a second, from the second second to the last request's start."""
    start, stop = min(attempt.sent for attempt in history) + 1, max(attempt.sent for attempt in history)
    return sum(attempt.status == 200 and start < attempt.end <= stop for attempt in history) / (stop - start)


def test_thirty_thousand_requests_leave_nothing_behind(server: Server, store: Store) -> None:
    version = str(publish_iris(store, logistic(), onnx=True).version)
    until(lambda: server.versions() == {version}, seconds=60, what="the fast model")
    expected = expected_bodies(served(store))[version]
    record, grown = soak(server, version, expected, requests=REQUESTS, warm=REQUESTS // 3)
    assert record.load.failures == []
    assert record.load.reconnects <= 2 * CONNECTIONS
    assert record.load.answered == REQUESTS
    assert grown < 20e6  # so few requests say little of a slope; `make soak` says more
    assert record.spread("files", after=REQUESTS // 3) <= 2
    assert record.spread("threads", after=REQUESTS // 3) <= 0
