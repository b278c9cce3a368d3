"""More than one machine: replicas and a HAProxy on each, and a machine that dies while it serves, searches or scores.

A machine is a network namespace with a Ray node in it (`tests/support/machines.py`). The application is deployed with the config of
kuberay/base/rayservice.yaml.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml

from serve_app.artifacts.store import Store
from tests.support.experiment import RATE, checked, constant_load, wait_for_responses
from tests.support.figures import note
from tests.support.machines import GCS, Machine, alive_nodes, deploy, machines, start_ray
from tests.support.models import A_FLOWER, iris, logistic, publish_iris
from tests.support.processes import kill
from tests.support.server import KEY, ROOT, Server
from tests.support.waiting import until

CPUS = (0, 3, 3)
"""The head runs no replicas, as on a cluster; two CPUs of each worker are free for a search or a scoring."""
REPLICA = "ray::ServeReplica:iris-api"
ROWS = 60_000

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    publish_iris(store, logistic(), onnx=True)
    return store


@pytest.fixture(scope="module")
def cluster(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """A head and two workers, with the application on both."""
    with machines(tmp_path_factory.mktemp("machines"), CPUS, MODEL_DIR=str(store.root), API_KEY=KEY) as cluster:
        deploy(cluster[0], two_replicas())
        until(lambda: serve(cluster), seconds=300, every=0.5, what="two replicas behind each HAProxy")
        yield cluster


def two_replicas() -> str:
    """The shipped config, without scaling: a busy machine would get a third replica."""
    service = yaml.safe_load((ROOT / "kuberay" / "base" / "rayservice.yaml").read_text())
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    config["applications"][0]["deployments"][0]["autoscaling_config"]["max_replicas"] = 2
    return yaml.safe_dump(config)


@pytest.fixture(autouse=True)
def whole(cluster: Sequence[Machine]) -> None:
    """Before each test every machine runs, with one replica on each worker.

    A machine that a test killed is started again, as a new one would be. Serve moves no replica to it, so one of two is killed.
    """
    for number, machine in enumerate(cluster):
        if not machine.started:
            start_ray(machine, cluster[0], CPUS[number])
    wait_for_nodes(cluster)
    until(lambda: spread(cluster) and serve(cluster), seconds=300, every=0.5, what="a replica on each worker")


def wait_for_nodes(cluster: Sequence[Machine]) -> None:
    """Wait until Ray knows of exactly these machines; it takes a killed one for alive for 15 s and gives it work."""
    addresses = sorted(machine.address for machine in cluster)
    until(lambda: alive_nodes(cluster[0]) == addresses, seconds=120, every=1, what="the end of the killed nodes")


def spread(cluster: Sequence[Machine]) -> bool:
    """Whether each worker has one replica; a second one is killed."""
    replicas = [machine.running(REPLICA) for machine in cluster]
    for pids in replicas:
        for pid in pids[1:]:
            kill(pid)
    return [len(pids) for pids in replicas] == [0, 1, 1]


def serve(cluster: Sequence[Machine]) -> bool:
    """Whether both replicas run and the HAProxy of each machine answers with a model."""
    if sum(len(machine.running(REPLICA)) for machine in cluster) != 2:
        return False
    try:
        return {httpx2.get(f"{machine.url}/readyz", timeout=5).status_code for machine in cluster} == {200}
    except httpx2.HTTPError:
        return False


def server(machine: Machine) -> Server:
    return Server(machine.url, machine.started[0], machine.folder / "ray.log")


def test_each_machine_has_a_replica_and_its_haproxy_reaches_both(cluster: Sequence[Machine]) -> None:
    assert all(machine.haproxies() for machine in cluster)
    for machine in cluster:
        with httpx2.Client(headers={"X-API-Key": KEY}) as client:
            assert client.post(f"{machine.url}/predict", json=A_FLOWER).json()["prediction"] == "setosa"
    workers = [machine.address for machine in cluster[1:]]
    local = "127.0.0.1"  # a replica of the same machine
    expected = sorted(map(sorted, ([local, workers[1]], [local, workers[0]], workers)))
    until(lambda: servers(cluster) == expected, seconds=60, what=f"{expected} in the configs of HAProxy")


def servers(cluster: Sequence[Machine]) -> list[list[str]]:
    """Addresses of the replicas in each HAProxy's config."""
    configs = [file.read_text() for machine in cluster for file in machine.haproxy.glob("*/haproxy.cfg")]
    found = (set(re.findall(r"^ *server \S+ (\S+):\d+ check(?!.* backup$)", config, re.MULTILINE)) for config in configs)
    return sorted(map(sorted, found))


