"""Known faults of a deployment, each with its cause and its fix in one line. Used while waiting and by the doctor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kuberay.ctl.kube import PODS, RAYSERVICE, Cluster, Json, conditions, container_statuses, field

BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")
GRACE = 30.0
"""Seconds that a fault may last before it counts: an image can be pulled at the second attempt."""
APPLICATION_GRACE = 15.0
"""The same for a failed application: its status may be that of the spec before for a moment."""
_NO_IMAGE = ("ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName")
_NO_START = ("CrashLoopBackOff", "RunContainerError", "CreateContainerError")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an object. `final`: it does not pass by itself once it has lasted for `grace` seconds."""

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
            f"the image {status['image']} is not on the node and cannot be pulled",
            "load it with `make k8s-load IMAGE_LOAD='kind load docker-image'` (minikube: 'minikube image load'), "
            "or push it and set DOCKER_IMAGE and TRAIN_IMAGE",
        )
    if reason == "CreateContainerConfigError":
        return Fault(where, message, _config_fix(message))
    if terminated.get("reason") == "OOMKilled":
        return Fault(
            where,
            f"container {status['name']} was killed because it needed more memory than its limit",
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
        yield Fault(f"pod {name}", f"no node can take it: {message}", _scheduling_fix(message), final=False)
    elif field(pod, "status.phase") == "Pending":
        yield from _volume_faults(cluster, name)


def _volume_faults(cluster: Cluster, pod: str) -> Iterator[Fault]:
    """The newest event about a volume that the pod cannot mount."""
    for event in reversed(cluster.items("events")):
        if event.get("reason") in ("FailedAttachVolume", "FailedMount") and field(event, "involvedObject.name") == pod:
            message = str(event.get("message", "")).split("\n")[0]
            if "Multi-Attach" in message:
                cause = "its volume is ReadWriteOnce and attached to another node"
                yield Fault(f"pod {pod}", cause, "use kuberay/overlays/rwx, or one node")
            else:
                yield Fault(f"pod {pod}", message, "kubectl describe the pod and the claim it mounts", final=False)
            return


def _config_fix(message: str) -> str:
    if "mlflow-auth" in message:
        return "make the Secret: kuberay/components/mlflow-auth/secret.yaml.example holds the command"
    if "secret" in message:
        return "make the Secret: kubectl apply -f kuberay/base/secret.yaml (from secret.yaml.example)"
    return "apply kuberay/base/config.yaml"


def _scheduling_fix(message: str) -> str:
    if "persistentvolumeclaim" in message.lower() or "volume" in message.lower():
        return "look at `kubectl get pvc,storageclass`: the claims need a StorageClass that makes volumes (one marked as default)"
    return "free or add nodes, lower resources.requests, or use OVERLAY=laptop (an upgrade needs room for a second Ray cluster)"


def application_fault(service: Json | None) -> Fault | None:
    """A serve config or a version of the application that failed; the condition Ready of the RayService does not show it."""
    namespace = field(service, "metadata.namespace", "mlops")
    for side in ("pendingServiceStatus", "activeServiceStatus"):
        for name, status in (field(service, f"status.{side}.applicationStatuses") or {}).items():
            if status.get("status") in BROKEN:
                replaces = side == "pendingServiceStatus" and field(service, "status.activeServiceStatus.applicationStatuses")
                note = "; the version before still answers" if replaces else ""
                return Fault(
                    f"application {name}",
                    f"{status['status']}: {application_message(status)}{note}",
                    f"correct it and run `make k8s-deploy` again; details: kubectl -n {namespace} describe rayservice {RAYSERVICE}",
                    grace=APPLICATION_GRACE,
                )
    return None


def application_message(status: Json) -> str:
    """The most useful line of Ray Serve's report on an application: the last error of its stack traces, else its last line."""
    texts = [str(status.get("message", ""))]
    texts += [str(deployment.get("message", "")) for deployment in (field(status, "serveDeploymentStatuses") or {}).values()]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Refused|Input)\b.*: ", line)]
    line = errors[-1] if errors else (lines[-1] if lines else "no message")
    return re.sub(r"^[\w.]*\.(\w+: )", r"\1", line)[:300]
