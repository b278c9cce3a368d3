"""Several nodes: what the components for them change in the objects that kustomize renders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from kuberay.components.night import night
from tests.manifests.shipped import KUBERAY, Json, one, pod_templates

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="NOT TESTED: kubectl is not installed")


def render(folder: Path, resources: Sequence[str], components: Sequence[str], **more: object) -> list[Json]:
    """What kustomize makes of an overlay of a user's own; names are those of folders in kuberay/ and of components."""
    paths = [os.path.relpath(KUBERAY / name, folder) for name in (*resources, *(f"components/{name}" for name in components))]
    document = {"resources": paths[: len(resources)], "components": paths[len(resources) :], **more}
    (folder / "kustomization.yaml").write_text(json.dumps(document))
    output = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(output))


def pods(documents: Sequence[Json], kind: str) -> Iterator[Json]:
    for document in documents:
        if document["kind"] == kind:
            for _, template in pod_templates(document):
                yield template


def workers(documents: Sequence[Json]) -> list[Json]:
    return [pod for pod in pods(documents, "RayService") if pod["metadata"]["labels"]["component"] == "worker"]


def test_replicas_prefer_nodes_of_their_own_and_a_lost_node_is_not_counted() -> None:
    (worker,) = workers([one("RayService", "iris-api")])
    (constraint,) = worker["spec"]["topologySpreadConstraints"]
    assert (constraint["topologyKey"], constraint["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert constraint["nodeTaintsPolicy"] == "Honor"
    assert constraint["labelSelector"]["matchLabels"].items() <= worker["metadata"]["labels"].items()
    assert constraint["matchLabelKeys"] == ["ray.io/cluster"], "a label that the operator gives each pod"


def test_strict_spreading_changes_the_workers_alone(tmp_path: Path) -> None:
    plain = render(tmp_path, ["overlays/api"], [])
    strict = render(tmp_path, ["overlays/api"], ["spread"])
    (worker,) = workers(strict)
    by_key = {constraint["topologyKey"]: constraint for constraint in worker["spec"].pop("topologySpreadConstraints")}
    assert by_key["kubernetes.io/hostname"]["whenUnsatisfiable"] == "DoNotSchedule"
    assert by_key["topology.kubernetes.io/zone"]["whenUnsatisfiable"] == "ScheduleAnyway"
    assert {constraint["nodeTaintsPolicy"] for constraint in by_key.values()} == {"Honor"}
    workers(plain)[0]["spec"].pop("topologySpreadConstraints")
    assert strict == plain


@pytest.mark.parametrize(
    ("folder", "kind"),
    [*((folder, "RayJob") for folder in ("train", "score", "overlays/search", "overlays/gcs/train")), ("adopt", "Job")],
)
def test_pods_of_jobs_have_the_lower_priority_and_never_preempt(tmp_path: Path, folder: str, kind: str) -> None:
    documents = render(tmp_path, [folder], ["priority"])
    classes = {document["metadata"]["name"]: document for document in documents if document["kind"] == "PriorityClass"}
    assert classes["iris-api-serving"]["value"] > 0 > classes["iris-api-training"]["value"] > -10
    assert classes["iris-api-training"]["preemptionPolicy"] == "Never"
    assert {pod["spec"]["priorityClassName"] for pod in pods(documents, kind)} == {"iris-api-training"}


def test_all_pods_of_the_api_have_the_higher_priority(tmp_path: Path) -> None:
    documents = render(tmp_path, ["overlays/mlflow"], ["priority"])
    assert [pod["spec"]["priorityClassName"] for pod in pods(documents, "RayService")] == ["iris-api-serving"] * 2
    assert all("priorityClassName" not in pod["spec"] for pod in pods(documents, "Deployment"))


def test_a_second_installation_has_priority_classes_of_its_own_by_one_patch(tmp_path: Path) -> None:
    """They are objects of the whole cluster, so a namespace does not part them."""
    rename = [
        {"op": "replace", "path": "/metadata/name", "value": "team-a-serving"},
        {"op": "replace", "path": "/value", "value": 5},
    ]
    patch = {
        "target": {"kind": "PriorityClass", "name": "iris-api-serving"},
        "patch": json.dumps(rename),
        "options": {"allowNameChange": True},
    }
    documents = render(tmp_path, ["overlays/api"], ["priority"], patches=[patch], namespace="team-a")
    values = {one["metadata"]["name"]: one["value"] for one in documents if one["kind"] == "PriorityClass"}
    assert values == {"team-a-serving": 5, "iris-api-training": -1}
    assert {pod["spec"]["priorityClassName"] for pod in pods(documents, "RayService")} == {"team-a-serving"}


@pytest.mark.parametrize(
    ("folder", "kind", "pool", "count"),
    [("overlays/api", "RayService", "serving", 2), ("overlays/search", "RayJob", "training", 3), ("adopt", "Job", "training", 1)],
)
def test_a_pool_of_nodes_takes_all_pods_of_its_kind(tmp_path: Path, folder: str, kind: str, pool: str, count: int) -> None:
    documents = render(tmp_path, [folder], ["node-pools"])
    toleration = {"key": "iris-api/pool", "operator": "Equal", "value": pool, "effect": "NoSchedule"}
    found = [(pod["spec"]["nodeSelector"], pod["spec"]["tolerations"]) for pod in pods(documents, kind)]
    assert found == [({"iris-api/pool": pool}, [toleration])] * count


def test_the_store_of_several_nodes_is_mounted_by_all_of_them() -> None:
    output = subprocess.run(["kubectl", "kustomize", str(KUBERAY / "overlays" / "rwx")], capture_output=True, text=True, check=True)
    claims = {
        one["metadata"]["name"]: one["spec"] for one in yaml.safe_load_all(output.stdout) if one["kind"] == "PersistentVolumeClaim"
    }
    assert claims["models-pvc"]["accessModes"] == ["ReadWriteMany"]
    assert claims["models-pvc"]["storageClassName"]
    assert claims["mlflow-pvc"]["accessModes"] == ["ReadWriteOnce"]


def test_the_account_of_the_night_changes_this_rayservice_and_its_own_endpoints() -> None:
    rules = [(rule["resources"], rule.get("resourceNames"), rule["verbs"]) for rule in one("Role", "iris-api-night")["rules"]]
    assert rules == [
        (["rayservices"], ["iris-api"], ["get", "patch"]),
        (["endpointslices"], ["iris-api-night"], ["delete"]),
        (["endpointslices"], None, ["create"]),
    ]


def test_the_pods_of_the_night_run_the_program_that_names_what_the_operator_and_the_role_name(tmp_path: Path) -> None:
    documents = render(tmp_path, ["overlays/api"], ["night"])
    own = {document["kind"]: document for document in documents if document["metadata"]["name"] == "iris-api-night"}
    program = own["ConfigMap"]
    assert program["data"] == {"night.py": Path(night.__file__).read_text()}
    assert program["metadata"]["namespace"] == "mlops"
    assert program["metadata"]["labels"] == {"app.kubernetes.io/part-of": "iris-api"}
    assert own["Role"]["rules"][1]["resourceNames"] == [night.SLICE], "kustomize leaves the name as it is"
    volumes = [pod["spec"]["volumes"][0] for pod in pods(documents, "CronJob")]
    assert volumes == [{"name": "night", "configMap": {"name": "iris-api-night"}}] * 2
    assert one("RayService", night.RAYSERVICE)["spec"]["serveService"]["metadata"]["name"] == night.SERVICE


def test_the_night_lasts_from_the_evening_to_the_morning() -> None:
    schedules = [one("CronJob", name)["spec"]["schedule"] for name in ("iris-api-suspend", "iris-api-resume")]
    assert schedules == ["0 20 * * *", "0 6 * * *"]
