"""The main story, in the order in which a user lives it: deploy, train, predict, replace, roll back, change, scale."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuberay.ctl import manifests
from kuberay.ctl.kube import Cluster
from tests.support import cluster
from tests.support.cluster import ROW, kubectl, load, make, request
from tests.support.figures import note
from tests.support.probe import Pod, other_namespace, pod
from tests.support.waiting import until

RATE = 50


def test_a_missing_secret_stops_the_deployment_with_one_sentence(empty: None, tmp_path: Path) -> None:
    result = make("k8s-deploy", K8S_SECRET=str(tmp_path / "secret.yaml"))
    assert result.code != 0
    (error,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert "secret.yaml" in error
    assert "openssl rand -hex 32" in error
    assert cluster.get("namespace", "mlops") == {}


def test_a_key_that_is_too_short_stops_the_deployment_too(empty: None, secret_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "secret.yaml"
    document = yaml.safe_load(secret_file.read_text())
    document["stringData"]["API_KEY"] = "short"
    file.write_text(yaml.safe_dump(document))
    result = make("k8s-deploy", K8S_SECRET=str(file))
    assert result.code != 0
    (error,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert "API_KEY" in error
    assert "openssl rand -hex 32" in error


def test_the_system_answers_before_there_is_a_model(deployed: str, key: str) -> None:
    assert "iris-api-service:8000" in deployed
    assert cluster.get("service", "iris-api-service")["spec"]["type"] == "ClusterIP"
    health = request("/health")
    assert (health.status, json.loads(health.body)["model_loaded"]) == (200, False)
    assert request("/predict", key=key, row=ROW).status == 503
    result = make("k8s-test")
    assert result.code != 0
    assert "make k8s-train" in result.output


def test_the_api_server_takes_every_object_without_a_warning(deployed: str) -> None:
    """Warnings of the restricted standard and of unknown fields come here. In a namespace of its own: claims cannot be changed."""
    namespace = (cluster.ROOT / "kuberay" / "base" / "namespace.yaml").read_text()
    kubectl("apply", "-f", "-", text=namespace.replace("mlops", "iris-dry-run"))
    files = sorted((cluster.ROOT / "kuberay").rglob("kustomization.yaml"))
    folders = [file.parent for file in files if "kind: Component" not in file.read_text()]
    user = Cluster(("kubectl",), "iris-dry-run")
    documents = {
        json.dumps(document): document for folder in folders for document in manifests.build(user, folder) if is_known(document)
    }
    for service in manifests.of_kind(documents.values(), "Service"):
        for port in service["spec"]["ports"]:
            port.pop("nodePort", None)  # the system that these tests deployed has it
    try:
        output = kubectl("apply", "--dry-run=server", "-f", "-", text=manifests.dump(documents.values()))
        assert "arning" not in output, output
    finally:
        kubectl("delete", "namespace", "iris-dry-run", "--wait=false")


def test_the_first_training_run_becomes_the_model_that_answers(trained: str, key: str) -> None:
    assert cluster.versions(key) == {"1"}
    response = request("/predict", key=key, row=ROW)
    assert (response.status, json.loads(response.body)["prediction"]) == (200, "setosa")
    assert request("/predict", key="wrong", row=ROW).status == 403
    assert make("k8s-test").code == 0


@pytest.fixture(scope="module")
def client(trained: str) -> Iterator[Pod]:
    """A pod in a namespace that is not the product's."""
    with other_namespace() as other, pod("client", {}, other) as client:
        yield client


def test_it_answers_under_the_cluster_address_and_through_the_ray_head_too(client: Pod, key: str) -> None:
    program = f"""
import json, urllib.request
for host in ("iris-api-service", "iris-api-head-svc"):
    request = urllib.request.Request(f"http://{{host}}.mlops:8000/predict", data=json.dumps({ROW}).encode(),
        headers={{"X-API-Key": "{key}", "Content-Type": "application/json"}})
    print(host, json.loads(urllib.request.urlopen(request, timeout=10).read())["prediction"])
"""
    assert client.run(program).splitlines() == ["iris-api-service setosa", "iris-api-head-svc setosa"]


def test_it_answers_grpc_under_the_same_addresses(client: Pod, key: str) -> None:
    ports = {port["name"]: port for port in cluster.get("service", "iris-api-service")["spec"]["ports"]}
    assert ports["serve-grpc"]["appProtocol"] == "kubernetes.io/h2c"
    for host in ("iris-api-service", "iris-api-head-svc"):
        answers = client.infers(f"{host}.mlops:9000", key, "IrisClassifier", ROW.values())
        assert answers == ["SERVING", "UNAUTHENTICATED", "1 setosa"], host


