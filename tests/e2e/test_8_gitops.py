"""An environment as a GitOps controller applies it: `kubectl apply -k` of one folder without make, in a namespace of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuberay.ctl.kube import SERVE_IMAGE, TRAIN_IMAGE, field
from kuberay.ctl.manifests import image_override
from kuberay.ctl.readiness import is_settled
from tests.support import cluster
from tests.support.cluster import ROOT, ROW, kubectl, predicts
from tests.support.figures import note
from tests.support.load import Load, open_loop
from tests.support.waiting import until

pytestmark = [pytest.mark.long]

NAMESPACE = "iris-gitops"
PORT = 30093
RATE = 30
CONTAINER = "template/spec/containers/0/resources/requests/cpu"
"""What a pod asks for. It is set low, so that a second Ray cluster fits on a small node."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Environment:
    """A copy of kuberay/gitops/production: a folder in a repository."""

    folder: Path

    def apply(self) -> str:
        return kubectl("apply", "-k", str(self.folder))

    def set(self, line: str) -> None:
        """One line of settings.env."""
        file, name = self.folder / "settings.env", line.partition("=")[0]
        lines = [one for one in file.read_text().splitlines() if not one.startswith(f"{name}=")]
        file.write_text("\n".join([*lines, line]) + "\n")


def images() -> list[dict[str, str]]:
    pairs = ((SERVE_IMAGE, os.environ.get("DOCKER_IMAGE")), (TRAIN_IMAGE, os.environ.get("TRAIN_IMAGE")))
    return [image_override(name, reference or name) for name, reference in pairs]


def write_kustomization(folder: Path, document: Json) -> None:
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


@pytest.fixture(scope="module")
def key() -> str:
    return secrets.token_hex(32)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, key: str) -> Iterator[Environment]:
    """The applied folder, with a model."""
    source = ROOT / "kuberay" / "gitops" / "production"
    folder = tmp_path_factory.mktemp("repository") / "production"
    shutil.copytree(source, folder)
    document = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for name in ("resources", "components"):
        document[name] = [os.path.relpath((source / path).resolve(), folder) for path in document[name]]
    document |= {"namespace": NAMESPACE, "images": images()}
    small = [f"headGroupSpec/{CONTAINER}", f"workerGroupSpecs/0/{CONTAINER}", "autoscalerOptions/resources/requests/cpu"]
    node_port = {"type": "NodePort", "ports": [{"name": "serve", "port": 8000, "targetPort": 8000, "nodePort": PORT}]}
    operations = [{"op": "replace", "path": f"/spec/rayClusterConfig/{path}", "value": "20m"} for path in small]
    operations.append({"op": "replace", "path": "/spec/serveService/spec", "value": node_port})
    document["patches"].append({"target": {"kind": "RayService"}, "patch": json.dumps(operations)})
    write_kustomization(folder, document)
    found = Environment(folder)
    remove()
    try:
        kubectl("create", "namespace", NAMESPACE)
        data = {"API_KEY": key, "MLFLOW_TRACKING_URI": "http://mlflow-server-service:5000"}
        literals = [f"--from-literal={name}={value}" for name, value in data.items()]
        kubectl("create", "secret", "generic", "iris-api-secrets", "-n", NAMESPACE, *literals)
        found.apply()
        wait_until_settled()
        train(tmp_path_factory.mktemp("train"))
        until(lambda: answers(key), seconds=90, every=1, what="the first predictions")
        yield found
    finally:
        remove()


def remove() -> None:
    kubectl("delete", "rayjob,rayservice", "--all", "-n", NAMESPACE, "--ignore-not-found", check=False)
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=240s", check=False)


def train(folder: Path) -> None:
    """The job of kuberay/train, by kustomize too."""
    train_folder = os.path.relpath(ROOT / "kuberay" / "train", folder)
    small = [{"op": "replace", "path": f"/spec/rayClusterSpec/headGroupSpec/{CONTAINER}", "value": "20m"}]
    patches = [{"target": {"kind": "RayJob"}, "patch": json.dumps(small)}]
    write_kustomization(folder, {"resources": [train_folder], "namespace": NAMESPACE, "images": images(), "patches": patches})
    kubectl("replace", "--force", "-f", "-", text=kubectl("kustomize", str(folder)))

    def status() -> bool:
        job = cluster.get("rayjob", "iris-train", NAMESPACE)
        assert field(job, "status.jobDeploymentStatus") != "Failed", field(job, "status.message")
        return bool(field(job, "status.jobStatus") == "SUCCEEDED")

    until(status, seconds=400, every=1, what="the first model")


def service() -> Json:
    return cluster.get("rayservice", "iris-api", NAMESPACE)


def ray_cluster() -> str:
    return str(field(service(), "status.activeServiceStatus.rayClusterName"))


def wait_until_settled() -> None:
    until(lambda: is_settled(service()), seconds=400, every=1, what="the application of the newest spec")


