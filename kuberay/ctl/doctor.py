"""doctor: the known failures, looked for one after another; cause and fix in one line each. It changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from kuberay.ctl.deploy import CRD, operator
from kuberay.ctl.faults import Fault, application_fault, pod_faults
from kuberay.ctl.kube import RAYJOB, RAYSERVICE, SECRET, Cluster, conditions, field, say
from kuberay.ctl.manifests import HERE, MIN_KEY
from kuberay.ctl.reach import api_key

LEAST = {"ray-head": 1536, "ray-worker": 768, "mlflow": 768}
"""MiB of memory limit below which a container was seen to be killed or to be near it."""
UNITS = {"Ki": 1 / 1024, "Mi": 1.0, "Gi": 1024.0, "M": 0.9537, "G": 953.7}


def doctor(cluster: Cluster) -> int:
    """Number of faults found."""
    if cluster.ask("version", "-o", "json", namespaced=False) is None:
        say(str(Fault("cluster", "no cluster answers", "kubectl cluster-info; set KUBECONFIG or KUBECTL='kubectl --context NAME'")))
        return 1
    faults: list[Fault] = []
    for title, check in CHECKS:
        found = list(check(cluster))
        faults += found
        say(f"{'!!' if found else 'ok'}  {title}")
        for fault in found:
            say(f"    {fault}")
    say(f"{len(faults)} found" if faults else "nothing found")
    return len(faults)


def _operator(cluster: Cluster) -> Iterator[Fault]:
    if cluster.get("crd", CRD, namespaced=False) is None:
        yield Fault("cluster", "the custom resources of KubeRay are missing", "make k8s-setup")
        return
    found = operator(cluster)
    if found is None:
        yield Fault("cluster", "KubeRay's custom resources are there, but no operator acts on them", "make k8s-setup")
    elif found[1] < 1:
        yield Fault("operator", f"{found[0]} does not run", "kubectl get pods -A | grep kuberay; then describe the pod")


def _namespace(cluster: Cluster) -> Iterator[Fault]:
    if cluster.get("namespace", cluster.namespace, namespaced=False) is None:
        yield Fault(f"namespace {cluster.namespace}", "does not exist", "make k8s-deploy (or set K8S_NS to where the product is)")


def _secret(cluster: Cluster) -> Iterator[Fault]:
    if cluster.get("namespace", cluster.namespace, namespaced=False) is None:
        return
    if cluster.get("secret", SECRET) is None:
        yield Fault(f"Secret {SECRET}", "is missing", "kubectl apply -f kuberay/base/secret.yaml (made from secret.yaml.example)")
        return
    key = api_key(cluster)
    mode = field(cluster.get("configmap", "iris-api-config"), "data", {}).get("ENVIRONMENT", "")
    if mode == "production" and len(key) < MIN_KEY:
        cause = "holds no API_KEY" if not key else f"holds an API_KEY of {len(key)} characters; production needs {MIN_KEY}"
        yield Fault(
            f"Secret {SECRET}", cause, "put the output of `openssl rand -hex 32` into kuberay/base/secret.yaml; make k8s-deploy"
        )
    elif key.startswith("replace-me"):
        yield Fault(f"Secret {SECRET}", "holds the API_KEY of the example", "put your own key in; make k8s-deploy")


def _tracking(cluster: Cluster) -> Iterator[Fault]:
    import base64

    data = field(cluster.get("secret", SECRET), "data", {})
    uri = base64.b64decode(data.get("MLFLOW_TRACKING_URI", "")).decode()
    overrides = field(cluster.get("configmap", "iris-api-overrides"), "data", {})
    if uri.startswith("gs://") and "MLFLOW_TRACKING_URI" not in overrides:
        yield Fault(
            f"Secret {SECRET}",
            f"MLFLOW_TRACKING_URI is {uri}, a place for files and no tracking server",
            "make k8s-deploy OVERLAY=gcs",
        )
    server = cluster.get("deployment", "mlflow-server")
    if server is None and "mlflow-server-service" in uri:
        yield Fault(
            f"Secret {SECRET}",
            f"MLFLOW_TRACKING_URI is {uri}, but there is no MLflow here",
            "make k8s-deploy-mlflow, or another URI",
        )
    if server is None:
        return
    log = cluster.ask("logs", "deployment/mlflow-server", "--tail=2000") or ""
    refused = re.findall(r"Rejected request with invalid Host header: (\S+)", log)
    if refused:
        fix = f"add {refused[-1]} to --allowed-hosts in kuberay/components/mlflow/mlflow.yaml"
        yield Fault("MLflow", f"answers 403 to clients that call it {refused[-1]}", fix)
    if "DefaultCredentialsError" in log:
        yield Fault(
            "MLflow", "has no credentials for the bucket", "docs/operations.md, GCS: Workload Identity, or the Secret gcs-key"
        )


def _claims(cluster: Cluster) -> Iterator[Fault]:
    for claim in cluster.items("persistentvolumeclaims"):
        name = f"claim {claim['metadata']['name']}"
        if field(claim, "status.phase") == "Pending":
            events = [e for e in cluster.items("events") if field(e, "involvedObject.name") == claim["metadata"]["name"]]
            last = events[-1] if events else {}
            if last.get("reason") != "WaitForFirstConsumer":
                cause = str(last.get("message", "no volume was made for it")).split("\n")[0]
                yield Fault(name, cause, "name a StorageClass that exists (kubectl get storageclass), or mark one as default")


def _pods(cluster: Cluster) -> Iterator[Fault]:
    yield from pod_faults(cluster)


def _application(cluster: Cluster) -> Iterator[Fault]:
    service = cluster.get("rayservice", RAYSERVICE)
    fault = application_fault(service)
    if fault is not None:
        yield Fault(fault.where, fault.cause, fault.fix.replace("NAMESPACE", cluster.namespace))
    ready = conditions(service).get("Ready", {})
    if ready.get("reason") == "ValidationFailed":
        yield Fault("RayService", str(ready.get("message", "")), "correct the YAML that the message names; make k8s-deploy")


def _job(cluster: Cluster) -> Iterator[Fault]:
    job = cluster.get("rayjob", RAYJOB)
    if field(job, "status.jobDeploymentStatus") in ("Failed", "ValidationFailed"):
        lines = [line for line in str(field(job, "status.message", "")).splitlines() if line.strip()]
        cause = f"{field(job, 'status.reason', 'failed')}: {lines[-1] if lines else 'no message'}"
        yield Fault("RayJob iris-train", cause[:300], "correct the cause and run `make k8s-train` again")


def _versions(cluster: Cluster) -> Iterator[Fault]:
    lock = re.search(r"^ray==(\S+)", Path(HERE.parent / "requirements" / "serve.txt").read_text(), re.MULTILINE)
    for kind, name, path in (("rayservice", RAYSERVICE, "spec.rayClusterConfig"), ("rayjob", RAYJOB, "spec.rayClusterSpec")):
        stated = field(cluster.get(kind, name), f"{path}.rayVersion")
        if lock and stated and stated != lock.group(1):
            yield Fault(
                f"{kind} {name}",
                f"rayVersion is {stated}, the images are built with Ray {lock.group(1)}",
                f"set rayVersion: {lock.group(1)}",
            )


def _memory(cluster: Cluster) -> Iterator[Fault]:
    seen = set()
    for pod in cluster.pods("app in (iris-api, iris-train, mlflow-server)"):
        for container in field(pod, "spec.containers", []):
            limit = mebibytes(field(container, "resources.limits.memory"))
            least = LEAST.get(container["name"])
            key = (field(pod, "metadata.labels.app"), container["name"])
            if least and limit is not None and limit < least and key not in seen:
                seen.add(key)
                yield Fault(
                    f"container {container['name']}", f"its memory limit is {limit:.0f} MiB", f"give it {least} MiB or more"
                )


def mebibytes(quantity: object) -> float | None:
    """`1Gi` as 1024; None for no quantity."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|M|G)?", str(quantity))
    return float(found.group(1)) * UNITS.get(found.group(2), 1 / 2**20) if found else None


