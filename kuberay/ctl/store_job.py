"""models, promote, rollback: a short Job beside the store reads it or moves its pointer; the replicas follow the pointer."""

from __future__ import annotations

from kuberay.ctl import manifests, short_job
from kuberay.ctl.kube import KUBERAY, RAYSERVICE, Cluster, CommandError, echo
from kuberay.ctl.readiness import wait_for_version
from kuberay.ctl.train import served_version
from kuberay.ctl.waiting import Progress

JOB = "iris-store"
MANIFEST = KUBERAY / "train" / "store-job.yaml"
TIMEOUT = 300.0


def store_command(cluster: Cluster, *arguments: str) -> None:
    """Run list, promote VERSION or rollback; when the pointer moved, wait until every replica serves that version."""
    output = run(cluster, *arguments)
    echo(output.rstrip())
    version = served_version(output)
    if version and cluster.get("rayservice", RAYSERVICE) is not None:
        progress = Progress()
        wait_for_version(cluster, version, progress)
        echo(f"every replica answers with version {version} ({progress.seconds:.1f} s later)")


def run(cluster: Cluster, *arguments: str) -> str:
    """Run `python -m training` with `arguments` beside the store and return the output; raises CommandError with its error."""
    if cluster.get("persistentvolumeclaim", "models-pvc") is None:
        raise CommandError(
            "no volume holds a store here: in the gcs overlay, move the alias in MLflow (docs/how-to/variants.md, bucket)"
        )
    documents = manifests.build(cluster, MANIFEST)
    for job in manifests.of_kind(documents, "Job"):
        for container in job["spec"]["template"]["spec"]["containers"]:
            container["args"] = list(arguments)
    ended = short_job.run(cluster, documents, name=JOB, app=JOB, timeout=TIMEOUT)
    cluster.try_run("delete", "job", JOB, "--wait=false")
    if ended.code:
        lines = [line for line in ended.output.splitlines() if line.strip()]
        raise CommandError(lines[-1].removeprefix("error: ") if lines else f"the Job {JOB} failed without output")
    return ended.output
