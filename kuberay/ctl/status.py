"""status and logs: print the objects with their state and faults, and the logs of the application."""

from __future__ import annotations

from kuberay.ctl import schedule
from kuberay.ctl.clean import GATEWAY
from kuberay.ctl.faults import application_fault, pod_faults
from kuberay.ctl.kube import PART_OF, PODS, RAYSERVICE, Cluster, CommandError, conditions, echo, field


def status(cluster: Cluster) -> None:
    """Print the objects, the state of the application, and the faults."""
    for kinds, selector in (
        ("rayservices,rayclusters,rayjobs", ""),
        ("pods", PODS),
        ("services,deployments,cronjobs,ingresses,persistentvolumeclaims", PART_OF),
        (",".join(GATEWAY), PART_OF),
    ):
        table = cluster.try_run("get", kinds, *(("-l", selector) if selector else ()))
        if table:
            echo(table.rstrip())
            echo()
    for line in schedule.describe(cluster):
        echo(line)
    service = cluster.get("rayservice", RAYSERVICE)
    if service is None:
        echo(f"no RayService in {cluster.namespace}: run `make k8s-deploy` or `make k8s-deploy-mlflow`")
        return
    for name, application in (field(service, "status.activeServiceStatus.applicationStatuses") or {}).items():
        echo(f"application {name}: {application.get('status')}")
    ready = conditions(service).get("Ready", {})
    echo(f"RayService: {'ready' if ready.get('status') == 'True' else 'not ready'} ({ready.get('reason', 'new')})")
    application = application_fault(service)
    for fault in [*([application] if application else []), *pod_faults(cluster)]:
        echo(str(fault))


def logs(cluster: Cluster, lines: int, follow: bool) -> None:
    """Print the last `lines` log lines of each replica; with `follow` until Ctrl-C."""
    replicas = "app=iris-api,component=worker"
    if not cluster.pods(replicas):
        raise CommandError(f"the API has no pod in {cluster.namespace}: run `make k8s-deploy`")
    following = ("--follow", "--max-log-requests=100") if follow else ()
    cluster.replace_process("logs", "-l", replicas, "-c", "ray-worker", "--prefix", f"--tail={lines}", *following)