def answers(key: str) -> bool:
    """Whether 20 predictions in a row, on a connection each, are answered with this key."""
    try:
        return {cluster.request("/predict", key=key, row=ROW, port=PORT).status for _ in range(20)} == {200}
    except OSError:
        return False


def load(key: str) -> AbstractContextManager[Load]:
    return open_loop(f"http://127.0.0.1:{PORT}", ROW, key=key, rate=RATE, check=predicts, retry=False, keep_alive=False)


def pods() -> list[Json]:
    return cluster.pods("app=iris-api", NAMESPACE)


def identities() -> set[tuple[str, int]]:
    """Each pod with the restarts of its containers."""
    return {
        (pod["metadata"]["uid"], sum(status["restartCount"] for status in pod["status"]["containerStatuses"])) for pod in pods()
    }


def variable(pod: Json, name: str) -> str:
    return kubectl("-n", NAMESPACE, "exec", pod["metadata"]["name"], "-c", "ray-worker", "--", "printenv", name).strip()


def workers() -> list[Json]:
    return [pod for pod in pods() if pod["metadata"]["labels"]["component"] == "worker"]


def test_operator_and_autoscaler_change_nothing_that_the_folder_names(environment: Environment) -> None:
    """Exit code 1 would be a difference: what a controller with `selfHeal` would correct again and again."""
    process = subprocess.run(["kubectl", "diff", "-k", str(environment.folder)], capture_output=True, text=True, check=False)
    assert [line for line in process.stdout.splitlines() if line[:1] in "+-"] == [], process.stdout
    assert process.returncode == 0, process.stderr


def test_a_changed_key_reaches_the_replicas_without_a_restart_or_a_refused_request(environment: Environment, key: str) -> None:
    before, new = identities(), secrets.token_hex(32)

    def patch(**data: str | None) -> None:
        kubectl("-n", NAMESPACE, "patch", "secret", "iris-api-secrets", "--type=merge", "-p", json.dumps({"stringData": data}))

    try:
        with load(key) as old_clients:
            patch(API_KEY=new, API_KEY_PREVIOUS=key)
            until(lambda: answers(new), seconds=180, every=1, what="replicas that know the new key")
        with load(new) as new_clients:
            patch(API_KEY_PREVIOUS="")
            refused = until(lambda: refuses(key), seconds=180, every=1, what="replicas that refuse the old key")
        assert refused
    finally:
        patch(API_KEY=key, API_KEY_PREVIOUS="")
        until(lambda: answers(key), seconds=180, every=1, what="the first key")
    note(f"{old_clients}; {new_clients}")
    assert old_clients.failures == new_clients.failures == []
    assert identities() == before


def refuses(key: str) -> bool:
    return {cluster.request("/predict", key=key, row=ROW, port=PORT).status for _ in range(20)} == {403}


def test_a_changed_setting_replaces_the_ray_cluster_without_a_failed_request(environment: Environment, key: str) -> None:
    old_cluster, old = ray_cluster(), workers()
    assert {variable(pod, "LOG_LEVEL") for pod in old} == {"INFO"}
    environment.set("LOG_LEVEL=WARNING")
    with load(key) as record:
        environment.apply()
        until(lambda: ray_cluster() != old_cluster, seconds=400, every=1, what="a second Ray cluster")
        wait_until_settled()
        # A pod of the old cluster that starts now would still read the old settings.
        (name,) = {references(pod) for pod in old}
        assert cluster.get("configmap", name, NAMESPACE)["data"]["LOG_LEVEL"] == "INFO"
        before = record.finished
        until(lambda: record.finished >= before + 5 * RATE, seconds=60, what="requests after the upgrade")
    note(str(record))
    assert record.failures == []
    new = [pod for pod in workers() if pod["metadata"]["labels"]["ray.io/cluster"] == ray_cluster()]
    assert {variable(pod, "LOG_LEVEL") for pod in new} == {"WARNING"}
    assert cluster.get("configmap", "iris-api-config", NAMESPACE)["data"]["LOG_LEVEL"] == "WARNING", "what jobs read"


def references(pod: Json) -> str:
    """The generated ConfigMap that a pod reads."""
    sources = [source.get("configMapRef", {}).get("name", "") for source in pod["spec"]["containers"][0]["envFrom"]]
    (name,) = [name for name in sources if name.startswith("iris-api-overrides-")]
    return str(name)


def test_more_replicas_come_to_the_running_cluster(environment: Environment) -> None:
    before, name = identities(), ray_cluster()
    file = environment.folder / "serve.yaml"
    config = yaml.safe_load(file.read_text())
    config["applications"][0]["deployments"][0]["autoscaling_config"]["min_replicas"] = 3
    file.write_text(yaml.safe_dump(config))
    environment.apply()
    active = f"ray.io/cluster={name},component=worker"
    until(lambda: len(cluster.pods(active, NAMESPACE)) == 3, seconds=240, every=1, what="a third worker")
    assert ray_cluster() == name
    heads = {uid for uid, _ in before}
    assert heads & {pod["metadata"]["uid"] for pod in cluster.pods(f"ray.io/cluster={name},component=head", NAMESPACE)}
