"""The state of the training schedule and of its last runs."""

from __future__ import annotations

from collections.abc import Iterator

from kuberay.ctl.kube import SCHEDULE, Cluster, Json, conditions, field


def describe(cluster: Cluster) -> Iterator[str]:
    """The schedule, the last run, the last success and the reason of the last failure; no lines without a schedule."""
    cronjob = cluster.get("cronjob", SCHEDULE)
    if cronjob is None:
        return
    suspended = ", suspended" if field(cronjob, "spec.suspend") else ""
    zone = field(cronjob, "spec.timeZone", "the time zone of the cluster")
    yield f"schedule: {field(cronjob, 'spec.schedule')} ({zone}){suspended}"
    jobs = [job for job in cluster.items("jobs") if is_owned(job, cronjob)]
    rayjobs = {owner["name"]: job for job in cluster.items("rayjobs") for owner in field(job, "metadata.ownerReferences", [])}
    last = max(jobs, key=started, default=None)
    yield f"  last run: {'none yet' if last is None else f'{started(last)}, {outcome(last)}'}"
    success = field(cronjob, "status.lastSuccessfulTime")
    by_hand = [str(field(job, "status.completionTime", "")) for job in jobs if outcome(job) == "succeeded"]
    yield f"  last success: {max([*([success] if success else []), *by_hand], default='none yet')}"
    failed = max((job for job in jobs if outcome(job) == "failed"), key=started, default=None)
    if failed is not None:
        yield f"  last failure: {started(failed)}: {reason(failed, rayjobs.get(failed['metadata']['name']))}"


def is_owned(job: Json, cronjob: Json) -> bool:
    """Whether the CronJob created this Job, or a user created it with `kubectl create job --from`."""
    return any(owner["uid"] == cronjob["metadata"]["uid"] for owner in field(job, "metadata.ownerReferences", []))


def started(job: Json) -> str:
    """The time when the run began."""
    return str(field(job, "metadata.creationTimestamp", ""))


def outcome(job: Json) -> str:
    """`succeeded`, `failed` or `running`."""
    states = {name for name, condition in conditions(job).items() if condition.get("status") == "True"}
    return "succeeded" if "Complete" in states else "failed" if "Failed" in states else "running"


def reason(job: Json, rayjob: Json | None) -> str:
    """The last line of the training's output, else the reason of the RayJob or the Job."""
    lines = [line for line in str(field(rayjob, "status.message", "")).splitlines() if line.strip()]
    if lines:
        return lines[-1].removeprefix("error: ")
    failed = conditions(job).get("Failed", {})
    return f"{failed.get('reason', 'failed')}: {failed.get('message', 'no message')}"
