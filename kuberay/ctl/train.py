"""train and score: one RayJob, its output as it runs, and the moment from which every replica answers with the new model."""

from __future__ import annotations

import json
import re
import time

from kuberay.ctl import manifests
from kuberay.ctl.deploy import require_operator
from kuberay.ctl.faults import pod_faults
from kuberay.ctl.kube import RAYJOB, RAYSERVICE, SCOREJOB, Cluster, CommandError, field, say
from kuberay.ctl.reach import api
from kuberay.ctl.waiting import PATIENCE, Progress

LIMIT = 1900.0
SCORE_LIMIT = 21_700.0
SAME = 20
"""Answers in a row, each on a connection of its own, before all replicas are taken to serve a version."""


def train(cluster: Cluster, folder: str, arguments: str) -> None:
    require_operator(cluster)
    documents = manifests.build(cluster, manifests.overlay(folder))
    cluster.run("replace", "--force", "-f", "-", text="---\n".join(started_by(one, "", arguments) for one in documents))
    progress = Progress()
    output = follow(cluster, progress)
    found = re.search(r"^version (\d+) \(\w+\) is served", output, re.MULTILINE)
    if found and cluster.get("rayservice", RAYSERVICE) is not None:
        wait_for_version(cluster, found.group(1))
        say(f"{progress.seconds:5.0f} s  every replica answers with version {found.group(1)}")


def score(cluster: Cluster, folder: str, arguments: str) -> None:
    """The same for a scoring; its volume is made when it is missing, and never replaced."""
    require_operator(cluster)
    documents = manifests.build(cluster, manifests.overlay(folder))
    jobs = [one for one in documents if manifests.kind(one) == "RayJob"]
    kept = [one for one in documents if one not in jobs]
    if kept:
        cluster.run("apply", "-f", "-", text="---\n".join(kept))
    if arguments:
        jobs = [started_by(one, "score", arguments) for one in jobs]
    cluster.run("replace", "--force", "-f", "-", text="---\n".join(jobs))
    follow(cluster, Progress(), SCOREJOB, limit=SCORE_LIMIT)


def started_by(document: str, command: str, arguments: str) -> str:
    """The RayJob with another command line."""
    entrypoint = f"entrypoint: {json.dumps(' '.join(f'python -m training {command} {arguments}'.split()))}"
    return re.sub(r"^(\s*)entrypoint: .*$", lambda found: found.group(1) + entrypoint, document, flags=re.MULTILINE)


def follow(cluster: Cluster, progress: Progress, name: str = RAYJOB, *, limit: float = LIMIT) -> str:
    """Print the job's output as it grows; returns it when the job succeeded."""
    shown = ""
    faulty_since: float | None = None
    missing_since: float | None = None
    while True:
        job = cluster.get("rayjob", name)
        missing_since = (missing_since or progress.seconds) if job is None else None
        if missing_since is not None and progress.seconds - missing_since > PATIENCE:
            raise CommandError(
                f"the RayJob {name} is gone before it ended, or the cluster does not answer: look at `kubectl get events`"
            )
        deployment, status = field(job, "status.jobDeploymentStatus", ""), field(job, "status.jobStatus", "")
        if not shown:
            progress(f"RayJob {deployment or 'created'} {status}".rstrip())
        output = driver_log(cluster, field(job, "status.rayClusterName", ""))
        if output.startswith(shown) and len(output) > len(shown):
            say(output[len(shown) :].rstrip("\n"))
            shown = output
        elif output and not output.startswith(shown):
            say("-- again, on a new cluster --")
            shown = ""
        if status == "SUCCEEDED":
            return shown
        if (status in ("FAILED", "STOPPED") and deployment == "Failed") or deployment in ("Failed", "ValidationFailed"):
            raise CommandError(_failure(field(job, "status.reason", ""), field(job, "status.message", "")))
        faults = [fault for fault in pod_faults(cluster, f"app={name}") if fault.final]
        faulty_since = (faulty_since or progress.seconds) if faults else None
        if faulty_since is not None and progress.seconds - faulty_since > PATIENCE:
            raise CommandError(str(faults[0]))
        if progress.seconds > limit:
            raise CommandError("the job does not end: run `make k8s-doctor`")
        time.sleep(1)


def driver_log(cluster: Cluster, ray_cluster: str) -> str:
    """What the job has printed so far on this RayCluster: it runs inside the head, so its output is a file there."""
    for pod in cluster.pods(f"ray.io/cluster={ray_cluster},ray.io/node-type=head") if ray_cluster else []:
        found = cluster.ask(
            "exec",
            pod["metadata"]["name"],
            "-c",
            "ray-head",
            "--",
            "sh",
            "-c",
            "cat /tmp/ray/session_latest/logs/job-driver-*.log 2>&1",
        )
        if found:
            return "".join(f"{line}\n" for line in found.splitlines() if " -- Runtime env is setting up" not in line)
    return ""


def wait_for_version(cluster: Cluster, version: str, limit: float = 90.0) -> None:
    """Until the API answers with `version` and nothing else; raises Stop when it does not."""
    progress = Progress()
    seen: set[str | None] = set()
    with api(cluster) as client:
        while progress.seconds < limit:
            seen = set()
            for _ in range(SAME):
                try:
                    seen.add(client.call("/model/info").version)
                except OSError as error:
                    seen.add(f"no answer ({error})")
            if seen == {version}:
                return
            time.sleep(0.5)
    raise CommandError(
        f"after {limit:.0f} s the API answers with version {sorted(map(str, seen))} instead of {version}: see `make k8s-test`"
    )


def _failure(reason: str, message: str) -> str:
    tail = [line for line in message.splitlines() if line.strip()][-15:]
    for line in tail[:-1]:
        say(f"    {line}")
    return f"the job failed ({reason or 'no reason given'}): {tail[-1].removeprefix('error: ') if tail else 'no output'}"
