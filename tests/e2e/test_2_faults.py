"""What a user sees when something is wrong: the served model stays, and one line names cause and fix."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import yaml

from tests.support import cluster
from tests.support.cluster import ROW, kubectl, make, request
from tests.support.waiting import until


def test_a_healthy_system_has_nothing_for_the_doctor(trained: str) -> None:
    assert cluster.doctor() == {}


def test_a_broken_serve_config_is_told_although_the_service_stays_ready(trained: str, key: str) -> None:
    service = cluster.get("rayservice", "iris-api")
    text = service["spec"]["serveConfigV2"]
    assert "serve_app.deployment:app" in text
    try:
        patch_config(text.replace("serve_app.deployment:app", "serve_app.deployment:no_such_app"))
        until(lambda: application_status() == "DEPLOY_FAILED", seconds=120, every=1, what="a failed application")
        conditions = {item["type"]: item["status"] for item in cluster.get("rayservice", "iris-api")["status"]["conditions"]}
        assert conditions["Ready"] == "True"
        assert request("/predict", key=key, row=ROW).status == 200
        fault = cluster.doctor()["application iris-api"]
        assert "DEPLOY_FAILED" in fault
        assert "no_such_app" in fault
    finally:
        patch_config(text)
    until(lambda: application_status() == "RUNNING", seconds=120, every=1, what="the repaired application")


def test_a_key_that_is_too_short_keeps_the_new_pods_out_and_the_old_ones_in(trained: str, key: str, secret_file: Path) -> None:
    short = json.dumps({"data": {"API_KEY": base64.b64encode(b"short").decode()}})
    try:
        kubectl("-n", "mlops", "patch", "secret", "iris-api-secrets", "--type=merge", "-p", short)
        assert "32" in cluster.doctor()["Secret iris-api-secrets"]
        roll_out("short-key")
        until(lambda: "API_KEY" in pending_message(), seconds=240, every=1, what="the new pods' refusal")
        assert request("/predict", key=key, row=ROW).status == 200
    finally:
        result = make("k8s-deploy-mlflow", K8S_SECRET=str(secret_file))
    assert result.code == 0, result.output
    assert request("/predict", key=key, row=ROW).status == 200


def test_a_full_volume_fails_the_training_and_leaves_the_served_model(trained: str, key: str, tmp_path: Path) -> None:
    served = request("/model/info", key=key).version
    tiny = {"name": "models", "emptyDir": {"medium": "Memory", "sizeLimit": "16Ki"}}
    folder = train_overlay(
        tmp_path,
        [
            {"op": "replace", "path": "/spec/backoffLimit", "value": 0},
            {"op": "replace", "path": "/spec/rayClusterSpec/headGroupSpec/template/spec/volumes/1", "value": tiny},
        ],
    )
    result = make("k8s-train", TRAIN=str(folder))
    assert result.code != 0
    # The job prints an error of its own before that of the command.
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert "No space left" in errors[-1]
    assert request("/model/info", key=key).version == served
    assert "No space left" in cluster.doctor()["RayJob iris-train-job"]


def test_an_image_that_is_nowhere_is_named_with_the_way_to_load_it(trained: str) -> None:
    result = make("k8s-train", TRAIN_IMAGE="nowhere.invalid/iris-train:1")
    assert result.code != 0
    assert "nowhere.invalid/iris-train:1" in result.output
    assert "make k8s-load" in result.output
    kubectl("-n", "mlops", "delete", "rayjob", "iris-train-job", "--wait=true")


def faults_of(prefix: str) -> str:
    """What the doctor reports of the objects whose kind and name begin so."""
    return "".join(text for name, text in cluster.doctor().items() if name.startswith(prefix))


def application_status() -> str:
    status = cluster.get("rayservice", "iris-api")["status"]["activeServiceStatus"]["applicationStatuses"]
    return str(status["iris-api"]["status"])


def pending_message() -> str:
    pending = cluster.get("rayservice", "iris-api")["status"].get("pendingServiceStatus", {})
    return json.dumps(pending.get("applicationStatuses", {}))


def patch_config(text: str) -> None:
    kubectl("-n", "mlops", "patch", "rayservice", "iris-api", "--type=merge", "-p", json.dumps({"spec": {"serveConfigV2": text}}))


def roll_out(mark: str) -> None:
    """New pods, as docs/how-to/upgrade.md says for those who use kubectl alone."""
    kubectl("-n", "mlops", "patch", "rayservice", "iris-api", "--type=json", "-p", json.dumps(cluster.roll_out_operations(mark)))


def train_overlay(folder: Path, operations: list[dict[str, Any]]) -> Path:
    document = {
        "resources": [os.path.relpath(cluster.ROOT / "kuberay" / "train", folder)],
        "patches": [{"target": {"kind": "RayJob"}, "patch": json.dumps(operations)}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(document))
    return folder


def test_the_doctor_names_a_host_that_mlflow_refuses(trained: str) -> None:
    program = "import urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:5000/api/2.0/mlflow/experiments/get?experiment_id=0', headers={'Host': 'other:5000'}))"  # noqa: E501
    output = kubectl("-n", "mlops", "exec", "deployment/mlflow-server", "--", "python", "-c", program, check=False)
    assert "403" in output
    assert "other:5000" in cluster.doctor()["MLflow"]


def test_the_doctor_names_a_bucket_without_its_overlay(trained: str) -> None:
    before = cluster.get("secret", "iris-api-secrets")["data"]
    bucket = base64.b64encode(b"gs://bucket/mlruns").decode()
    try:
        kubectl(
            "-n",
            "mlops",
            "patch",
            "secret",
            "iris-api-secrets",
            "--type=merge",
            "-p",
            json.dumps({"data": {"MLFLOW_TRACKING_URI": bucket}}),
        )
        assert "OVERLAY=gcs" in cluster.doctor()["Secret iris-api-secrets"]
    finally:
        kubectl("-n", "mlops", "patch", "secret", "iris-api-secrets", "--type=merge", "-p", json.dumps({"data": before}))


def test_the_doctor_names_a_claim_that_no_class_fulfils(trained: str) -> None:
    claim = yaml.safe_load((cluster.ROOT / "kuberay" / "base" / "models-pvc.yaml").read_text())
    claim["metadata"]["name"] = "no-class"
    claim["spec"]["storageClassName"] = "no-such-class"
    kubectl("apply", "-f", "-", text=yaml.safe_dump(claim))
    try:
        until(lambda: "no-such-class" in cluster.doctor().get("claim no-class", ""), seconds=60, every=1, what="the claim's fault")
    finally:
        kubectl("-n", "mlops", "delete", "pvc", "no-class")


def test_the_doctor_names_a_version_of_ray_that_the_images_do_not_have(trained: str) -> None:
    """On the finished RayJob: the operator leaves it alone."""
    patch = json.dumps({"spec": {"rayClusterSpec": {"rayVersion": "2.40.0"}}})
    if not cluster.get("rayjob", "iris-train-job"):
        assert make("k8s-train", ARGS="--tolerance 1").code == 0
    kubectl("-n", "mlops", "patch", "rayjob", "iris-train-job", "--type=merge", "-p", patch)
    assert "2.40.0" in cluster.doctor()["RayJob iris-train-job"]


def test_the_doctor_names_a_memory_limit_that_killed_a_container(trained: str) -> None:
    limit = [
        {
            "op": "replace",
            "path": "/spec/template/spec/containers/0/resources",
            "value": {"limits": {"memory": "200Mi", "cpu": "1"}},
        }
    ]
    kubectl("-n", "mlops", "patch", "deployment", "mlflow-server", "--type=json", "-p", json.dumps(limit))
    try:
        until(
            lambda: "resources.limits.memory" in faults_of("pod mlflow-server"),
            seconds=180,
            every=2,
            what="the killed container",
        )
        assert "200 MiB" in faults_of("container mlflow")
    finally:
        kubectl("-n", "mlops", "rollout", "undo", "deployment/mlflow-server")
        kubectl("-n", "mlops", "rollout", "status", "deployment/mlflow-server", "--timeout=180s")


def test_the_doctor_names_a_pod_that_no_node_has_room_for(trained: str) -> None:
    job = yaml.safe_load((cluster.ROOT / "kuberay" / "train" / "store-job.yaml").read_text())
    job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "500"
    kubectl("apply", "-f", "-", text=yaml.safe_dump(job))
    try:
        until(lambda: "Insufficient cpu" in faults_of("pod iris-store"), seconds=60, every=1, what="the pod's fault")
    finally:
        kubectl("-n", "mlops", "delete", "job", "iris-store")
