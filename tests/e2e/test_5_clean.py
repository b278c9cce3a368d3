"""The end: the workloads go and the models stay; then everything goes. Runs last."""

from __future__ import annotations

import json

from tests.support import cluster
from tests.support.cluster import kubectl, make


def test_delete_keeps_models_and_secret_and_says_so(trained: str) -> None:
    done = make("k8s-delete")
    assert done.code == 0, done.output
    assert "stay" in done.output
    assert cluster.get("persistentvolumeclaim", "models-pvc")["status"]["phase"] == "Bound"
    assert cluster.get("secret", "iris-api-secrets")
    left = json.loads(kubectl("-n", "mlops", "get", "rayservices,rayclusters,rayjobs,deployments,pods,services", "-o", "json"))
    assert [item["metadata"]["name"] for item in left["items"]] == []


def test_clean_leaves_nothing(trained: str) -> None:
    done = make("k8s-clean")
    assert done.code == 0, done.output
    assert "everything is gone" in done.output
    assert cluster.get("namespace", "mlops") == {}
    volumes = json.loads(kubectl("get", "persistentvolumes", "-o", "json"))["items"]
    assert [one["metadata"]["name"] for one in volumes if one["spec"].get("claimRef", {}).get("namespace") == "mlops"] == []
    assert "nothing to do" in make("k8s-clean").output