def test_the_run_is_in_mlflow(trained: str) -> None:
    program = (
        "import mlflow; mlflow.set_tracking_uri('http://mlflow-server-service.mlops.svc.cluster.local:5000');"
        "print(mlflow.MlflowClient().get_model_version_by_alias('IrisClassifier', 'champion').version)"
    )
    replica = Pod(cluster.pods("app=iris-api,component=worker")[0]["metadata"]["name"], "ray-worker")
    assert replica.run(program).splitlines()[0] == "1"


def test_a_new_model_goes_live_and_back_without_a_restart_or_a_lost_request(trained: str, key: str) -> None:
    before = {pod["metadata"]["uid"] for pod in cluster.pods("app=iris-api")}
    with load(RATE, key=key) as record:
        new = make("k8s-train", ARGS="--n-estimators 50 --tolerance 1")
        assert new.code == 0, new.output
        assert cluster.versions(key) == {"2"}
        back = make("k8s-rollback")
        assert back.code == 0, back.output
        assert cluster.versions(key) == {"1"}
    note(str(record))
    assert record.failures == []
    assert set(record.versions) == {"1", "2"}
    assert {pod["metadata"]["uid"] for pod in cluster.pods("app=iris-api")} == before
    served = [line.split()[1] for line in make("k8s-models").output.splitlines() if line.startswith("*")]
    assert served == ["1"]


def test_more_and_fewer_replicas_bring_and_take_pods_without_a_lost_request(trained: str, key: str) -> None:
    service = cluster.get("rayservice", "iris-api")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    scaling = config["applications"][0]["deployments"][0]["autoscaling_config"]
    try:
        with load(RATE, key=key) as record:
            set_config(config, scaling, min_replicas=4)
            until(lambda: ready_workers() == 4, seconds=240, every=1, what="four ready workers")
            set_config(config, scaling, min_replicas=2, downscale_delay_s=5)
            until(lambda: len(cluster.pods("app=iris-api,component=worker")) == 2, seconds=400, every=1, what="two workers")
    finally:
        patch_config(service["spec"]["serveConfigV2"])
    note(str(record))
    assert record.failures == []


def test_a_changed_setting_rolls_out_without_a_lost_request(trained: str, key: str, secret_file: Path, tmp_path: Path) -> None:
    old = {pod["metadata"]["uid"] for pod in cluster.pods("app=iris-api")}
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [os.path.relpath(cluster.ROOT / "kuberay" / "overlays" / "mlflow", tmp_path)],
                "patches": [
                    {
                        "target": {"kind": "ConfigMap", "name": "iris-api-config"},
                        "patch": json.dumps([{"op": "replace", "path": "/data/LOG_LEVEL", "value": "WARNING"}]),
                    }
                ],
            }
        )
    )
    with load(RATE, key=key) as record:
        result = make("k8s-deploy", OVERLAY=str(tmp_path), K8S_SECRET=str(secret_file))
        assert result.code == 0, result.output
        before = record.finished
        until(lambda: record.finished >= before + 5 * RATE, seconds=60, what="requests after the deployment")
    note(str(record))
    assert record.failures == []
    new = [pod for pod in cluster.pods("app=iris-api,component=worker") if pod["metadata"]["uid"] not in old]
    assert len(new) == 2
    level = kubectl("-n", "mlops", "exec", new[0]["metadata"]["name"], "-c", "ray-worker", "--", "printenv", "LOG_LEVEL")
    assert level.strip() == "WARNING"


def is_known(document: dict[str, Any]) -> bool:
    """Whether every test cluster knows the kind: not cert-manager's, not External Secrets', not always the Gateway API's."""
    return document["apiVersion"].partition("/")[0] not in ("cert-manager.io", "external-secrets.io", "gateway.networking.k8s.io")


def ready_workers() -> int:
    return cluster.ready("app=iris-api,component=worker")


def set_config(config: dict[str, Any], scaling: dict[str, Any], **values: int) -> None:
    scaling.update(values)
    patch_config(yaml.safe_dump(config))


def patch_config(text: str) -> None:
    kubectl("-n", "mlops", "patch", "rayservice", "iris-api", "--type=merge", "-p", json.dumps({"spec": {"serveConfigV2": text}}))
