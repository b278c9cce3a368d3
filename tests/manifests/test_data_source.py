"""The component data-source: it reaches every kind of job, and opens one port."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.shipped import KUBERAY, pod_templates

COMPONENTS = ("data-source", "data-source-identity")


def rendered(folder: Path, *resources: str) -> list[dict[str, Any]]:
    """Resources of kuberay/ with both components, as an overlay of a user renders them."""
    if shutil.which("kubectl") is None:
        pytest.skip("NOT TESTED: kubectl is not installed, so no kustomization was built")
    relative = Path(os.path.relpath(KUBERAY, folder.resolve()))
    document = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(relative / resource) for resource in resources],
        "components": [str(relative / "components" / component) for component in COMPONENTS],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(document))
    process = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return list(yaml.safe_load_all(process.stdout))


@pytest.mark.parametrize(
    ("resource", "kind"),
    [
        ("train", "RayJob"),
        ("score", "RayJob"),
        ("overlays/search", "RayJob"),
        ("overlays/raycronjob", "RayCronJob"),
        ("adopt", "Job"),
    ],
)
def test_the_pod_that_reads_tables_gets_credentials_and_account(tmp_path: Path, resource: str, kind: str) -> None:
    jobs = [document for document in rendered(tmp_path, resource) if document["kind"] == kind]
    assert jobs
    for job in jobs:
        reads = ("head", None)  # the pod of a plain Job is no component of a Ray cluster
        (head,) = [template for _, template in pod_templates(job) if template["metadata"]["labels"].get("component") in reads]
        container = head["spec"]["containers"][0]
        assert {"secretRef": {"name": "iris-data-credentials", "optional": True}} in container["envFrom"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts["data-credentials"]["readOnly"]
        (volume,) = [volume for volume in head["spec"]["volumes"] if volume["name"] == "data-credentials"]
        assert volume["secret"]["optional"]
        assert head["spec"]["serviceAccountName"] == "iris-data"
        assert head["spec"]["automountServiceAccountToken"] is False


def test_the_policy_opens_port_443_to_the_jobs_and_keeps_them_from_the_identity_of_the_node(tmp_path: Path) -> None:
    policies = {
        document["metadata"]["name"]: document["spec"]
        for document in rendered(tmp_path, "train")
        if document["kind"] == "NetworkPolicy"
    }
    policy = policies["iris-data-source"]
    assert policy["podSelector"] == {"matchLabels": {"iris-api/role": "training"}}
    (rule,) = policy["egress"]
    assert rule["ports"] == [{"port": 443, "protocol": "TCP"}]
    assert {block["ipBlock"]["cidr"]: block["ipBlock"]["except"] for block in rule["to"]} == {"0.0.0.0/0": ["169.254.0.0/16"]}
    assert policies["iris-data-identity"]["podSelector"] == policy["podSelector"]
