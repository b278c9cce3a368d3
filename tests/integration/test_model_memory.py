"""The memory of a replaced model comes back, also under load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from serve_app.artifacts.store import Store
from tests.support.figures import note
from tests.support.load import closed_loop, succeeds
from tests.support.models import A_FLOWER, bundle_files, bundle_manifest, iris, publish_iris
from tests.support.processes import replicas, resident
from tests.support.server import KEY, serving
from tests.support.waiting import until

SWAPS = 10
ROWS = 500_000
MEGABYTE = 1_000_000


def large(seed: int) -> KNeighborsClassifier:
    """A model that takes some forty megabytes: it keeps every row that it was fitted on, twice."""
    X, y = iris()
    chosen = np.random.default_rng(seed).integers(0, len(X), ROWS)
    noise = np.random.default_rng(seed + 1).normal(0, 0.05, (ROWS, X.shape[1]))
    return KNeighborsClassifier(3, algorithm="kd_tree").fit(X[chosen] + noise, y[chosen])


def publish_large(store: Store, seed: int) -> int:
    """Publish one; the size of its file in bytes."""
    entry = store.publish(bundle_files.__wrapped__(large(seed)), bundle_manifest())
    return (entry.folder / "model.joblib").stat().st_size


@pytest.mark.timeout(600)
def test_the_memory_of_ten_replaced_models_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "models", keep=2)
    publish_iris(store, onnx=True)
    with serving(store.root, tmp_path) as server, closed_loop(server.url, A_FLOWER, check=succeeds, key=KEY, clients=2) as load:
        (replica,) = replicas(server.process.pid)

        def swap(number: int) -> int:
            size = publish_large(store, number)
            until(lambda: server.versions() == {str(number)}, seconds=120, what=f"version {number}")
            answered = load.answered
            until(lambda: load.answered > answered + 20, seconds=60, what="more responses")
            return size

        size = swap(2)
        first = resident(replica)
        readings = []
        for number in range(3, 3 + SWAPS):
            swap(number)
            readings.append(resident(replica))
        allowed = first + size
        until(lambda: resident(replica) <= allowed, seconds=30, what=f"a replica of {allowed / MEGABYTE:.0f} MB at most")
        last = resident(replica)
        figures = ", ".join(f"{reading / MEGABYTE:.0f}" for reading in readings)
        note(
            f"a model of {size / MEGABYTE:.0f} MB replaced {SWAPS} times while {load.answered} requests were answered: "
            f"the replica had {first / MEGABYTE:.0f} MB with the first, then {figures}, at the end {last / MEGABYTE:.0f} MB"
        )
        assert load.failed == 0, json.dumps(load.failures[:5])
        assert size > 20 * MEGABYTE
        assert replicas(server.process.pid) == [replica]
