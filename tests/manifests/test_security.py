"""Doors, tokens and secrets, as far as the YAML tells; tests/e2e/test_2_network.py tries them on a cluster."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from kuberay.ctl.secrets import GENERATED
from tests.manifests.shipped import KUBERAY, Json, all_pod_templates, documents, one, pod_templates

POLICIES = [document for _, document in documents() if document["kind"] == "NetworkPolicy"]
WITH_TOKEN = {"iris-train-schedule", "iris-api-night"}
"""Pods whose only container asks the API server."""


def test_nothing_goes_in_or_out_unless_a_policy_says_so() -> None:
    (closed,) = [policy for policy in POLICIES if policy["spec"]["podSelector"] == {} and "egress" not in policy["spec"]]
    assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert ("base/network-policies.yaml", closed) in documents()


def test_only_the_ports_that_want_a_key_are_open_to_everybody() -> None:
    open_to_all = {"acme": [8089], "iris-api": [8000, 9000]}
    for policy in POLICIES:
        for rule in policy["spec"].get("ingress", []):
            if "from" not in rule:
                ports = [port["port"] for port in rule["ports"]]
                assert ports == open_to_all.get(policy["metadata"]["name"], [8000]), policy["metadata"]["name"]


def test_every_policy_selects_pods_that_exist() -> None:
    labels = [template["metadata"]["labels"] for _, template in all_pod_templates()]
    for policy in POLICIES:
        selector = policy["spec"]["podSelector"]
        match_labels = selector.get("matchLabels", {})
        keys = {expression["key"] for expression in selector.get("matchExpressions", [])}
        if policy["metadata"]["name"] != "acme":  # cert-manager's own pods
            assert any(match_labels.items() <= label.items() and keys <= set(label) for label in labels), policy["metadata"]["name"]


@pytest.mark.parametrize(("where", "template"), all_pod_templates(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_pod_has_a_role_or_a_policy_of_its_own(where: str, template: Json) -> None:
    labels = template["metadata"]["labels"]
    own = [policy for policy in POLICIES if policy["spec"]["podSelector"].get("matchLabels") == {"app": labels["app"]}]
    assert labels.get("iris-api/role") in {"serving", "training", "store"} or own, where


def test_every_ray_object_asks_for_the_token() -> None:
    for file, document in documents():
        for key in ("rayClusterConfig", "rayClusterSpec"):
            if key in document.get("spec", {}):
                assert document["spec"][key]["authOptions"] == {"mode": "token"}, file


@pytest.mark.parametrize(("where", "template"), all_pod_templates(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_pod_gets_a_token_that_it_does_not_need(where: str, template: Json) -> None:
    needs = template["metadata"]["labels"]["app"] in WITH_TOKEN
    assert template["spec"]["automountServiceAccountToken"] is needs, where


def test_the_heads_token_is_mounted_by_the_autoscaler_alone() -> None:
    cluster = one("RayService", "iris-api")["spec"]["rayClusterConfig"]
    mounted = {mount["name"]: mount for mount in cluster["autoscalerOptions"]["volumeMounts"]}
    assert mounted["api-access"]["readOnly"] is True
    assert cluster["autoscalerOptions"]["securityContext"]["readOnlyRootFilesystem"] is True
    for _, template in pod_templates(one("RayService", "iris-api")):
        for container in template["spec"]["containers"]:
            assert "api-access" not in {mount["name"] for mount in container["volumeMounts"]}


def test_serving_pods_cannot_write_to_the_claim_of_the_store() -> None:
    for where, template in pod_templates(one("RayService", "iris-api")):
        (claim,) = [volume["persistentVolumeClaim"] for volume in template["spec"]["volumes"] if volume["name"] == "models"]
        assert claim == {"claimName": "models-pvc", "readOnly": True}, where


# --- components of operators that a test cluster does not have: compared with what those operators document


def built(overlay: str) -> list[Json]:
    if shutil.which("kubectl") is None:
        pytest.skip("NOT TESTED: kubectl is not installed, so no kustomization was built")
    process = subprocess.run(
        ["kubectl", "kustomize", str(KUBERAY / "overlays" / overlay)], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(process.stdout))


def only(objects: list[Json], kind: str) -> Json:
    (match,) = [document for document in objects if document["kind"] == kind]
    return match


def test_cert_manager_finds_the_issuer_the_host_and_the_class_of_the_ingress() -> None:
    objects = built("tls")
    ingress, issuer = only(objects, "Ingress"), only(objects, "Issuer")
    assert issuer["apiVersion"] == "cert-manager.io/v1"
    assert ingress["metadata"]["annotations"] == {"cert-manager.io/issuer": issuer["metadata"]["name"]}
    ((tls,), (rule,)) = ingress["spec"]["tls"], ingress["spec"]["rules"]
    assert tls["hosts"] == [rule["host"]]
    assert tls["secretName"]
    (solver,) = issuer["spec"]["acme"]["solvers"]
    assert solver["http01"]["ingress"]["ingressClassName"] == ingress["spec"]["ingressClassName"]
    assert issuer["spec"]["acme"]["privateKeySecretRef"]["name"] != tls["secretName"]


def test_external_secrets_makes_the_secret_that_the_pods_read() -> None:
    objects = built("external-secrets")
    external, store = only(objects, "ExternalSecret"), only(objects, "SecretStore")
    assert external["apiVersion"] == store["apiVersion"] == "external-secrets.io/v1"
    assert external["spec"]["secretStoreRef"] == {"kind": "SecretStore", "name": store["metadata"]["name"]}
    target = external["spec"]["target"]
    assert target["name"] == "iris-api-secrets"
    assert set(target["template"]["data"]) == set(one("Secret", "iris-api-secrets")["stringData"])
    keys = {entry["secretKey"] for entry in external["spec"]["data"]}
    assert target["template"]["data"]["API_KEY"] == "{{ .key }}"
    assert keys == {"key"}
    account = store["spec"]["provider"]["gcpsm"]["auth"]["workloadIdentity"]["serviceAccountRef"]["name"]
    assert account in {document["metadata"]["name"] for document in objects if document["kind"] == "ServiceAccount"}


def test_mlflow_gives_its_clients_users_of_their_own() -> None:
    deployment = next(document for document in built("mlflow-auth") if document["metadata"]["name"] == "mlflow-server")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "--app-name=basic-auth" in container["args"]
    assert not [entry for entry in container["env"] if "PASSWORD" in entry["name"]]
    examples = {name: one("Secret", name)["stringData"] for name in ("mlflow-admin", "mlflow-trainer", "mlflow-replica")}
    users = [value for secret in examples.values() for name, value in secret.items() if "USERNAME" in name]
    assert len(set(users)) == 3
    for secret in examples.values():
        assert all(value.startswith("replace-me") for name, value in secret.items() if "USERNAME" not in name)
    assert {name: set(secret) for name, secret in examples.items()} == {name: set(GENERATED[name]()) for name in examples}
    assert "default_permission = NO_PERMISSIONS" in one("ConfigMap", "mlflow-auth")["data"]["basic_auth.ini"]
    for kind, name, user in (
        ("RayService", "iris-api", "mlflow-replica"),
        ("RayJob", "iris-train-job", "mlflow-trainer"),
        ("Job", "iris-store", "mlflow-trainer"),
        ("Job", "iris-adopt-job", "mlflow-trainer"),
    ):
        for where, template in pod_templates(one(kind, name)):
            if "submitterPodTemplate" in where:
                continue
            reads = {"secretRef": {"name": user, "optional": True}}
            assert reads in template["spec"]["containers"][0]["envFrom"], where
