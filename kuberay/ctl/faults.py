"""Known faults of a deployment, each with its cause and its fix in one line, for `poll` and for the doctor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kuberay.ctl.kube import PODS, RAYSERVICE, Cluster, Json, conditions, container_statuses, field

BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")
GRACE = 30.0
"""Seconds after which a fault counts: the second attempt to pull an image may succeed."""
APPLICATION_GRACE = 15.0
"""The same for a failed application: for a moment, its status may belong to the previous spec."""
_NO_IMAGE = ("ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_NO_START = ("CrashLoopBackOff", "RunContainerError", "CreateContainerError")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of an object. A `final` fault that lasts for `grace` seconds does not pass without an action."""

    where: str
    cause: str
    fix: str
    final: bool = True
    grace: float = GRACE

    def __str__(self) -> str:
        """Cause and fix, on two lines."""
        return f"{self.where}: {self.cause}\n    fix: {self.fix}"


def pod_faults(cluster: Cluster, selector: str = PODS) -> list[Fault]:
    """The faults of the pods that match a label selector and are not being deleted."""
    pods = [pod for pod in cluster.pods(selector) if field(pod, "metadata.deletionTimestamp") is None]
    return [fault for pod in pods for fault in (*_container_faults(cluster, pod), *_scheduling_faults(cluster, pod))]


def _container_faults(cluster: Cluster, pod: Json) -> Iterator[Fault]:
    for status in container_statuses(pod):
        fault = _container_fault(cluster, str(pod["metadata"]["name"]), status)
        if fault is not None:
            yield fault


def _container_fault(cluster: Cluster, pod: str, status: Json) -> Fault | None:
    reason = str(field(status, "state.waiting.reason", ""))
    message = str(field(status, "state.waiting.message", ""))
    terminated = field(status, "lastState.terminated") or field(status, "state.terminated") or {}
    where = f"pod {pod}"
    if reason in _NO_IMAGE:
        return Fault(
            where,
            f"the node does not have the image {status['image']} and cannot pull it",
            "load it with `make k8s-load IMAGE_LOAD='kind load docker-image'` (minikube: 'minikube image load'), "
            "or push it and set DOCKER_IMAGE and TRAIN_IMAGE",
        )
    if reason == "CreateContainerConfigError":
        return Fault(where, message, _config_fix(message))
    if terminated.get("reason") == "OOMKilled":
        return Fault(
            where,
            f"container {status['name']} needed more memory than its limit and was killed",
            "raise resources.limits.memory of that container (docs/how-to/scaling.md, sizing)",
        )
    if reason in _NO_START:
        return Fault(where, f"container {status['name']} does not start: {message}", f"kubectl -n {cluster.namespace} logs {pod}")
    return None


def _scheduling_faults(cluster: Cluster, pod: Json) -> Iterator[Fault]:
    name = str(pod["metadata"]["name"])
    scheduled = conditions(pod).get("PodScheduled", {})
    if scheduled.get("reason") == "Unschedulable":
        message = str(scheduled.get("message", "")).split(". ")[0]
        yield Fault(f"pod {name}", f"no node has room for it: {message}", _scheduling_fix(message), final=False)
    elif field(pod, "status.phase") == "Pending":
        yield from _volume_faults(cluster, name)


def _volume_faults(cluster: Cluster, pod: str) -> Iterator[Fault]:
    """The fault in the newest event about a volume that the pod cannot mount."""
    for event in reversed(cluster.items("events")):
        if event.get("reason") in ("FailedAttachVolume", "FailedMount") and field(event, "involvedObject.name") == pod:
            message = str(event.get("message", "")).split("\n")[0]
            if "Multi-Attach" in message:
                cause = "its volume is ReadWriteOnce and attached to another node"
                yield Fault(f"pod {pod}", cause, "use kuberay/overlays/rwx, or one node")
            else:
                yield Fault(f"pod {pod}", message, "describe the pod and its claim with kubectl", final=False)
            return


def _config_fix(message: str) -> str:
    if "mlflow-auth" in message:
        return "create the Secret with the command in kuberay/components/mlflow-auth/secret.yaml.example"
    if "secret" in message:
        return "create the Secret: kubectl apply -f kuberay/base/secret.yaml (made from secret.yaml.example)"
    return "apply kuberay/base/config.yaml"


def _scheduling_fix(message: str) -> str:
    if "persistentvolumeclaim" in message.lower() or "volume" in message.lower():
        return "check `kubectl get pvc,storageclass`: the claims need a StorageClass with a provisioner (one marked as default)"
    return "free or add nodes, lower resources.requests, or use OVERLAY=laptop (an upgrade needs room for a second Ray cluster)"


def application_fault(service: Json | None) -> Fault | None:
    """The fault of a failed serve config or application version, which the condition Ready of the RayService does not show."""
    namespace = field(service, "metadata.namespace", "mlops")
    for side in ("pendingServiceStatus", "activeServiceStatus"):
        for name, status in (field(service, f"status.{side}.applicationStatuses") or {}).items():
            if status.get("status") in BROKEN:
                replaces = side == "pendingServiceStatus" and field(service, "status.activeServiceStatus.applicationStatuses")
                note = "; the previous version still answers" if replaces else ""
                return Fault(
                    f"application {name}",
                    f"{status['status']}: {application_message(status)}{note}",
                    f"correct it and run `make k8s-deploy` again; details: kubectl -n {namespace} describe rayservice {RAYSERVICE}",
                    grace=APPLICATION_GRACE,
                )
    return None


def application_message(status: Json) -> str:
    """The most useful line of Ray Serve's report on an application: the last error in its stack traces, else its last line."""
    texts = [str(status.get("message", ""))]
    texts += [str(deployment.get("message", "")) for deployment in (field(status, "serveDeploymentStatuses") or {}).values()]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Refused|Input)\b.*: ", line)]
    line = errors[-1] if errors else (lines[-1] if lines else "no message")
    return re.sub(r"^[\w.]*\.(\w+: )", r"\1", line)[:300]
