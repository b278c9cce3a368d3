"""The end: the workloads go and the models stay; then everything goes. Runs last."""

from __future__ import annotations

import json

from tests.support import cluster
from tests.support.cluster import kubectl, make


def test_delete_keeps_models_and_secret_and_says_so(trained: str) -> None:
    result = make("k8s-delete")
    assert result.code == 0, result.output
    assert cluster.get("persistentvolumeclaim", "models-pvc")["status"]["phase"] == "Bound"
    assert cluster.get("secret", "iris-api-secrets")
    remaining = json.loads(kubectl("-n", "mlops", "get", "rayservices,rayclusters,rayjobs,deployments,pods,services", "-o", "json"))
    assert [item["metadata"]["name"] for item in remaining["items"]] == []


def test_clean_leaves_nothing(trained: str) -> None:
    result = make("k8s-clean")
    assert result.code == 0, result.output
    assert cluster.get("namespace", "mlops") == {}
    volumes = json.loads(kubectl("get", "persistentvolumes", "-o", "json"))["items"]
    assert [
        volume["metadata"]["name"] for volume in volumes if volume["spec"].get("claimRef", {}).get("namespace") == "mlops"
    ] == []
    assert make("k8s-clean").code == 0
