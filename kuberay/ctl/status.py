"""status, logs, test: what a person looks at."""

from __future__ import annotations

import subprocess

from kuberay.ctl.faults import application_fault, pod_faults
from kuberay.ctl.kube import MLFLOW_SERVICE, PART_OF, PODS, RAYSERVICE, SERVICE, Cluster, CommandError, conditions, field, say
from kuberay.ctl.reach import api

ROW = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
SERVE_LOGS = "cd /tmp/ray/session_latest/logs/serve && tail -q -n {lines} {follow} replica_*.log controller_*.log 2>/dev/null"


def status(cluster: Cluster) -> None:
    for kinds, selector in (
        ("rayservices,rayclusters,rayjobs", ""),
        ("pods", PODS),
        ("services,deployments,cronjobs,ingresses,persistentvolumeclaims", PART_OF),
    ):
        out = cluster.ask("get", kinds, *(("-l", selector) if selector else ()))
        if out:
            say(out.rstrip())
            say()
    service = cluster.get("rayservice", RAYSERVICE)
    if service is None:
        say(f"no RayService in {cluster.namespace}: run `make k8s-deploy` or `make k8s-deploy-mlflow`")
        return
    for name, application in (field(service, "status.activeServiceStatus.applicationStatuses") or {}).items():
        say(f"application {name}: {application.get('status')}")
    ready = conditions(service).get("Ready", {})
    say(f"RayService: {'ready' if ready.get('status') == 'True' else 'not ready'} ({ready.get('reason', 'new')})")
    fault = application_fault(service)
    for found in [*([fault] if fault else []), *pod_faults(cluster)]:
        say(str(found))


def logs(cluster: Cluster, lines: int, follow: bool) -> None:
    """The application's own logs: Ray keeps them as files in the pods."""
    pods = cluster.pods("app=iris-api")
    if not pods:
        raise CommandError(f"no pod of the API in {cluster.namespace}: run `make k8s-deploy`")
    command = SERVE_LOGS.format(lines=lines, follow="-F" if follow else "")
    running = []
    for pod in pods:
        name, component = pod["metadata"]["name"], pod["metadata"]["labels"]["component"]
        arguments = cluster.command("exec", name, "-c", f"ray-{component}", "--", "sh", "-c", command)
        say(f"==> {name}")
        if follow:
            running.append(subprocess.Popen(arguments))  # noqa: S603
        else:
            subprocess.run(arguments, check=False)  # noqa: S603
    try:
        for process in running:
            process.wait()
    except KeyboardInterrupt:
        for process in running:
            process.terminate()


def test(cluster: Cluster) -> None:
    """Health, a prediction with the key from the Secret, and who answered."""
    with api(cluster) as client:
        try:
            health = client.call("/health")
            answer = client.call("/predict", ROW)
            info = client.call("/model/info")
        except OSError as error:
            raise CommandError(f"the API does not answer ({error}): run `make k8s-doctor`") from None
    say(f"health      {health.status}  {health.body.get('status')}, model_loaded={health.body.get('model_loaded')}")
    say(f"prediction  {answer.status}  {answer.body.get('prediction', answer.body.get('detail'))}")
    say(f"model       {info.status}  version {info.version}, {info.body.get('model_type', info.body.get('detail'))}")
    if answer.status == 503:
        raise CommandError("the API runs but has no model yet: run `make k8s-train`")
    if answer.status in (401, 403):
        raise CommandError("the pods run with another API_KEY than the Secret holds now: run `make k8s-deploy`, which rolls it out")
    if answer.status == 422:
        say("the served model wants other fields than the iris flowers: see /docs")
    elif answer.status != 200:
        raise CommandError(f"the prediction failed with {answer.status}: run `make k8s-logs`")
    say("verdict: the API works")


def forward(cluster: Cluster, what: str, port: int) -> None:
    service, target = (MLFLOW_SERVICE, 5000) if what == "mlflow" else (SERVICE, 8000)
    if cluster.get("service", service) is None:
        raise CommandError(
            f"there is no Service {service} in {cluster.namespace}: run `make k8s-deploy{'-mlflow' if what == 'mlflow' else ''}`"
        )
    say(f"http://127.0.0.1:{port} until Ctrl-C")
    cluster.become("port-forward", f"service/{service}", f"{port}:{target}")
