"""Each overlay is deployed on an empty namespace and does what its first line promises."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import cluster
from tests.support.cluster import ROW, kubectl, load, make, request
from tests.support.figures import note
from tests.support.probe import Pod, pod
from tests.support.waiting import until

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@contextlib.contextmanager
def variant(name: str, secret: Path) -> Iterator[str]:
    """One overlay on an empty namespace; gives the API key."""
    assert make("k8s-clean").code == 0
    result = make("k8s-deploy", OVERLAY=name, K8S_SECRET=str(secret))
    assert result.code == 0, result.output
    cluster.open_port()
    try:
        yield cluster.api_key()
    finally:
        assert make("k8s-clean").code == 0


def predicts(key: str) -> None:
    reply = request("/predict", key=key, row=ROW)
    assert (reply.status, json.loads(reply.body)["prediction"]) == (200, "setosa")


def test_models_live_in_a_bucket(secret_file: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(secret_file.read_text())
    document["stringData"]["MLFLOW_TRACKING_URI"] = "gs://iris-models/mlruns"
    secret = tmp_path / "secret.yaml"
    secret.write_text(yaml.safe_dump(document))
    with variant("gcs-emulator", secret) as key:
        for version in ("1", "2"):
            result = make("k8s-train", TRAIN="kuberay/overlays/gcs/train")
            assert result.code == 0, result.output
            assert cluster.versions(key) == {version}
        predicts(key)
        program = (
            "import json, urllib.request;"
            "objects = json.load(urllib.request.urlopen('http://fake-gcs:4443/storage/v1/b/iris-models/o?prefix=mlruns/'));"
            "print(sum(item['name'].endswith('model.onnx') for item in objects['items']))"
        )
        output = kubectl("-n", "mlops", "exec", "deployment/mlflow-server", "-c", "mlflow", "--", "python", "-c", program)
        assert int(output.split()[0]) >= 2
        client = "import mlflow; mlflow.MlflowClient('http://localhost:5000')"
        program = f"{client}.set_registered_model_alias('IrisClassifier', 'champion', '1')"
        kubectl("-n", "mlops", "exec", "deployment/mlflow-server", "-c", "mlflow", "--", "python", "-c", program)
        until(
            lambda: cluster.versions(key) == {"1"},
            seconds=90,
            every=1,
            what="the first version",
        )
        assert make("k8s-rollback").code != 0


def test_the_loss_of_the_head_is_not_felt_with_redis(secret_file: Path) -> None:
    with variant("ha-redis", secret_file) as key:
        assert make("k8s-train").code == 0
        (head,) = cluster.pods("app=iris-api,component=head")
        workers = {pod["metadata"]["uid"] for pod in cluster.pods("app=iris-api,component=worker")}
        with load(50, key=key) as record:
            kubectl("-n", "mlops", "delete", "pod", head["metadata"]["name"], "--grace-period=0", "--force")
            until(lambda: new_head(head["metadata"]["uid"]), seconds=240, every=1, what="a new head")
        note(str(record))
        assert record.failures == []
        assert {pod["metadata"]["uid"] for pod in cluster.pods("app=iris-api,component=worker")} == workers
        redis = (cluster.get("pod", "iris-redis-0")["status"]["podIP"], 6379)
        (head,) = cluster.pods("app=iris-api,component=head")
        assert Pod(head["metadata"]["name"], "ray-head").reaches([redis]) == {redis}
        ping = "import socket; s = socket.create_connection(('iris-redis', 6379)); s.sendall(b'PING\\r\\n'); print(s.recv(99))"
        assert "NOAUTH" in Pod(head["metadata"]["name"], "ray-head").run(ping)
        with pod("unlabelled", {}) as stranger, pod("trainer", {"iris-api/role": "training"}) as trainer:
            assert stranger.reaches([redis]) == trainer.reaches([redis]) == set()


def test_mlflow_asks_for_a_password(secret_file: Path) -> None:
    with variant("mlflow-auth", secret_file) as key:
        result = make("k8s-train")
        assert result.code == 0, result.output
        assert cluster.versions(key) == {"1"}
        predicts(key)
        replica = Pod(cluster.pods("app=iris-api,component=worker")[0]["metadata"]["name"], "ray-worker")
        mlflow = "http://mlflow-server-service:5000"
        search = ("POST", f"{mlflow}/api/2.0/mlflow/registered-models/search", "{}")
        assert replica.status(*search) == replica.status("GET", mlflow) == "401"
        assert replica.status("GET", f"{mlflow}/api/2.0/mlflow-artifacts/artifacts") == "401"
        assert replica.status("GET", f"{mlflow}/health") == "200"
        client = "import mlflow; client = mlflow.MlflowClient('http://mlflow-server-service:5000');"
        program = f"{client} print(client.get_model_version_by_alias('IrisClassifier', 'champion').version)"
        assert replica.run(program).splitlines()[0] == "1"
        # A replica reads: it neither moves the alias nor changes the run that it serves.
        changes = {
            "alias": "client.set_registered_model_alias('IrisClassifier', 'champion', '1')",
            "tag": "client.set_tag(client.search_runs(['1'])[0].info.run_id, 'note', '0')",
        }
        for name, change in changes.items():
            attempt = (
                f"{client}\ntry:\n {change}\nexcept mlflow.MlflowException as error:\n print('Permission denied' in str(error))"
            )
            assert replica.run(attempt).split()[-1:] == ["True"], name
        assert make("k8s-models").code == 0
        held = {"iris-api": "ray-worker", "mlflow-server": "mlflow"}
        for app, container in held.items():
            name = cluster.pods(f"app={app}")[-1]["metadata"]["name"]
            assert "ADMIN_PASSWORD" not in kubectl("-n", "mlops", "exec", name, "-c", container, "--", "env")
        note("an anonymous client gets 401, a replica reads and gets 403 for 2 of 2 changes")


def test_signed_models_are_served_and_others_refused(secret_file: Path) -> None:
    assert make("k8s-clean").code == 0
    try:
        assert make("k8s-deploy", OVERLAY="signing", K8S_SECRET=str(secret_file)).code != 0, "without a key pair"
        assert make("k8s-signing-keys").code == 0
        result = make("k8s-deploy", OVERLAY="signing", K8S_SECRET=str(secret_file))
        assert result.code == 0, result.output
        cluster.open_port()
        key = cluster.api_key()
        for version in ("1", "2"):
            result = make("k8s-train")
            assert result.code == 0, result.output
            assert cluster.versions(key) == {version}
        assert make("k8s-rollback").code == 0
        assert cluster.versions(key) == {"1"}
        with pod("writer", {}, claims={"models-pvc": "/app/models"}) as writer:
            writer.run("import pathlib; [p.unlink() for p in pathlib.Path('/app/models/bundles').glob('2-*/*.sig')]")
        result = make("k8s-promote", VERSION="2")
        assert result.code != 0
        assert "unsigned" in result.output
        assert cluster.versions(key) == {"1"}
        predicts(key)
        note("2 signed models served, 1 without its signature refused, the model before it kept")
    finally:
        assert make("k8s-clean").code == 0


def new_head(old: str) -> bool:
    heads = {pod["metadata"]["uid"] for pod in cluster.pods("app=iris-api,component=head")}
    return old not in heads and cluster.ready("app=iris-api,component=head") == 1


def test_a_search_uses_workers_of_its_own(secret_file: Path) -> None:
    with variant("mlflow", secret_file) as key:
        result = make("k8s-train", TRAIN="search")
        assert result.code == 0, result.output
        assert cluster.versions(key) == {"1"}
        entrypoint = cluster.get("rayjob", "iris-train-job")["spec"]["entrypoint"]
        assert "--search" in entrypoint
        predicts(key)


def test_the_schedule_creates_training_jobs_and_may_do_nothing_else(secret_file: Path) -> None:
    with variant("schedule", secret_file) as key:
        kubectl("-n", "mlops", "create", "job", "by-hand", "--from=cronjob/iris-train-schedule")
        until(lambda: job_status("by-hand-ray") == "SUCCEEDED", seconds=300, every=1, what="the scheduled training")
        until(lambda: request("/predict", key=key, row=ROW).status == 200, seconds=30, what="a prediction")
        account = "system:serviceaccount:mlops:iris-train-schedule"
        allowed = kubectl("-n", "mlops", "auth", "can-i", "--list", f"--as={account}", "--no-headers")
        assert [line.split()[0] for line in allowed.splitlines() if "ray.io" in line] == ["rayjobs.ray.io"]
        assert kubectl("-n", "mlops", "auth", "can-i", "get", "secrets", f"--as={account}", check=False).split()[0] == "no"
        kubectl("-n", "mlops", "delete", "job", "by-hand")
        until(lambda: cluster.get("rayjob", "by-hand-ray") == {}, seconds=120, every=1, what="the end of the RayJob with its Job")


def job_status(name: str) -> str:
    return str(cluster.get("rayjob", name).get("status", {}).get("jobStatus", ""))


def test_a_laptop_runs_it_in_one_worker(secret_file: Path) -> None:
    with variant("laptop", secret_file) as key:
        assert make("k8s-train").code == 0
        predicts(key)
        assert len(cluster.pods("app=iris-api,component=worker")) == 1


def test_models_trained_on_the_node_are_served_from_its_folder(secret_file: Path, tmp_path: Path) -> None:
    if not node_is_here():
        pytest.skip("NOT TESTED: the cluster's node is another machine, so its folder cannot be filled from here")
    models = Path("/var/tmp/iris-api-e2e-models")
    subprocess.run([sys.executable, "-m", "training", "--no-tracking", "--model-dir", str(models)], cwd=cluster.ROOT, check=True)
    volume = [{"op": "replace", "path": "/spec/hostPath/path", "value": str(models)}]
    document = {
        "resources": [os.path.relpath(cluster.ROOT / "kuberay" / "overlays" / "hostpath", tmp_path)],
        "patches": [{"target": {"kind": "PersistentVolume"}, "patch": json.dumps(volume)}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(document))
    with variant(str(tmp_path), secret_file) as key:
        predicts(key)
    assert (models / "current").exists()


def node_is_here() -> bool:
    addresses = json.loads(kubectl("get", "nodes", "-o", "json"))["items"][0]["status"]["addresses"]
    for address in addresses:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((address["address"], 0))
            return True
    return False
