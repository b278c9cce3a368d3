"""Checks of MLFLOW_TRACKING_URI in the Secret before a deployment: a bucket needs its own overlay, and replicas need a server."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kuberay.ctl import manifests
from kuberay.ctl.kube import MLFLOW_SERVICE, OVERRIDES, SECRET, STORE_CLAIM, Cluster, CommandError, Json, echo
from serve_app.mlflow_address import kind_of, refusal

DEFAULT_OVERLAY = "api"
BUCKET_OVERLAY = "gcs"


def overlay_for(cluster: Cluster, name: str, uri: str) -> Path:
    """The folder of the overlay `name`, or of `gcs` when the Secret names a bucket and the default overlay is new on this cluster.

    A namespace with a store on a claim keeps its overlay unless the user names `gcs`.
    """
    if uri.startswith("gs://") and name == DEFAULT_OVERLAY and cluster.get("persistentvolumeclaim", STORE_CLAIM) is None:
        echo(f"  MLFLOW_TRACKING_URI in the Secret is {uri}: models come from this bucket (OVERLAY={BUCKET_OVERLAY})")
        name = BUCKET_OVERLAY
    return manifests.overlay(name)


def tracking_uri(cluster: Cluster) -> str:
    """MLFLOW_TRACKING_URI in the Secret of a deployment: from K8S_SECRET, else from the cluster; empty when neither has it."""
    if cluster.secret_file.is_file():
        documents = manifests.parse(cluster, cluster.secret_file.read_text())
        secret = next((document for document in documents if document["metadata"]["name"] == SECRET), None)
    else:
        secret = cluster.get("secret", SECRET)
    return manifests.secret_value(secret, "MLFLOW_TRACKING_URI").strip()


def check(uri: str, documents: Iterable[Json]) -> None:
    """Raise CommandError when replicas cannot take models from `uri` and `documents` set no other address."""
    reason = refusal(uri) if uri else None
    if reason is None or any("MLFLOW_TRACKING_URI" in settings for settings in _overrides(documents)):
        return
    if not uri.startswith("gs://"):
        reason += f"; `make k8s-deploy-mlflow` starts one in the cluster, at http://{MLFLOW_SERVICE}:5000"
    if kind_of(uri) == "folder":
        reason += '; for a store in a folder of the node, set it to "" and use OVERLAY=hostpath'
    raise CommandError(f"{reason} (MLFLOW_TRACKING_URI is in the Secret {SECRET})")


def next_training(uri: str) -> str:
    """The command for a training in a cluster whose Secret names `uri`."""
    return "make k8s-train TRAIN=kuberay/overlays/gcs/train" if uri.startswith("gs://") else "make k8s-train"


def _overrides(documents: Iterable[Json]) -> list[Json]:
    """The data of the overlay's own ConfigMaps; kustomize adds a hash to the name of a generated ConfigMap."""
    configs = manifests.of_kind(documents, "ConfigMap")
    return [config.get("data", {}) for config in configs if config["metadata"]["name"].startswith(OVERRIDES)]
