"""kubectl, and nothing else: every look at a cluster and every change to it passes here."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PART_OF = "app.kubernetes.io/part-of=iris-api"
APPS = (
    *("iris-api", "iris-train", "iris-score", "iris-score-files", "iris-store", "iris-train-schedule"),
    *("mlflow-server", "iris-redis", "fake-gcs"),
)
PODS = f"app in ({', '.join(APPS)})"
SERVICE = "iris-api-service"
MLFLOW_SERVICE = "mlflow-server-service"
RAYSERVICE = "iris-api"
RAYJOB = "iris-train"
SCOREJOB = "iris-score"
SECRET = "iris-api-secrets"  # noqa: S105  the name of a Secret

Json = dict[str, Any]


class CommandError(Exception):
    """Work cannot go on; the message is one sentence that names the fix."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the product goes: the kubectl command (with its context), the namespace, the images."""

    kubectl: tuple[str, ...]
    namespace: str
    serve_image: str
    train_image: str

    @classmethod
    def from_environment(cls) -> Cluster:
        env = os.environ
        return cls(
            kubectl=tuple(shlex.split(env.get("KUBECTL") or "kubectl")),
            namespace=env.get("K8S_NS") or "mlops",
            serve_image=env.get("DOCKER_IMAGE") or "iris-api:latest",
            train_image=env.get("TRAIN_IMAGE") or "iris-train:latest",
        )

    def command(self, *arguments: str, namespaced: bool = True) -> list[str]:
        return [*self.kubectl, *(("-n", self.namespace) if namespaced else ()), *arguments]

    def run(self, *arguments: str, text: str | None = None, namespaced: bool = True) -> str:
        """Output of one kubectl call; raises Stop with what kubectl said."""
        try:
            done = subprocess.run(  # noqa: S603  the command is the user's own kubectl
                self.command(*arguments, namespaced=namespaced), input=text, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise CommandError(f"{self.kubectl[0]} is not installed (or not in PATH): install kubectl, or set KUBECTL") from None
        if done.returncode:
            raise CommandError(_last_line(done.stderr) or f"kubectl {arguments[0]} failed")
        return done.stdout

    def ask(self, *arguments: str, namespaced: bool = True) -> str | None:
        """Like `run`, but None when kubectl fails."""
        try:
            return self.run(*arguments, namespaced=namespaced)
        except CommandError:
            return None

    def get(self, kind: str, name: str, *, namespaced: bool = True) -> Json | None:
        out = self.ask("get", kind, name, "-o", "json", "--ignore-not-found", namespaced=namespaced)
        found: Json | None = json.loads(out) if out and out.strip() else None
        return found

    def items(self, kind: str, selector: str = "", *, namespaced: bool = True, everywhere: bool = False) -> list[Json]:
        arguments = ["get", kind, "-o", "json", *(("-l", selector) if selector else ()), *(("-A",) if everywhere else ())]
        out = self.ask(*arguments, namespaced=namespaced and not everywhere)
        found: list[Json] = json.loads(out).get("items", []) if out else []
        return found

    def pods(self, selector: str) -> list[Json]:
        return sorted(self.items("pods", selector), key=lambda pod: str(pod["metadata"]["name"]))

    def stream(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603

    def become(self, *arguments: str) -> None:
        """Hand the terminal over to kubectl (logs, port-forward) until the person ends it."""
        command = self.command(*arguments)
        os.execvp(command[0], command)  # noqa: S606


def say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def field(document: Json | None, path: str, default: Any = None) -> Any:
    """A value deep inside a document: `field(pod, "status.phase")`."""
    value: Any = document
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return default
        value = value[name]
    return value


def conditions(document: Json | None) -> dict[str, Json]:
    return {str(item["type"]): item for item in field(document, "status.conditions", [])}


def containers(pod: Json) -> Iterator[Json]:
    """The statuses of a pod's containers, init containers first."""
    yield from field(pod, "status.initContainerStatuses", [])
    yield from field(pod, "status.containerStatuses", [])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else ""
