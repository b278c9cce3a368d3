"""doctor: check for the known faults, and print the cause and the fix of each in one line. It changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from kuberay.ctl import adopt, short_job
from kuberay.ctl.deploy import CRD, installed_operator
from kuberay.ctl.faults import Fault, application_fault, pod_faults
from kuberay.ctl.kube import (
    ADOPTING_APP,
    ADOPTING_JOB,
    CONFIG,
    KUBERAY,
    MLFLOW,
    MLFLOW_SERVICE,
    OVERRIDES,
    RAYSERVICE,
    SECRET,
    TRAINING_JOB,
    Cluster,
    conditions,
    echo,
    field,
)
from kuberay.ctl.manifests import EXAMPLE_KEY, secret_value
from serve_app.http.key_strength import weakness
from serve_app.mlflow_address import refusal

MINIMUM_MEMORY = {"ray-head": 1536, "ray-worker": 768, "mlflow": 768}
"""Smallest memory limit of each container in MiB; below it, the container was killed in tests, or nearly."""
UNITS = {"Ki": 1 / 1024, "Mi": 1.0, "Gi": 1024.0, "M": 0.9537, "G": 953.7}


def doctor(cluster: Cluster) -> int:
    """Print the result of each check; returns the number of faults."""
    if cluster.try_run("version", "-o", "json", namespaced=False) is None:
        echo(
            str(Fault("cluster", "no cluster answers", "kubectl cluster-info; set KUBECONFIG or KUBECTL='kubectl --context NAME'"))
        )
        return 1
    faults: list[Fault] = []
    for title, check in CHECKS:
        results = list(check(cluster))
        faults += results
        echo(f"{'!!' if results else 'ok'}  {title}")
        for fault in results:
            echo(f"    {fault}")
    echo(f"{len(faults)} found" if faults else "nothing found")
    return len(faults)


def _operator(cluster: Cluster) -> Iterator[Fault]:
    if cluster.get("crd", CRD, namespaced=False) is None:
        yield Fault("cluster", "KubeRay's custom resources are missing", "make k8s-setup")
        return
    operator = installed_operator(cluster)
    if operator is None:
        yield Fault("cluster", "KubeRay's custom resources are installed, but no operator runs", "make k8s-setup")
    elif operator[1] < 1:
        yield Fault("operator", f"{operator[0]} does not run", "run kubectl get pods -A | grep kuberay, then describe the pod")


def _namespace(cluster: Cluster) -> Iterator[Fault]:
    if cluster.get("namespace", cluster.namespace, namespaced=False) is None:
        yield Fault(f"namespace {cluster.namespace}", "does not exist", "make k8s-deploy (or set K8S_NS to the right namespace)")


def _secret(cluster: Cluster) -> Iterator[Fault]:
    if cluster.get("namespace", cluster.namespace, namespaced=False) is None:
        return
    secret = cluster.get("secret", SECRET)
    if secret is None:
        yield Fault(f"Secret {SECRET}", "is missing", "kubectl apply -f kuberay/base/secret.yaml (made from secret.yaml.example)")
        return
    key = secret_value(secret, "API_KEY")
    mode = field(cluster.get("configmap", CONFIG), "data", {}).get("ENVIRONMENT", "")
    reason = weakness(key)
    if mode == "production" and reason is not None:
        cause = "holds no API_KEY" if not key else f"holds an API_KEY that {reason}"
        yield Fault(
            f"Secret {SECRET}", cause, "put the output of `openssl rand -hex 32` into kuberay/base/secret.yaml; make k8s-deploy"
        )
    elif key.startswith(EXAMPLE_KEY):
        yield Fault(f"Secret {SECRET}", "holds the API_KEY of the example", "put your own key into it; make k8s-deploy")


def _tracking(cluster: Cluster) -> Iterator[Fault]:
    uri = secret_value(cluster.get("secret", SECRET), "MLFLOW_TRACKING_URI")
    overrides = field(cluster.get("configmap", OVERRIDES), "data", {})
    reason = refusal(uri) if uri else None
    if reason is not None and "MLFLOW_TRACKING_URI" not in overrides:
        cause, _, fix = reason.partition(": ")
        yield Fault(f"Secret {SECRET}", cause, fix)
    has_server = cluster.get("deployment", MLFLOW) is not None
    if not has_server and MLFLOW_SERVICE in uri:
        yield Fault(
            f"Secret {SECRET}",
            f"MLFLOW_TRACKING_URI is {uri}, but the namespace has no MLflow",
            "make k8s-deploy-mlflow, or another URI",
        )
    if has_server:
        yield from _mlflow_log(cluster)


def _mlflow_log(cluster: Cluster) -> Iterator[Fault]:
    log = cluster.try_run("logs", "deployment/mlflow-server", "--tail=2000") or ""
    refused = re.findall(r"Rejected request with invalid Host header: (\S+)", log)
    if refused:
        fix = f"add {refused[-1]} to --allowed-hosts in kuberay/components/mlflow/mlflow.yaml"
        yield Fault("MLflow", f"answers 403 to clients that use the host name {refused[-1]}", fix)
    if "DefaultCredentialsError" in log:
        yield Fault(
            "MLflow",
            "has no credentials for the bucket",
            "give the ServiceAccount mlflow-server access with Workload Identity (docs/how-to/variants.md, bucket)",
        )


def _claims(cluster: Cluster) -> Iterator[Fault]:
    for claim in cluster.items("persistentvolumeclaims"):
        name = f"claim {claim['metadata']['name']}"
        if field(claim, "status.phase") == "Pending":
            events = [
                event for event in cluster.items("events") if field(event, "involvedObject.name") == claim["metadata"]["name"]
            ]
            last = events[-1] if events else {}
            if last.get("reason") != "WaitForFirstConsumer":
                cause = str(last.get("message", "no volume was made for it")).split("\n")[0]
                yield Fault(name, cause, "set a StorageClass that exists (kubectl get storageclass), or mark one as default")


def _pods(cluster: Cluster) -> Iterator[Fault]:
    yield from pod_faults(cluster)


def _application(cluster: Cluster) -> Iterator[Fault]:
    service = cluster.get("rayservice", RAYSERVICE)
    fault = application_fault(service)
    if fault is not None:
        yield fault
    ready = conditions(service).get("Ready", {})
    if ready.get("reason") == "ValidationFailed":
        yield Fault("RayService", str(ready.get("message", "")), "correct the YAML in the message; make k8s-deploy")


def _job(cluster: Cluster) -> Iterator[Fault]:
    job = cluster.get("rayjob", TRAINING_JOB)
    if field(job, "status.jobDeploymentStatus") in ("Failed", "ValidationFailed"):
        lines = [line for line in str(field(job, "status.message", "")).splitlines() if line.strip()]
        cause = f"{field(job, 'status.reason', 'failed')}: {lines[-1] if lines else 'no message'}"
        yield Fault(f"RayJob {TRAINING_JOB}", cause[:300], "correct the cause and run `make k8s-train` again")


def _adopting_job(cluster: Cluster) -> Iterator[Fault]:
    failed = conditions(cluster.get("job", ADOPTING_JOB)).get("Failed", {})
    if failed.get("status") != "True":
        return
    again = "correct the cause and run `make k8s-adopt` again"
    code = short_job.exit_code(cluster, ADOPTING_APP)
    if failed.get("reason") != "DeadlineExceeded" and code != short_job.TIMED_OUT:
        ended = short_job.Ended(code, cluster.try_run("logs", f"job/{ADOPTING_JOB}") or "")
        yield Fault(f"Job {ADOPTING_JOB}", adopt.failure(ended)[:300], again)
        return
    # Kubernetes deletes the pod of a Job that exceeds its deadline, and the log with it.
    yield Fault(f"Job {ADOPTING_JOB}", f"{failed.get('reason', 'failed')}: {failed.get('message', 'no message')}"[:300], again)


def _versions(cluster: Cluster) -> Iterator[Fault]:
    lock = re.search(r"^ray==(\S+)", (KUBERAY.parent / "requirements" / "serve.txt").read_text(), re.MULTILINE)
    for kind, name, path in (("RayService", RAYSERVICE, "spec.rayClusterConfig"), ("RayJob", TRAINING_JOB, "spec.rayClusterSpec")):
        stated = field(cluster.get(kind, name), f"{path}.rayVersion")
        if lock and stated and stated != lock.group(1):
            yield Fault(
                f"{kind} {name}",
                f"rayVersion is {stated}, but the images contain Ray {lock.group(1)}",
                f"set rayVersion: {lock.group(1)}",
            )


def _memory(cluster: Cluster) -> Iterator[Fault]:
    reported = set()
    for pod in cluster.pods("app in (iris-api, iris-train, mlflow-server)"):
        for container in field(pod, "spec.containers", []):
            limit = mebibytes(field(container, "resources.limits.memory"))
            minimum = MINIMUM_MEMORY.get(container["name"])
            key = (field(pod, "metadata.labels.app"), container["name"])
            if minimum and limit is not None and limit < minimum and key not in reported:
                reported.add(key)
                yield Fault(
                    f"container {container['name']}", f"its memory limit is {limit:.0f} MiB", f"set it to {minimum} MiB or more"
                )


def mebibytes(quantity: object) -> float | None:
    """A quantity of memory in MiB, such as 1024 for `1Gi`; None when the text is not a quantity."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|M|G)?", str(quantity))
    return float(match.group(1)) * UNITS.get(match.group(2), 1 / 2**20) if match else None


