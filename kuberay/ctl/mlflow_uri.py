"""MLFLOW_TRACKING_URI in the Secret, before a deployment: a bucket has its own overlay, and replicas take models from servers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kuberay.ctl import manifests
from kuberay.ctl.kube import MLFLOW_SERVICE, OVERRIDES, SECRET, STORE_CLAIM, Cluster, CommandError, Json, echo
from serve_app.mlflow_address import kind_of, refusal

DEFAULT_OVERLAY = "api"
BUCKET_OVERLAY = "gcs"


def overlay_for(cluster: Cluster, name: str, uri: str) -> Path:
    """The folder of the overlay `name`; that of `gcs` when the Secret names a bucket and the default would be new on this cluster.

    A namespace that has a store on a claim keeps it: there the user names the overlay.
    """
    if uri.startswith("gs://") and name == DEFAULT_OVERLAY and cluster.get("persistentvolumeclaim", STORE_CLAIM) is None:
        echo(f"  MLFLOW_TRACKING_URI in the Secret is {uri}: models come from this bucket (OVERLAY={BUCKET_OVERLAY})")
        name = BUCKET_OVERLAY
    return manifests.overlay(name)


def tracking_uri(cluster: Cluster) -> str:
    """MLFLOW_TRACKING_URI in the Secret that a deployment uses: in K8S_SECRET, else on the cluster; empty when it is in neither."""
    if cluster.secret_file.is_file():
        documents = manifests.parse(cluster, cluster.secret_file.read_text())
        secret = next((document for document in documents if document["metadata"]["name"] == SECRET), None)
    else:
        secret = cluster.get("secret", SECRET)
    return manifests.secret_value(secret, "MLFLOW_TRACKING_URI").strip()


def check(uri: str, documents: Iterable[Json]) -> None:
    """Raise CommandError when replicas cannot take models from `uri` and `documents` do not give them another address."""
    reason = refusal(uri) if uri else None
    if reason is None or any("MLFLOW_TRACKING_URI" in settings for settings in _overrides(documents)):
        return
    if not uri.startswith("gs://"):
        reason += f"; `make k8s-deploy-mlflow` starts one in the cluster, at http://{MLFLOW_SERVICE}:5000"
    if kind_of(uri) == "folder":
        reason += ', and with "" OVERLAY=hostpath serves the store in a folder of the node'
    raise CommandError(f"{reason} (MLFLOW_TRACKING_URI is in the Secret {SECRET})")


def next_training(uri: str) -> str:
    """The command that trains in a cluster whose Secret names `uri`."""
    return "make k8s-train TRAIN=kuberay/overlays/gcs/train" if uri.startswith("gs://") else "make k8s-train"


def _overrides(documents: Iterable[Json]) -> list[Json]:
    """The data of the overlay's own settings; kustomize adds a hash to the name of a generated ConfigMap."""
    configs = manifests.of_kind(documents, "ConfigMap")
    return [config.get("data", {}) for config in configs if config["metadata"]["name"].startswith(OVERRIDES)]
