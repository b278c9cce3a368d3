"""The environment of kuberay/gitops, rendered by kustomize alone, and the rules by which Argo CD calls Ray's objects healthy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.shipped import KUBERAY, Json, one, pod_templates

GITOPS = KUBERAY / "gitops"
PRODUCTION = GITOPS / "production"
STATUSES = Path(__file__).with_name("rayservice_statuses.json")
"""Statuses of a RayService that a cluster with KubeRay 1.6.2 has shown, by what happened; long messages are cut."""

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="NOT TESTED: kubectl is not installed, so no kustomization was built"
)


def render(folder: Path, **files: str) -> list[Json]:
    """The objects of a copy of the environment with other files."""
    copy = folder / "production"
    shutil.copytree(PRODUCTION, copy, dirs_exist_ok=True)
    document = yaml.safe_load((copy / "kustomization.yaml").read_text())
    for name in ("resources", "components"):
        document[name] = [os.path.relpath((PRODUCTION / path).resolve(), copy) for path in document[name]]
    (copy / "kustomization.yaml").write_text(yaml.safe_dump(document))
    for name, text in files.items():
        (copy / name.replace("_", ".")).write_text(text)
    process = subprocess.run(["kubectl", "kustomize", str(copy)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(process.stdout))


def of(objects: list[Json], kind: str, prefix: str) -> Json:
    (document,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"].startswith(prefix)]
    return document


def settings_of_pods(objects: list[Json]) -> set[str]:
    """The names of the generated ConfigMap in the pods of the RayService."""
    sources = [
        source["configMapRef"]["name"]
        for _, template in pod_templates(of(objects, "RayService", "iris-api"))
        for source in template["spec"]["containers"][0]["envFrom"]
        if "configMapRef" in source
    ]
    return {name for name in sources if name.startswith("iris-api-overrides")}


@needs_kubectl
def test_a_changed_setting_is_a_changed_name_in_head_and_workers_and_jobs_keep_theirs(tmp_path: Path) -> None:
    first, second = (render(tmp_path, settings_env=f"LOG_LEVEL={level}\n") for level in ("INFO", "DEBUG"))
    names = []
    for objects, level in ((first, "INFO"), (second, "DEBUG")):
        (name,) = settings_of_pods(objects)
        assert of(objects, "ConfigMap", name)["data"] == {"LOG_LEVEL": level}
        jobs = of(objects, "ConfigMap", "iris-api-config")
        assert (jobs["metadata"]["name"], jobs["data"]["LOG_LEVEL"]) == ("iris-api-config", level)
        assert jobs["data"].items() >= {**one("ConfigMap", "iris-api-config")["data"], "LOG_LEVEL": level}.items()
        names.append(name)
    assert names[0] != names[1]
    changed = [new for old, new in zip(first, second, strict=True) if old != new]
    assert {document["kind"] for document in changed} == {"ConfigMap", "RayService"}


@needs_kubectl
def test_the_config_of_serve_is_the_file_of_the_environment(tmp_path: Path) -> None:
    config = yaml.safe_load((PRODUCTION / "serve.yaml").read_text())
    assert config == yaml.safe_load(one("RayService", "iris-api")["spec"]["serveConfigV2"])
    config["applications"][0]["deployments"][0]["autoscaling_config"]["min_replicas"] = 5
    objects = render(tmp_path, serve_yaml=yaml.safe_dump(config))
    assert yaml.safe_load(of(objects, "RayService", "iris-api")["spec"]["serveConfigV2"]) == config
    assert not [document for document in objects if document["metadata"]["name"].startswith("serve-config")]


@needs_kubectl
def test_claims_and_the_namespace_outlive_the_repository_and_policies_come_before_pods(tmp_path: Path) -> None:
    objects = render(tmp_path)
    waves: dict[str, set[int]] = {}
    for document in objects:
        annotations = document["metadata"].get("annotations", {})
        kept = "Prune=false,Delete=false" in annotations.get("argocd.argoproj.io/sync-options", "")
        assert kept == (document["kind"] in ("Namespace", "PersistentVolumeClaim")), document["metadata"]
        assert kept == (annotations.get("kustomize.toolkit.fluxcd.io/prune") == "disabled")
        waves.setdefault(document["kind"], set()).add(int(annotations.get("argocd.argoproj.io/sync-wave", 0)))
    assert max(waves["Namespace"] | waves["NetworkPolicy"]) < min(waves["RayService"] | waves["Deployment"])
    # A claim of a class that waits for its first consumer is Pending until the pods of the same wave are there.
    assert waves["PersistentVolumeClaim"] == waves["RayService"]
    assert not [document for document in objects if document["kind"] == "Secret"]


def test_argo_cd_and_flux_read_the_folder_that_is_there() -> None:
    root = KUBERAY.parent
    application = yaml.safe_load((GITOPS / "argocd" / "application.yaml").read_text())
    _, kustomization = yaml.safe_load_all((GITOPS / "flux" / "iris-api.yaml").read_text())
    for path in (application["spec"]["source"]["path"], kustomization["spec"]["path"]):
        assert (root / path).resolve() == PRODUCTION


def health(kind: str, document: Json) -> tuple[str, str]:
    """What the rule of Argo CD says, run by the version of Lua that Argo CD has."""
    lua = pytest.importorskip("lupa.lua51", reason="NOT TESTED: no Lua (pip install lupa), so no rule was run")
    rules = yaml.safe_load((GITOPS / "argocd" / "patch-argocd-cm.yaml").read_text())["data"]
    runtime = lua.LuaRuntime()
    runtime.globals().obj = runtime.table_from(document, recursive=True)
    verdict = runtime.execute(rules[f"resource.customizations.health.ray.io_{kind}"])
    return verdict["status"], verdict["message"]


@pytest.mark.parametrize(("state", "case"), json.loads(STATUSES.read_text()).items() if STATUSES.is_file() else [])
def test_a_rayservice_is_healthy_when_its_newest_spec_is_what_answers(state: str, case: dict[str, Any]) -> None:
    document = {"metadata": {"generation": case["generation"]}, "spec": {}, "status": case["status"]}
    status, message = health("RayService", document)
    assert status == case["health"], state
    assert message
    assert health("RayService", document | {"spec": {"suspend": True}})[0] == "Suspended"
    newer = document | {"metadata": {"generation": case["generation"] + 1}}
    assert health("RayService", newer)[0] == "Progressing"


@pytest.mark.parametrize("side", ["activeServiceStatus", "pendingServiceStatus"])
@pytest.mark.parametrize("failure", ["DEPLOY_FAILED", "UNHEALTHY"])
def test_a_rayservice_is_degraded_when_an_application_fails_although_another_cluster_answers(side: str, failure: str) -> None:
    case = json.loads(STATUSES.read_text())["it answers"]
    status = case["status"] | {side: {"applicationStatuses": {"iris-api": {"status": failure, "message": "no module"}}}}
    verdict = health("RayService", {"metadata": {"generation": case["generation"]}, "spec": {}, "status": status})
    assert verdict == ("Degraded", f"application iris-api is {failure}: no module")


@pytest.mark.parametrize("reason", ["ValidationFailed", "InitializingTimeout"])
def test_a_rayservice_that_the_operator_has_given_up_is_degraded(reason: str) -> None:
    condition = {"type": "Ready", "status": "False", "reason": reason, "message": "the reason"}
    document = {"metadata": {"generation": 1}, "spec": {}, "status": {"observedGeneration": 1, "conditions": [condition]}}
    assert health("RayService", document) == ("Degraded", "the reason")


def test_a_rayservice_without_a_status_is_progressing() -> None:
    assert health("RayService", {"metadata": {"generation": 1}, "spec": {}})[0] == "Progressing"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, "Progressing"),
        ({"jobDeploymentStatus": "Initializing"}, "Progressing"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "Progressing"),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, "Progressing"),
        ({"jobDeploymentStatus": "Suspended"}, "Suspended"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "Healthy"),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}, "Degraded"),
        ({"jobDeploymentStatus": "ValidationFailed"}, "Degraded"),
    ],
)
def test_a_rayjob_is_healthy_when_it_has_succeeded(status: Json, expected: str) -> None:
    assert health("RayJob", {"status": status})[0] == expected
