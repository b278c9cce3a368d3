"""A million predictions: none wrong, and the processes are afterwards what they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serve_app.artifacts.store import Store
from tests.support import processes
from tests.support.experiment import expected_bodies, served
from tests.support.models import logistic, publish_iris
from tests.support.server import serving
from tests.support.soak import CONNECTIONS, soak
from tests.support.waiting import until

REQUESTS = int(os.environ.get("IRIS_TEST_SOAK", "1000000"))
WARM = REQUESTS // 10


@pytest.mark.timeout(3600)
def test_a_million_requests_leave_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    publish_iris(store, logistic(), onnx=True)
    ((version, expected),) = expected_bodies(served(store)).items()
    with serving(store.root, tmp_path, replicas=2) as server:
        until(lambda: "iris-api: ready after" in server.output.read_text(), seconds=150, what="the end of the start")
        until(lambda: len(processes.replicas(server.process.pid)) == 2, seconds=60, what="two replicas")
        record, grown = soak(server, version, expected, requests=REQUESTS, warm=WARM)
        assert record.load.failures == []
        assert record.load.reconnects <= 2 * CONNECTIONS
        assert record.load.answered == REQUESTS
        assert grown < 1e6
        assert record.spread("files", after=WARM) <= 2
        assert record.spread("threads", after=WARM) <= 0
