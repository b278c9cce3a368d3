"""An environment as a GitOps controller applies it: `kubectl apply -k` of one folder without make, in a namespace of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support import cluster
from tests.support.cluster import ROOT, kubectl
from tests.support.environment import RATE, Environment, deployed
from tests.support.figures import note
from tests.support.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

Json = dict[str, Any]


@pytest.fixture(scope="module")
def key() -> str:
    return secrets.token_hex(32)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, key: str) -> Iterator[Environment]:
    """A copy of kuberay/gitops/production, as a folder of a repository, and applied."""
    source = ROOT / "kuberay" / "gitops" / "production"
    folder = tmp_path_factory.mktemp("repository") / "production"
    shutil.copytree(source, folder)
    document = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for name in ("resources", "components"):
        document[name] = [os.path.relpath((source / path).resolve(), folder) for path in document[name]]
    environment = Environment(folder, "iris-gitops", 30093)
    ports = [{"name": "serve", "port": 8000, "targetPort": 8000, "nodePort": environment.port}]
    node_port = {"op": "replace", "path": "/spec/serveService/spec", "value": {"type": "NodePort", "ports": ports}}
    environment.write(document, [node_port])
    with deployed(environment, key, tmp_path_factory.mktemp("train")):
        yield environment


def test_operator_and_autoscaler_change_nothing_that_the_folder_names(environment: Environment) -> None:
    """A difference is what a controller would correct again and again."""
    process = subprocess.run(["kubectl", "diff", "-k", str(environment.folder)], capture_output=True, text=True, check=False)
    assert [line for line in process.stdout.splitlines() if line[:1] in "+-"] == [], process.stdout
    assert process.returncode == 0, process.stderr


def test_a_changed_key_reaches_the_replicas_without_a_restart_or_a_refused_request(environment: Environment, key: str) -> None:
    before, new = restarts(environment), secrets.token_hex(32)

    def patch(**data: str) -> None:
        secret = ("patch", "secret", "iris-api-secrets", "--type=merge", "-p", json.dumps({"stringData": data}))
        kubectl("-n", environment.namespace, *secret)

    try:
        with environment.load(key) as old_clients:
            patch(API_KEY=new, API_KEY_PREVIOUS=key)
            until(lambda: environment.statuses(new) == {200}, seconds=180, every=1, what="replicas that know the new key")
        with environment.load(new) as new_clients:
            patch(API_KEY_PREVIOUS="")
            until(lambda: environment.statuses(key) == {403}, seconds=180, every=1, what="replicas that refuse the old key")
    finally:
        patch(API_KEY=key, API_KEY_PREVIOUS="")
        until(lambda: environment.statuses(key) == {200}, seconds=180, every=1, what="the first key")
    note(f"old key: {old_clients} {dict(old_clients.statuses)}; new key: {new_clients} {dict(new_clients.statuses)}")
    assert old_clients.failures == new_clients.failures == []
    assert restarts(environment) == before


def restarts(environment: Environment) -> set[tuple[str, int]]:
    """Each pod with the restarts of its containers."""
    return {
        (pod["metadata"]["uid"], sum(status["restartCount"] for status in pod["status"]["containerStatuses"]))
        for component in ("head", "worker")
        for pod in environment.pods(component)
    }


def test_a_changed_setting_replaces_the_ray_cluster_without_a_failed_request(environment: Environment, key: str) -> None:
    old_cluster, old = environment.ray_cluster(), environment.pods()
    assert {level(environment, pod) for pod in old} == {"INFO"}
    file = environment.folder / "settings.env"
    file.write_text(file.read_text().replace("LOG_LEVEL=INFO", "LOG_LEVEL=WARNING"))
    with environment.load(key) as record:
        environment.apply()
        environment.wait_for_another_cluster(old_cluster)
        # A pod of the old cluster that starts now still reads the old settings.
        (name,) = {settings(pod) for pod in old}
        assert cluster.get("configmap", name, environment.namespace)["data"]["LOG_LEVEL"] == "INFO"
        before = record.finished
        until(lambda: record.finished >= before + 5 * RATE, seconds=60, what="requests after the upgrade")
    note(f"{record} {dict(record.statuses)}")
    assert record.failures == []
    new = [pod for pod in environment.pods() if pod["metadata"]["labels"]["ray.io/cluster"] == environment.ray_cluster()]
    assert {level(environment, pod) for pod in new} == {"WARNING"}
    assert cluster.get("configmap", "iris-api-config", environment.namespace)["data"]["LOG_LEVEL"] == "WARNING", "what jobs read"


def level(environment: Environment, pod: Json) -> str:
    pod_name = pod["metadata"]["name"]
    return kubectl("-n", environment.namespace, "exec", pod_name, "-c", "ray-worker", "--", "printenv", "LOG_LEVEL").strip()


def settings(pod: Json) -> str:
    """The generated ConfigMap that a pod reads."""
    sources = [source.get("configMapRef", {}).get("name", "") for source in pod["spec"]["containers"][0]["envFrom"]]
    (name,) = [name for name in sources if name.startswith("iris-api-overrides-")]
    return str(name)


def test_more_replicas_come_to_the_running_cluster(environment: Environment) -> None:
    name = environment.ray_cluster()
    file = environment.folder / "serve.yaml"
    config = yaml.safe_load(file.read_text())
    config["applications"][0]["deployments"][0]["autoscaling_config"]["min_replicas"] = 3
    file.write_text(yaml.safe_dump(config))
    environment.apply()
    active = f"ray.io/cluster={name},component=worker"
    until(lambda: len(cluster.pods(active, environment.namespace)) == 3, seconds=240, every=1, what="a third worker")
    assert environment.ray_cluster() == name