@pytest.mark.parametrize("fault", ["kill", "unplug"])
def test_a_machine_that_dies_is_replaced_on_the_other_and_costs_few_requests_after_one_retry(
    cluster: Sequence[Machine], store: Store, tmp_path: Path, fault: str
) -> None:
    """`kill` ends all its processes, and connections are reset; `unplug` takes its network away, and nothing is said to anyone."""
    _, survivor, victim = cluster
    with constant_load(server(survivor), store, tmp_path, KEY) as load:
        started = time.monotonic()
        getattr(victim, fault)()
        until(lambda: len(survivor.running(REPLICA)) == 2, seconds=180, what="both replicas on the other machine")
        replaced = time.monotonic() - started
        wait_for_responses(load, RATE * 3)
    report = checked(load, store, f"{fault} of a machine with one of two replicas, another after {replaced:.1f} s")
    assert report.failed_after_retry == 0
    victim.kill()
    victim.plug()


def test_a_machine_that_dies_in_a_search_changes_nothing_but_the_duration(cluster: Sequence[Machine], tmp_path: Path) -> None:
    head, survivor, victim = cluster
    table = tmp_path / "table.csv"
    flowers(table, 3_000)
    arguments = [sys.executable, "-m", "training", "--data", str(table), "--target", "species", "--search", "6", "--no-tracking"]
    arguments += ["--estimator", "random-forest"]
    quiet = head.run(*arguments, RAY_ADDRESS=f"{head.address}:{GCS}", MODEL_DIR=str(tmp_path / "quiet"))
    assert quiet.returncode == 0, quiet.stdout + quiet.stderr
    started = time.monotonic()
    process = head.start("search", *arguments, RAY_ADDRESS=f"{head.address}:{GCS}", MODEL_DIR=str(tmp_path / "models"))
    until(lambda: victim.running("ray::_cv_score") and survivor.running("ray::_cv_score"), seconds=120, what="tasks on both")
    victim.kill()
    assert process.wait(300) == 0, (head.folder / "search.log").read_text()
    assert search_of(tmp_path / "models") == search_of(tmp_path / "quiet")
    note(f"a machine lost during a search of 6 candidates: the same scores, after {time.monotonic() - started:.1f} s")


def search_of(store: Path) -> Any:
    bundle = Store(store).current()
    assert bundle is not None
    return bundle.manifest.search


def flowers(path: Path, rows: int) -> None:
    """A table of iris flowers, each a bit off."""
    X, species = iris()
    chosen = np.random.default_rng(0).integers(0, len(X), rows)
    values = np.round(X[chosen] + np.random.default_rng(1).normal(0, 0.05, (rows, 4)), 3).clip(0.1, 7)
    lines = [",".join((*map(str, row), name)) for row, name in zip(values.tolist(), species[chosen], strict=True)]
    path.write_text("\n".join((",".join((*A_FLOWER, "species")), *lines)))


def test_a_machine_that_dies_in_a_scoring_costs_the_parts_under_way(
    cluster: Sequence[Machine], store: Store, tmp_path: Path
) -> None:
    """The replicas leave two CPUs on each worker, and one of all four when a machine has gone."""
    head, survivor, victim = cluster
    table = tmp_path / "table.csv"
    flowers(table, ROWS)
    score = [
        sys.executable,
        "-m",
        "training",
        "score",
        "--data",
        str(table),
        "--part-bytes",
        "32768",
        "--model-dir",
        str(store.root),
    ]
    ray = {"RAY_ADDRESS": f"{head.address}:{GCS}"}
    quiet, out = tmp_path / "quiet", tmp_path / "out"
    result = head.run(*score, "--workers", "2", "--out", str(quiet), timeout=300, **ray)
    assert result.returncode == 0, result.stdout + result.stderr
    process = head.start("score", *score, "--workers", "2", "--out", str(out), **ray)
    until(lambda: len(parts(out)) > 2, seconds=120, every=0.005, what="the first parts")
    victim.kill()
    code = process.wait(300)
    done = len(parts(out))
    wait_for_nodes([head, survivor])
    result = head.run(*score, "--workers", "1", "--out", str(out), timeout=300, **ray)
    assert result.returncode == 0, result.stdout + result.stderr
    assert parts(out) == parts(quiet)
    note(f"a machine lost in a scoring of {len(parts(quiet))} parts: ended with {code} after {done}, the same command did the rest")


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("part-*")}
