"""train and score: carry a table, run one RayJob and print its output; after a training, wait until replicas serve the model."""

from __future__ import annotations

import re
import shlex

from kuberay.ctl import data, manifests
from kuberay.ctl.deploy import require_operator
from kuberay.ctl.faults import Fault, pod_faults
from kuberay.ctl.kube import RAYSERVICE, SCORING_JOB, TRAINING_APP, TRAINING_JOB, Cluster, CommandError, Json, echo, field
from kuberay.ctl.readiness import wait_for_version
from kuberay.ctl.waiting import Progress, poll

TRAINING_TIMEOUT = 1900.0
SCORING_TIMEOUT = 21_700.0
SUBMITTER = "ray-job-submitter"
"""The container whose log holds the output of a job."""
_OWN_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+[A-Z]+ (cli|sdk|job_manager)\.py:\d+ -- ")
"""A line that Ray's command line wrote, not the job."""
_REPEATED = re.compile(r"^[^\n]*ERR cli\.py:\d+ -- .*", re.MULTILINE | re.DOTALL)
"""The output that Ray's command line repeats after a failed job."""


def train(cluster: Cluster, folder: str, flags: str, source: str = "") -> None:
    """Run the training job of `folder` with additional `flags`; returns when every replica serves the published model.

    `source` is a table on this machine, which is carried to the claim first, or a value of `--data`.
    """
    require_operator(cluster)
    if source:
        flags = f"--data {shlex.quote(data.carry(cluster, source))} {flags}"
    data.require_claim(cluster)
    documents = manifests.build(cluster, manifests.overlay(folder))
    for job in manifests.of_kind(documents, "RayJob"):
        job["spec"]["entrypoint"] = f"{job['spec']['entrypoint']} {flags}".strip()
    submit(cluster, documents)
    progress = Progress()
    output = follow(cluster, TRAINING_JOB, TRAINING_APP, TRAINING_TIMEOUT, progress)
    wait_for_served(cluster, output, progress)


def score(cluster: Cluster, folder: str, flags: str, source: str = "") -> None:
    """Run the scoring job of `folder`; `flags`, if any, replace those in its manifest.

    `source` is a table as for `train`. Without `--out`, the results go to a folder of /data/out with the name of the table.
    """
    require_operator(cluster)
    if source:
        out = "" if re.search(r"(^|\s)--out\b", flags) else f"--out /data/out/{data.result_name(source)} "
        flags = f"--data {shlex.quote(data.carry(cluster, source))} {out}{flags}".strip()
    data.require_claim(cluster)
    documents = manifests.build(cluster, manifests.overlay(folder))
    for job in manifests.of_kind(documents, "RayJob"):
        job["spec"]["entrypoint"] = with_flags(job["spec"]["entrypoint"], flags)
    submit(cluster, documents)
    follow(cluster, SCORING_JOB, SCORING_JOB, SCORING_TIMEOUT, Progress())


def with_flags(entrypoint: str, flags: str) -> str:
    """The command of an entrypoint with other flags; the unchanged entrypoint when `flags` is empty."""
    command, _, _ = entrypoint.partition(" --")
    return f"{command} {flags}" if flags else entrypoint


def served_version(output: str) -> str | None:
    """The version that the output reports as served; None when the training published no model."""
    match = re.search(r"^version (\d+) \(\w+\) is served", output, re.MULTILINE)
    return match.group(1) if match else None


def wait_for_served(cluster: Cluster, output: str, progress: Progress) -> None:
    """Wait until every replica serves the version that the output reports; return at once when it reports none."""
    version = served_version(output)
    if version and cluster.get("rayservice", RAYSERVICE) is not None:
        wait_for_version(cluster, version, progress)
        progress(f"every replica answers with version {version}")


def submit(cluster: Cluster, documents: list[Json]) -> None:
    """Create the RayJobs anew; objects that they need, such as a claim, are applied and never replaced."""
    jobs = manifests.of_kind(documents, "RayJob")
    others = [document for document in documents if document not in jobs]
    if others:
        cluster.run("apply", "-f", "-", text=manifests.dump(others))
    cluster.run("replace", "--force", "-f", "-", text=manifests.dump(jobs))


def follow(cluster: Cluster, name: str, app: str, timeout: float, progress: Progress) -> str:
    """Print the output of a RayJob while it runs, and return it; raises CommandError when the job fails or does not end in time."""
    job = JobOutput(cluster, name, app)
    return poll(job.check, timeout=timeout, failure=f"the RayJob {name} has not ended", faults=job.faults, progress=progress)


class JobOutput:
    """The status and the output of a RayJob whose pods have the label `app`."""

    def __init__(self, cluster: Cluster, name: str, app: str) -> None:
        self._cluster = cluster
        self._name = name
        self._app = app
        self._job: Json | None = None
        self._output = ""

    def check(self, progress: Progress) -> str | None:
        """Print the new output, and return all of it when the job has succeeded, else None; raises CommandError when it failed."""
        self._job = self._cluster.get("rayjob", self._name)
        deployment, status = field(self._job, "status.jobDeploymentStatus", ""), field(self._job, "status.jobStatus", "")
        if not self._output:
            progress(f"RayJob {deployment or 'created'} {status}".rstrip())
        self._print(job_log(self._cluster, self._job))
        # The submitter has ended by now, so the output is complete.
        if deployment == "Complete":
            return self._output
        # A job with the status FAILED may get another attempt; only the deployment's status tells.
        if deployment in ("Failed", "ValidationFailed"):
            raise CommandError(_failure(field(self._job, "status.reason", ""), field(self._job, "status.message", "")))
        return None

    def faults(self) -> list[Fault]:
        """The faults of the job's pods, or a fault when the job is gone."""
        if self._job is None:
            cause = "it disappeared before its end, or the cluster does not answer"
            return [Fault(f"RayJob {self._name}", cause, "check `kubectl get events`")]
        return pod_faults(self._cluster, f"app={self._app}")

    def _print(self, output: str) -> None:
        if output.startswith(self._output) and len(output) > len(self._output):
            echo(output[len(self._output) :].rstrip("\n"))
            self._output = output
        elif output and not output.startswith(self._output):
            echo("-- again, on a new cluster --")
            self._output = ""


def job_log(cluster: Cluster, rayjob: Json | None) -> str:
    """The output of a RayJob so far: the log of its submitter, in the Job of the same name."""
    name = field(rayjob, "metadata.name", "")
    owners = field(cluster.get("job", name), "metadata.ownerReferences", []) if name else []
    # The Job of an earlier RayJob with this name is deleted shortly after that RayJob.
    if not any(owner["uid"] == field(rayjob, "metadata.uid") for owner in owners):
        return ""
    return finished_lines(cluster.try_run("logs", f"job/{name}", "-c", SUBMITTER) or "")


def finished_lines(log: str) -> str:
    """The complete lines of the job as a terminal shows them: without earlier states of a progress bar, which rewrites its line
    after a carriage return, and without the lines of Ray's command line."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in _REPEATED.sub("", log).split("\n")[:-1]]
    return "".join(
        f"{line}\n" for line in lines if not _OWN_LINE.match(line) and not line.startswith("Running entrypoint for job ")
    )


def _failure(reason: str, message: str) -> str:
    """Print the end of the job's output except the last line, and return an error message with that line."""
    tail = [line for line in message.splitlines() if line.strip()][-15:]
    for line in tail[:-1]:
        echo(f"    {line}")
    return f"the job failed ({reason or 'no reason given'}): {tail[-1].removeprefix('error: ') if tail else 'no output'}"
