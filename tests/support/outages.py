"""A deployed system under load: what is taken away from it, when it is whole again, and what each answer must be.

A client keeps its connections open, gives up after twenty seconds, and tries once more.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.support import cluster
from tests.support.checker import Report, check_history
from tests.support.cluster import NODE_PORT, ROW, kubectl, ready, ready_pods, request
from tests.support.figures import note
from tests.support.load import Load, open_loop
from tests.support.waiting import until

RATE = 30
WORKERS = "app=iris-api,component=worker"
HEAD = "app=iris-api,component=head"


@contextlib.contextmanager
def two_replicas() -> Iterator[None]:
    """Neither more nor fewer, however busy this machine is: what happens to them is the tests' doing."""
    text = cluster.get("rayservice", "iris-api")["spec"]["serveConfigV2"]
    config = yaml.safe_load(text)
    config["applications"][0]["deployments"][0]["autoscaling_config"] |= {"max_replicas": 2, "downscale_delay_s": 1}
    set_config(yaml.safe_dump(config))
    try:
        yield
    finally:
        set_config(text)


def set_config(text: str) -> None:
    kubectl("-n", "mlops", "patch", "rayservice", "iris-api", "--type=merge", "-p", json.dumps({"spec": {"serveConfigV2": text}}))


def is_whole() -> bool:
    status = cluster.get("rayservice", "iris-api")["status"]
    application = status.get("activeServiceStatus", {}).get("applicationStatuses", {}).get("iris-api", {})
    # There may be a third worker for a while, without a replica: it is not ready.
    return application.get("status") == "RUNNING" and ready(HEAD) == 1 and ready(WORKERS) == 2


def wait_until_whole() -> None:
    until(is_whole, seconds=300, every=1, what="a head and two workers that are ready")


@contextlib.contextmanager
def traffic(key: str, tmp_path: Path) -> Iterator[Load]:
    url, history = f"http://127.0.0.1:{NODE_PORT}", tmp_path / "history.jsonl"
    with open_loop(url, ROW, key=key, rate=RATE, timeout=20, history=history) as record:
        more(record, RATE)
        yield record
        more(record, RATE * 3)


def more(record: Load, count: float, *, within: float = 120) -> None:
    """Until so many more right answers have come."""
    before = record.answered
    until(lambda: record.answered >= before + count, seconds=within, every=0.1, what="right answers")


def judged(record: Load, key: str, what: str) -> Report:
    """The report; every answer must be the one that the model gives when nothing is wrong."""
    right = request("/predict", key=key, row=ROW)
    assert json.loads(right.body)["prediction"] == "setosa"
    assert right.version is not None
    report = check_history(record.history, {right.version: right.body.decode()}, [(0.0, right.version)], minimum=RATE * 3)
    note(f"{what}: {report}")
    assert report.violations == ()
    return report


def a_worker() -> str:
    """One that answers."""
    return min(ready_pods(WORKERS))


def replaced(name: str) -> bool:
    """Whether the pod is gone and everything is whole without it."""
    return cluster.get("pod", name) == {} and is_whole()
