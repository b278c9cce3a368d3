"""What goes wrong on a cluster, recognised: a cause and a fix in one line each. Used while waiting and by the doctor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kuberay.ctl.kube import PODS, RAYSERVICE, Cluster, Json, conditions, containers, field

BROKEN = ("DEPLOY_FAILED", "UNHEALTHY")
_NO_IMAGE = ("ErrImageNeverPull", "ErrImagePull", "ImagePullBackOff", "InvalidImageName")


@dataclass(frozen=True, slots=True)
class Fault:
    """`final`: waiting longer will not help."""

    where: str
    cause: str
    fix: str
    final: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}\n    fix: {self.fix}"


def pod_faults(cluster: Cluster, selector: str = PODS) -> list[Fault]:
    faults = []
    for pod in cluster.pods(selector):
        if field(pod, "metadata.deletionTimestamp") is None:
            faults += list(_pod(cluster, pod))
    return faults


def _pod(cluster: Cluster, pod: Json) -> Iterator[Fault]:
    name = f"pod {pod['metadata']['name']}"
    for status in containers(pod):
        waiting = field(status, "state.waiting", {})
        reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        ended = field(status, "lastState.terminated") or field(status, "state.terminated") or {}
        if reason in _NO_IMAGE:
            yield Fault(
                name,
                f"the image {status['image']} is not on the node and cannot be pulled",
                "load it with `make k8s-load IMAGE_LOAD='kind load docker-image'` (minikube: 'minikube image load'), "
                "or push it and set DOCKER_IMAGE and TRAIN_IMAGE",
            )
        elif reason == "CreateContainerConfigError":
            yield Fault(name, message, _config_fix(message))
        elif ended.get("reason") == "OOMKilled":
            yield Fault(
                name,
                f"container {status['name']} was killed because it needed more memory than its limit",
                "raise resources.limits.memory of that container (docs/operations.md, sizing)",
            )
        elif reason in ("CrashLoopBackOff", "RunContainerError", "CreateContainerError"):
            yield Fault(
                name, f"container {status['name']} does not start: {message}", f"kubectl -n {cluster.namespace} logs {name[4:]}"
            )
    scheduled = conditions(pod).get("PodScheduled", {})
    if scheduled.get("reason") == "Unschedulable":
        message = str(scheduled.get("message", "")).split(". ")[0]
        yield Fault(name, f"no node can take it: {message}", _room_fix(message), final=False)
    elif field(pod, "status.phase") == "Pending":
        yield from _volume(cluster, name)


def _volume(cluster: Cluster, name: str) -> Iterator[Fault]:
    events = cluster.items("events", everywhere=False)
    for event in reversed(events):
        if event.get("reason") in ("FailedAttachVolume", "FailedMount") and field(event, "involvedObject.name") == name[4:]:
            message = str(event.get("message", "")).split("\n")[0]
            if "Multi-Attach" in message:
                yield Fault(
                    name, "its volume is ReadWriteOnce and attached to another node", "use kuberay/overlays/rwx, or one node"
                )
            else:
                yield Fault(name, message, "kubectl describe the pod and the claim it mounts", final=False)
            return


def _config_fix(message: str) -> str:
    if "mlflow-auth" in message:
        return "make the Secret: kuberay/components/mlflow-auth/secret.yaml.example holds the command"
    if "secret" in message:
        return "make the Secret: kubectl apply -f kuberay/base/secret.yaml (from secret.yaml.example)"
    return "apply kuberay/base/config.yaml"


def _room_fix(message: str) -> str:
    if "persistentvolumeclaim" in message.lower() or "volume" in message.lower():
        return "look at `kubectl get pvc,storageclass`: the claims need a StorageClass that makes volumes (one marked as default)"
    return "free or add nodes, lower resources.requests, or use OVERLAY=laptop (an upgrade needs room for a second Ray cluster)"


def application_fault(service: Json | None) -> Fault | None:
    """A serve config or a version of the application that failed; Ready of the RayService does not show it."""
    for side in ("pendingServiceStatus", "activeServiceStatus"):
        for name, status in (field(service, f"status.{side}.applicationStatuses") or {}).items():
            if status.get("status") in BROKEN:
                old = side == "pendingServiceStatus" and field(service, "status.activeServiceStatus.applicationStatuses")
                after = "; the version before goes on answering" if old else ""
                return Fault(
                    f"application {name}",
                    f"{status['status']}: {application_message(status)}{after}",
                    f"correct it and run `make k8s-deploy` again; details: kubectl -n NAMESPACE describe rayservice {RAYSERVICE}",
                )
    return None


def application_message(status: Json) -> str:
    """The line of Serve's report that a person can use: the last of a stack trace."""
    texts = [str(status.get("message", ""))]
    texts += [str(deployment.get("message", "")) for deployment in (field(status, "serveDeploymentStatuses") or {}).values()]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Refused|Input)\b.*: ", line)]
    chosen = errors[-1] if errors else (lines[-1] if lines else "no message")
    return re.sub(r"^[\w.]*\.(\w+: )", r"\1", chosen)[:300]