def _rolled_out(cluster: Cluster) -> Iterator[Fault]:
    """The fault of settings that changed after the pods read them at their start."""
    pods = cluster.pods("app=iris-api,component=worker")
    started = max((str(field(pod, "metadata.creationTimestamp")) for pod in pods), default="")
    text = cluster.try_run("get", "configmap", CONFIG, "-o", "json", "--show-managed-fields", "--ignore-not-found")
    entries = field(json.loads(text), "metadata.managedFields", []) if text and text.strip() else []
    changed = max((str(entry.get("time", "")) for entry in entries), default="")
    if started and changed > started:
        yield Fault(f"ConfigMap {CONFIG}", "changed after the pods started, so they run with the old settings", "make k8s-deploy")


CHECKS: tuple[tuple[str, Callable[[Cluster], Iterator[Fault]]], ...] = (
    ("operator and its custom resources", _operator),
    ("namespace", _namespace),
    ("API key", _secret),
    ("MLflow and tracking", _tracking),
    ("volume claims", _claims),
    ("pods: images, memory, room on the nodes", _pods),
    ("application", _application),
    ("training job", _job),
    ("adopting job", _adopting_job),
    ("settings are rolled out", _rolled_out),
    ("Ray's version", _versions),
    ("memory limits", _memory),
)