def _rolled_out(cluster: Cluster) -> Iterator[Fault]:
    """A config that changed without a roll-out: pods keep what they read at their start."""
    pods = cluster.pods("app=iris-api,component=worker")
    started = max((str(field(pod, "metadata.creationTimestamp")) for pod in pods), default="")
    for kind, name in (("secret", SECRET), ("configmap", "iris-api-config")):
        text = cluster.ask("get", kind, name, "-o", "json", "--show-managed-fields", "--ignore-not-found")
        entries = field(json.loads(text), "metadata.managedFields", []) if text and text.strip() else []
        changed = max((str(entry.get("time", "")) for entry in entries), default="")
        if started and changed > started:
            yield Fault(f"{kind} {name}", "was changed after the pods had started, so they run with the old one", "make k8s-deploy")


CHECKS: tuple[tuple[str, Callable[[Cluster], Iterator[Fault]]], ...] = (
    ("operator and its custom resources", _operator),
    ("namespace", _namespace),
    ("API key", _secret),
    ("MLflow and tracking", _tracking),
    ("volume claims", _claims),
    ("pods: images, memory, room on the nodes", _pods),
    ("application", _application),
    ("training job", _job),
    ("settings are rolled out", _rolled_out),
    ("Ray's version", _versions),
    ("memory limits", _memory),
)
