"""kubectl: this module makes every read from a cluster and every change to it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KUBERAY = Path(__file__).resolve().parent.parent
"""The folder with the manifests."""
NAMESPACE = "mlops"
"""The default namespace, for the only installation on a cluster."""
PART_OF = "app.kubernetes.io/part-of=iris-api"
APPS = (
    *("iris-api", "iris-train", "iris-score", "iris-data", "iris-store", "iris-backup", "iris-train-schedule", "iris-adopt"),
    *("mlflow-server", "iris-redis", "fake-gcs"),
)
PODS = f"app in ({', '.join(APPS)})"
SERVICE = "iris-api-service"
MLFLOW = "mlflow-server"
MLFLOW_SERVICE = "mlflow-server-service"
RAYSERVICE = "iris-api"
TRAINING_JOB = "iris-train-job"
TRAINING_APP = "iris-train"
"""The label `app` of training pods, started by hand or on a schedule."""
SCHEDULE = "iris-train-schedule"
SCORING_JOB = "iris-score"
ADOPTING_JOB = "iris-adopt-job"
ADOPTING_APP = "iris-adopt"
"""The label `app` of the pod that adopts a model."""
SECRET = "iris-api-secrets"  # noqa: S105  the name of a Secret
CONFIG = "iris-api-config"
OVERRIDES = "iris-api-overrides"
STORE_CLAIM = "models-pvc"
SERVE_IMAGE = "iris-api:latest"
TRAIN_IMAGE = "iris-train:latest"

SECRET_FILE = KUBERAY / "base" / "secret.yaml"

Json = dict[str, Any]


def secret_file(namespace: str) -> Path:
    """The file with the Secret of an installation; each installation has its own key."""
    return SECRET_FILE if namespace == NAMESPACE else SECRET_FILE.parent / namespace / SECRET_FILE.name


class CommandError(Exception):
    """The command cannot continue; the message is one sentence with the fix."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The target of the commands: the kubectl command with its context, the namespace, the images."""

    kubectl: tuple[str, ...]
    namespace: str
    serve_image: str = SERVE_IMAGE
    train_image: str = TRAIN_IMAGE
    secret_file: Path = SECRET_FILE
    timeout: float = 600.0
    """Most seconds until a deployment is ready."""

    @classmethod
    def from_environment(cls) -> Cluster:
        """Read KUBECTL, K8S_NS, DOCKER_IMAGE, TRAIN_IMAGE, K8S_SECRET and K8S_TIMEOUT."""
        env = os.environ
        namespace = env.get("K8S_NS") or NAMESPACE
        return cls(
            kubectl=tuple(shlex.split(env.get("KUBECTL") or "kubectl")),
            namespace=namespace,
            serve_image=env.get("DOCKER_IMAGE") or SERVE_IMAGE,
            train_image=env.get("TRAIN_IMAGE") or TRAIN_IMAGE,
            secret_file=Path(env.get("K8S_SECRET") or secret_file(namespace)),
            timeout=float(env.get("K8S_TIMEOUT") or 600),
        )

    def command(self, *arguments: str, namespaced: bool = True) -> list[str]:
        """The argument list of one kubectl call."""
        return [*self.kubectl, *(("-n", self.namespace) if namespaced else ()), *arguments]

    def run(self, *arguments: str, text: str | None = None, namespaced: bool = True) -> str:
        """Standard output of one kubectl call with `text` as its input; raises CommandError with the last line of its errors."""
        try:
            process = subprocess.run(  # noqa: S603  the command is the user's own kubectl
                self.command(*arguments, namespaced=namespaced),
                input=None if text is None else text.encode(),
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            raise CommandError(f"{self.kubectl[0]} is not installed (or not in PATH): install kubectl, or set KUBECTL") from None
        if process.returncode:
            raise CommandError(_last_line(process.stderr.decode(errors="replace")) or f"kubectl {arguments[0]} failed")
        # Bytes, because text mode would turn the carriage returns of progress bars into new lines.
        return process.stdout.decode(errors="replace")

    def try_run(self, *arguments: str, namespaced: bool = True) -> str | None:
        """Like `run`, but return None when kubectl fails."""
        try:
            return self.run(*arguments, namespaced=namespaced)
        except CommandError:
            return None

    def get(self, kind: str, name: str, *, namespaced: bool = True) -> Json | None:
        """Return one object; None when it does not exist or the cluster does not answer."""
        output = self.try_run("get", kind, name, "-o", "json", "--ignore-not-found", namespaced=namespaced)
        document: Json | None = json.loads(output) if output and output.strip() else None
        return document

    def items(self, kind: str, selector: str = "", *, namespaced: bool = True, all_namespaces: bool = False) -> list[Json]:
        """Return the objects of a kind that match a label selector; an empty list when the cluster does not answer."""
        arguments = ["get", kind, "-o", "json", *(("-l", selector) if selector else ()), *(("-A",) if all_namespaces else ())]
        output = self.try_run(*arguments, namespaced=namespaced and not all_namespaces)
        documents: list[Json] = json.loads(output).get("items", []) if output else []
        return documents

    def pods(self, selector: str) -> list[Json]:
        """Return the pods that match a label selector, sorted by name."""
        return sorted(self.items("pods", selector), key=lambda pod: str(pod["metadata"]["name"]))

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a kubectl call in the background; its output and errors share one pipe."""
        return subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603

    def popen_bytes(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a kubectl call in the background, with a pipe of bytes each for its input, its output and its errors."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self.command(*arguments), stdin=pipe, stdout=pipe, stderr=pipe)  # noqa: S603

    def replace_process(self, *arguments: str) -> None:
        """Replace this process with a kubectl call that the user ends (logs, port-forward)."""
        command = self.command(*arguments)
        os.execvp(command[0], command)  # noqa: S606


def echo(line: str = "") -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def field(document: Json | None, path: str, default: Any = None) -> Any:
    """A nested value of a document, such as `field(pod, "status.phase")`; `default` when a part of the path is missing."""
    value: Any = document
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return default
        value = value[name]
    return value


def conditions(document: Json | None) -> dict[str, Json]:
    """The conditions of an object's status by type."""
    return {str(item["type"]): item for item in field(document, "status.conditions", [])}


def is_ready(pod: Json) -> bool:
    """Whether a pod is ready."""
    return bool(conditions(pod).get("Ready", {}).get("status") == "True")


def container_statuses(pod: Json) -> Iterator[Json]:
    """The statuses of a pod's containers, init containers first."""
    yield from field(pod, "status.initContainerStatuses", [])
    yield from field(pod, "status.containerStatuses", [])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""
