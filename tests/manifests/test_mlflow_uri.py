"""MLFLOW_TRACKING_URI in the Secret, before `make k8s-deploy`: which overlay it means, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kuberay.ctl import manifests, mlflow_uri
from kuberay.ctl.kube import KUBERAY, SECRET, Cluster, CommandError, Json

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="NOT TESTED: kubectl is not installed")


def a_cluster(folder: Path, *, claims: tuple[str, ...] = (), uri: str = "") -> Cluster:
    """A cluster whose kubectl knows these claims and a Secret with this address, and nothing else."""
    objects = {f"persistentvolumeclaim/{name}": {"metadata": {"name": name}} for name in claims}
    objects[f"secret/{SECRET}"] = {"metadata": {"name": SECRET}, "stringData": {"MLFLOW_TRACKING_URI": uri}}
    for name, document in objects.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))
    kubectl = folder / "kubectl"
    kubectl.write_text(f'#!/bin/sh\ncat "{folder}/$4/$5" 2>/dev/null || true\n')
    kubectl.chmod(0o755)
    return Cluster((str(kubectl),), "mlops", secret_file=folder / "no-secret.yaml")


@pytest.mark.parametrize(
    ("name", "uri", "claims", "overlay"),
    [
        ("api", "gs://bucket/mlruns", (), "gcs"),
        ("api", "gs://bucket/mlruns", ("models-pvc",), "api"),
        ("mlflow", "gs://bucket/mlruns", (), "mlflow"),
        ("api", "http://mlflow:5000", (), "api"),
        ("api", "s3://bucket", (), "api"),
        ("api", "", (), "api"),
    ],
)
def test_a_bucket_means_its_overlay_where_no_store_exists(
    tmp_path: Path, name: str, uri: str, claims: tuple[str, ...], overlay: str
) -> None:
    assert mlflow_uri.overlay_for(a_cluster(tmp_path, claims=claims), name, uri) == manifests.overlay(overlay)


def test_the_address_is_read_from_the_cluster_when_there_is_no_file(tmp_path: Path) -> None:
    assert mlflow_uri.tracking_uri(a_cluster(tmp_path, uri="gs://bucket/mlruns\n")) == "gs://bucket/mlruns"


@needs_kubectl
def test_the_address_is_read_from_the_users_file_first(tmp_path: Path) -> None:
    file = tmp_path / "secret.yaml"
    text = (KUBERAY / "base" / "secret.yaml.example").read_text()
    file.write_text(text.replace("http://mlflow-server-service:5000", "s3://bucket"))
    assert mlflow_uri.tracking_uri(Cluster(("kubectl",), "mlops", secret_file=file)) == "s3://bucket"


def overrides(name: str) -> Json:
    return {"kind": "ConfigMap", "metadata": {"name": name}, "data": {"MLFLOW_TRACKING_URI": "http://mlflow-server-service:5000"}}


@pytest.mark.parametrize(
    ("uri", "fix"),
    [
        ("gs://bucket/mlruns", "make k8s-deploy OVERLAY=gcs"),
        ("s3://bucket/mlruns", "--artifacts-destination s3://bucket/mlruns"),
        ("file:///app/mlruns", "OVERLAY=hostpath"),
        ("./mlruns", "mlflow migrate-filestore"),
        ("sqlite:////app/mlflow.db", "mlflow server"),
        ("mlflow-server-service:5000", "http://HOST:PORT"),
    ],
)
def test_an_address_that_replicas_cannot_use_is_refused_unless_the_overlay_gives_another(uri: str, fix: str) -> None:
    with pytest.raises(CommandError, match=SECRET) as refused:
        mlflow_uri.check(uri, [{"kind": "ConfigMap", "metadata": {"name": "iris-api-overrides"}, "data": {"LOG_LEVEL": "INFO"}}])
    assert fix in str(refused.value)
    mlflow_uri.check(uri, [overrides("iris-api-overrides")])
    mlflow_uri.check(uri, [overrides("iris-api-overrides-5f2g7c8h")])


@pytest.mark.parametrize("uri", ["", "http://mlflow-server-service:5000", "https://mlflow.example"])
def test_a_server_or_nothing_is_accepted(uri: str) -> None:
    mlflow_uri.check(uri, [])
    assert mlflow_uri.next_training(uri) == "make k8s-train"
