"""HAProxy of a pod and the head of the Ray cluster are lost under load. Each answer is compared with what the model must answer."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.support.cluster import ROW, kubectl, ready_pods, request
from tests.support.figures import note
from tests.support.outages import HEAD, WORKERS, a_worker, is_whole, judged, more, replaced, traffic
from tests.support.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900), pytest.mark.usefixtures("whole")]


SIGNAL = """
import os, pathlib, sys
def haproxies():
    return {int(entry.name) for entry in pathlib.Path('/proc').iterdir()
            if entry.name.isdigit() and (entry / 'cmdline').read_bytes().split(b'\\0')[0].endswith(b'haproxy')}
if len(sys.argv) > 1:
    for pid in haproxies():
        os.kill(pid, int(sys.argv[1]))
print(sorted(haproxies()))
"""
"""Prints the ids of the HAProxies of a pod; with an argument each of them gets this signal first."""


def haproxies(pod: str, *arguments: str) -> list[int]:
    ids: list[int] = json.loads(kubectl("-n", "mlops", "exec", pod, "-c", "ray-worker", "--", "python", "-c", SIGNAL, *arguments))
    return ids


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_haproxy_that_is_killed_or_frozen_is_replaced_within_five_seconds(name: str, key: str, tmp_path: Path) -> None:
    pod = a_worker()
    before = haproxies(pod)
    assert len(before) == 1
    pods = ready_pods(WORKERS)
    with traffic(key, tmp_path) as record:
        haproxies(pod, str(int(signal.Signals[name])))
        more(record, 1)
        until(lambda: len(ids := haproxies(pod)) == 1 and ids != before, seconds=60, every=1, what="another HAProxy")
    report = judged(record, key, f"HAProxy of a worker got {name}")
    assert report.longest_silence < 5
    assert report.failed_after_retry == 0
    assert ready_pods(WORKERS) == pods


def test_the_loss_of_the_head_costs_no_request_and_no_worker(key: str, tmp_path: Path) -> None:
    (head,) = ready_pods(HEAD)
    workers = ready_pods(WORKERS)
    with traffic(key, tmp_path) as record:
        started = time.monotonic()
        kubectl("-n", "mlops", "delete", "pod", head, "--grace-period=0", "--force", "--wait=false")
        until(lambda: replaced(head), seconds=420, every=1, what="a new head with two workers")
        healed = time.monotonic() - started
    report = judged(record, key, f"head killed, a new one with the same workers after {healed:.0f} s")
    assert report.failed_after_retry == 0
    assert ready_pods(WORKERS) == workers


def test_a_new_head_replaces_a_lost_replica(key: str, tmp_path: Path) -> None:
    """The state is not only kept, it is used: the new head knows what should run."""
    (head,) = ready_pods(HEAD)
    with traffic(key, tmp_path) as record:
        kubectl("-n", "mlops", "delete", "pod", head, "--grace-period=0", "--force", "--wait=false")
        until(lambda: replaced(head), seconds=420, every=1, what="a new head with two workers")
        victim = a_worker()
        kubectl("-n", "mlops", "delete", "pod", victim, "--wait=false")
        until(lambda: replaced(victim), seconds=240, every=1, what="another worker")
    assert judged(record, key, "head killed, then a worker deleted").failed_after_retry == 0


def test_the_loss_of_all_pods_heals_by_itself(key: str) -> None:
    started = time.monotonic()
    kubectl("-n", "mlops", "delete", "pods", "-l", "app=iris-api", "--grace-period=0", "--force", "--wait=false")
    until(lambda: not answers(key), seconds=30, what="the end of the answers")
    until(lambda: answers(key), seconds=420, every=0.5, what="an answer")
    note(f"all pods killed at once: the first answer after {time.monotonic() - started:.0f} s")


def answers(key: str) -> bool:
    try:
        return request("/predict", key=key, row=ROW, timeout=3).status == 200
    except OSError:
        return False


def test_a_head_whose_state_is_destroyed_begins_with_an_empty_one(key: str) -> None:
    (head,) = ready_pods(HEAD)
    program = (
        "import os, pathlib; [path.write_bytes(b'x') for path in pathlib.Path(os.environ['RAY_gcs_storage_path']).rglob('*') "
        "if path.name.startswith(('MANIFEST', 'CURRENT'))]"
    )
    kubectl("-n", "mlops", "exec", head, "-c", "ray-head", "--", "python", "-c", program)
    started = time.monotonic()
    kubectl("-n", "mlops", "delete", "pod", head, "--grace-period=0", "--force", "--wait=false")
    until(lambda: replaced(head) and answers(key), seconds=840, every=2, what="a head with an empty state")
    assert is_whole()
    note(f"state of the head destroyed: whole again after {time.monotonic() - started:.0f} s")
