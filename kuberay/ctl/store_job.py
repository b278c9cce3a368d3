"""models, promote, rollback: a short Job beside the store moves its pointer; the replicas follow by themselves."""

from __future__ import annotations

import json
import re
import time

from kuberay.ctl import manifests
from kuberay.ctl.faults import pod_faults
from kuberay.ctl.kube import RAYSERVICE, Cluster, CommandError, field, say
from kuberay.ctl.train import wait_for_version
from kuberay.ctl.waiting import PATIENCE, Progress

JOB = "iris-store"
FILE = manifests.HERE / "train" / "store-job.yaml"


def command(cluster: Cluster, *arguments: str) -> None:
    output = run(cluster, *arguments)
    say(output.rstrip())
    found = re.search(r"^version (\d+) \(\w+\) is served from now on", output, re.MULTILINE)
    if found and cluster.get("rayservice", RAYSERVICE) is not None:
        progress = Progress()
        wait_for_version(cluster, found.group(1))
        say(f"every replica answers with version {found.group(1)} ({progress.seconds:.1f} s later)")


def run(cluster: Cluster, *arguments: str) -> str:
    """Run `python -m training ARGUMENTS` beside the store; returns its output, raises Stop with its error."""
    if cluster.get("persistentvolumeclaim", "models-pvc") is None:
        raise CommandError(
            "there is no store on a volume here; in the gcs overlay MLflow's alias decides (docs/operations.md, bucket)"
        )
    document = re.sub(r"^(\s*)args: .*$", rf"\1args: {json.dumps(list(arguments))}", FILE.read_text(), flags=re.MULTILINE)
    cluster.run("delete", "job", JOB, "--ignore-not-found", "--wait", "--cascade=foreground")
    cluster.run("apply", "-f", "-", text=manifests.place(cluster, document))
    progress = Progress()
    while True:
        status = field(cluster.get("job", JOB), "status", {})
        if status.get("succeeded") or status.get("failed"):
            break
        faults = pod_faults(cluster, f"app={JOB}")
        if faults and progress.seconds > PATIENCE:
            raise CommandError(str(faults[0]))
        if progress.seconds > 300:
            raise CommandError("the store does not answer: run `make k8s-doctor`")
        time.sleep(0.5)
    output = cluster.ask("logs", f"job/{JOB}") or ""
    cluster.ask("delete", "job", JOB, "--wait=false")
    if status.get("failed"):
        lines = [line for line in output.splitlines() if line.strip()]
        raise CommandError(lines[-1].removeprefix("error: ") if lines else "the store's Job failed without a word")
    return output
