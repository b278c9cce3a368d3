"""status and logs: what runs, what is wrong with it, and what the application logs."""

from __future__ import annotations

import subprocess

from kuberay.ctl import schedule
from kuberay.ctl.faults import application_fault, pod_faults
from kuberay.ctl.kube import PART_OF, PODS, RAYSERVICE, Cluster, CommandError, conditions, echo, field

SERVE_LOGS = "cd /tmp/ray/session_latest/logs/serve && tail -q -n {lines} {follow} replica_*.log controller_*.log 2>/dev/null"


def status(cluster: Cluster) -> None:
    """Print the objects, the state of the application, and the faults."""
    for kinds, selector in (
        ("rayservices,rayclusters,rayjobs", ""),
        ("pods", PODS),
        ("services,deployments,cronjobs,ingresses,persistentvolumeclaims", PART_OF),
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
    """Print the last `lines` of the application's logs, which Ray keeps as files in the pods; with `follow` until Ctrl-C."""
    pods = cluster.pods("app=iris-api")
    if not pods:
        raise CommandError(f"no pod of the API in {cluster.namespace}: run `make k8s-deploy`")
    command = SERVE_LOGS.format(lines=lines, follow="-F" if follow else "")
    processes = []
    for pod in pods:
        name, component = pod["metadata"]["name"], pod["metadata"]["labels"]["component"]
        arguments = cluster.command("exec", name, "-c", f"ray-{component}", "--", "sh", "-c", command)
        echo(f"==> {name}")
        if follow:
            processes.append(subprocess.Popen(arguments))  # noqa: S603
        else:
            subprocess.run(arguments, check=False)  # noqa: S603
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
