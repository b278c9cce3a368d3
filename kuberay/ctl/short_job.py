"""Runs a Job of one pod: starts it anew, shows its output while it runs, and returns its exit code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from kuberay.ctl import manifests
from kuberay.ctl.faults import Fault, pod_faults
from kuberay.ctl.kube import Cluster, CommandError, Json, container_statuses, field
from kuberay.ctl.waiting import Progress, poll

TIMED_OUT = -1
"""The exit code when the pod is gone, because Kubernetes deletes the pod of a Job that exceeds its deadline."""


class Ended(NamedTuple):
    """The end of a Job: the exit code of its container, and the output."""

    code: int
    output: str


def run(
    cluster: Cluster,
    documents: list[Json],
    *,
    name: str,
    app: str,
    timeout: float,
    show: Callable[[str], None] = lambda _: None,
    waits_for_room: bool = False,
) -> Ended:
    """Start the Job `name`, replace an earlier one, and wait for the end; `app` is the label of its pod.

    `show` is called repeatedly with the output so far. With `waits_for_room`, the pod may wait for a node with room.

    Raises CommandError when the pod cannot start, and when the Job has not ended after `timeout` seconds. Both delete the Job, so
    that it does nothing after its failure was reported.
    """
    cluster.run("delete", "job", name, "--ignore-not-found", "--wait", "--cascade=foreground")
    cluster.run("apply", "-f", "-", text=manifests.dump(documents))
    output = ""

    def log() -> str:
        nonlocal output
        # A pod that does not exist yet or any more has no log; the earlier output stays.
        output = cluster.try_run("logs", f"job/{name}") or output
        show(output)
        return output

    def ended(progress: Progress) -> Json | None:
        status: Json = field(cluster.get("job", name), "status", {})
        log()
        return status if status.get("succeeded") or status.get("failed") else None

    def faults() -> list[Fault]:
        found = pod_faults(cluster, f"app={app}")
        return found if waits_for_room else [replace(fault, final=True) for fault in found]

    try:
        status = poll(ended, timeout=timeout, failure=f"the Job {name} has not ended", interval=0.5, faults=faults)
    except CommandError:
        cluster.try_run("delete", "job", name, "--wait=false")
        raise
    code = 0 if status.get("succeeded") else exit_code(cluster, app)
    return Ended(code, log())


def exit_code(cluster: Cluster, app: str) -> int:
    """The exit code of the pod with the label `app`; TIMED_OUT when no such pod has ended."""
    codes = [field(status, "state.terminated.exitCode") for pod in cluster.pods(f"app={app}") for status in container_statuses(pod)]
    return next((int(code) for code in codes if code is not None), TIMED_OUT)
