"""A deployment by kustomize alone, in a namespace of its own and small enough that two Ray clusters fit on a node with two CPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kuberay.ctl.kube import SERVE_IMAGE, TRAIN_IMAGE, field
from kuberay.ctl.manifests import image_override
from kuberay.ctl.readiness import is_settled
from tests.support import cluster
from tests.support.cluster import ROOT, ROW, Response, kubectl, predicts
from tests.support.load import Load, open_loop
from tests.support.waiting import until

RATE = 10
CONTAINER = "template/spec/containers/0/resources/requests/cpu"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Environment:
    """A folder with a kustomization.yaml, its namespace, and the port of this machine at which the API answers."""

    folder: Path
    namespace: str
    port: int

    def write(self, document: Json, operations: list[Json]) -> None:
        """Write the kustomization with namespace, images, and `operations` on the RayService."""
        groups = (f"headGroupSpec/{CONTAINER}", f"workerGroupSpecs/0/{CONTAINER}", "autoscalerOptions/resources/requests/cpu")
        small = [{"op": "replace", "path": f"/spec/rayClusterConfig/{path}", "value": "20m"} for path in groups]
        patch = {"target": {"kind": "RayService"}, "patch": json.dumps([*small, *operations])}
        patches = [*document.get("patches", []), patch]
        write(self.folder, document | {"namespace": self.namespace, "images": images(), "patches": patches})

    def apply(self) -> str:
        return kubectl("apply", "-k", str(self.folder))

    def train(self, folder: Path) -> None:
        """Run the job of kuberay/train, by kustomize too."""
        small = [{"op": "replace", "path": f"/spec/rayClusterSpec/headGroupSpec/{CONTAINER}", "value": "20m"}]
        document = {
            "resources": [os.path.relpath(ROOT / "kuberay" / "train", folder)],
            "namespace": self.namespace,
            "images": images(),
            "patches": [{"target": {"kind": "RayJob"}, "patch": json.dumps(small)}],
        }
        write(folder, document)
        rendered: list[Json] = list(yaml.safe_load_all(kubectl("kustomize", str(folder))))
        jobs = [one for one in rendered if one["kind"] == "RayJob"]
        others = [one for one in rendered if one not in jobs]
        if others:
            kubectl("apply", "-f", "-", text=yaml.safe_dump_all(others))
        kubectl("replace", "--force", "-f", "-", text=yaml.safe_dump_all(jobs))

        def succeeded() -> bool:
            job = cluster.get("rayjob", jobs[0]["metadata"]["name"], self.namespace)
            assert field(job, "status.jobDeploymentStatus") != "Failed", field(job, "status.message")
            return bool(field(job, "status.jobStatus") == "SUCCEEDED")

        until(succeeded, seconds=600, every=1, what="the first model")

    def service(self) -> Json:
        return cluster.get("rayservice", "iris-api", self.namespace)

    def ray_cluster(self) -> str:
        return str(field(self.service(), "status.activeServiceStatus.rayClusterName"))

    def wait_until_settled(self) -> None:
        until(lambda: is_settled(self.service()), seconds=600, every=1, what="the application of the newest spec")

    def wait_for_another_cluster(self, name: str) -> None:
        until(lambda: self.ray_cluster() != name, seconds=600, every=1, what="a second Ray cluster")
        self.wait_until_settled()

    def pods(self, component: str = "worker") -> list[Json]:
        return cluster.pods(f"app=iris-api,component={component}", self.namespace)

    def predict(self, key: str) -> Response:
        return cluster.request("/predict", key=key, row=ROW, port=self.port)

    def statuses(self, key: str) -> set[int]:
        """The statuses of 20 predictions in a row, each on a connection of its own; 0 without a response."""
        try:
            return {self.predict(key).status for _ in range(20)}
        except OSError:
            return {0}

    def load(self, key: str, *, retry: bool = False) -> AbstractContextManager[Load]:
        url = f"http://127.0.0.1:{self.port}"
        return open_loop(url, ROW, key=key, rate=RATE, check=predicts, retry=retry, keep_alive=False)


@contextmanager
def deployed(environment: Environment, key: str, folder: Path) -> Iterator[Environment]:
    """The environment with its Secret and a first model; everything is removed at the end."""
    namespace = environment.namespace
    remove(namespace)
    try:
        kubectl("create", "namespace", namespace)
        data = {"API_KEY": key, "MLFLOW_TRACKING_URI": "http://mlflow-server-service:5000"}
        literals = [f"--from-literal={name}={value}" for name, value in data.items()]
        kubectl("create", "secret", "generic", "iris-api-secrets", "-n", namespace, *literals)
        environment.apply()
        environment.wait_until_settled()
        environment.train(folder)
        until(lambda: environment.statuses(key) == {200}, seconds=120, every=1, what="the first predictions")
        yield environment
    finally:
        remove(namespace)


def remove(namespace: str) -> None:
    """Custom resources first, while their operator can still finish them."""
    kubectl("delete", "raycronjob,rayjob,rayservice", "--all", "-n", namespace, "--timeout=120s", check=False)
    kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=240s", check=False)


def images() -> list[dict[str, str]]:
    """kustomize's `images` for DOCKER_IMAGE and TRAIN_IMAGE."""
    pairs = ((SERVE_IMAGE, os.environ.get("DOCKER_IMAGE")), (TRAIN_IMAGE, os.environ.get("TRAIN_IMAGE")))
    return [image_override(name, reference or name) for name, reference in pairs]


def write(folder: Path, document: Json) -> None:
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
