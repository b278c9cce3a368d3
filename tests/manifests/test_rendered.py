"""Rules for everything that kustomize renders: all overlays, the jobs beside them, and the monitoring.

Each rule holds for a kind of thing (every scratch volume, every reference to a Secret), so a new overlay needs
no new test.
"""

from __future__ import annotations

import base64
import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuberay.ctl import secrets
from serve_app.rayserve import grpc_services
from tests.manifests.shipped import KUBERAY, ROOT, Json, documents, kustomizations, pod_templates

OWN_IMAGES = {"iris-api:latest", "iris-train:latest"}
PLAIN_FILES = ("train/store-job.yaml", "data/files-job.yaml")
"""Manifests that no kustomization names: make and the documentation apply them."""
SERVING = {"RayService iris-api ray-head", "RayService iris-api ray-worker"}
TRAINING = {"RayJob iris-train-job ray-head", "RayJob iris-train-template ray-head", "RayCronJob iris-train ray-head"}
STORE = {"Job iris-store store"}
ADOPTING = {"Job iris-adopt-job adopt"}
SECRETS = {
    # The API key. The head checks it when it builds the application, a replica at each request.
    "iris-api-secrets": SERVING,
    # One key of that Secret, which is no secret.
    "iris-api-secrets/MLFLOW_TRACKING_URI": TRAINING | ADOPTING | STORE | {"Deployment mlflow-server mlflow"},
    "iris-api-signing-key": TRAINING | ADOPTING,
    "iris-api-verify-key": SERVING | TRAINING | ADOPTING | STORE | {"RayJob iris-score ray-head"},
    "iris-data-credentials": TRAINING | ADOPTING | {"RayJob iris-score ray-head"},
    "iris-redis/password": {"StatefulSet iris-redis redis", "RayService iris-api"},
    "mlflow-admin/MLFLOW_AUTH_ADMIN_USERNAME": {"Deployment mlflow-server users", "Deployment mlflow-server mlflow"},
    "mlflow-admin/MLFLOW_AUTH_ADMIN_PASSWORD": {"Deployment mlflow-server users"},
    "mlflow-admin/MLFLOW_FLASK_SERVER_SECRET_KEY": {"Deployment mlflow-server mlflow"},
    "mlflow-trainer": TRAINING | ADOPTING | STORE,
    "mlflow-trainer/MLFLOW_TRACKING_USERNAME": {"Deployment mlflow-server users"},
    "mlflow-trainer/MLFLOW_TRACKING_PASSWORD": {"Deployment mlflow-server users"},
    "mlflow-replica": SERVING,
    "mlflow-replica/MLFLOW_TRACKING_USERNAME": {"Deployment mlflow-server users"},
    "mlflow-replica/MLFLOW_TRACKING_PASSWORD": {"Deployment mlflow-server users"},
    "grafana-admin": {"Deployment grafana grafana"},
    "alertmanager-receivers": {"Deployment alertmanager alertmanager"},
}
"""The containers that get a Secret (all of it, or one key), as `kind name container`."""
PUBLISHED = {
    *("/", "/predict", "/predict/batch", "/model", "/model/info", "/health", "/readyz", "/docs", "/redoc", "/openapi.json"),
    *("/invocations", "/ping"),
}
PREFIXES = {"/static-offline-docs", "/ui", "/v2", "/v1/models"}
"""Scripts and styles of /docs and /redoc; the console; the Open Inference Protocol; KServe v1."""


def monitoring() -> list[Path]:
    overlays = (ROOT / "monitoring" / "overlays").glob("*/kustomization.yaml")
    return [ROOT / "monitoring" / "base", *sorted(path.parent for path in overlays)]


FOLDERS = [*kustomizations(), *monitoring()]


@functools.cache
def build(folder: Path) -> tuple[Json, ...]:
    """The objects of a folder, and the RayJob that the schedule keeps in a ConfigMap."""
    if shutil.which("kubectl") is None:
        pytest.skip("NOT TESTED: kubectl is not installed, so no kustomization was built")
    process = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    objects: list[Json] = list(yaml.safe_load_all(process.stdout))
    embedded = [yaml.safe_load(one["data"]["rayjob.yaml"]) for one in objects if "rayjob.yaml" in (one.get("data") or {})]
    return (*objects, *embedded)


def every() -> list[tuple[str, Json]]:
    """(origin, object) of all folders and of the files beside them."""
    rendered = [(str(folder.relative_to(ROOT)), one) for folder in FOLDERS for one in build(folder)]
    return rendered + [(file, one) for file, one in documents() if file in PLAIN_FILES]


def every_pod() -> Iterator[tuple[str, Json, Json]]:
    """(origin, owner, pod template) of every pod."""
    for origin, document in every():
        for _, template in pod_templates(document):
            yield origin, document, template


def containers(template: Json) -> list[Json]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


def name_of(document: Json, container: Json | None = None) -> str:
    parts = (document["kind"], document["metadata"]["name"], *((container["name"],) if container else ()))
    return " ".join(parts)


def test_every_scratch_volume_has_a_limit() -> None:
    volumes = [(origin, volume) for origin, _, template in every_pod() for volume in template["spec"].get("volumes", [])]
    scratch = [(origin, volume) for origin, volume in volumes if "emptyDir" in volume]
    assert len(scratch) > 50
    assert [(origin, volume["name"]) for origin, volume in scratch if not (volume["emptyDir"] or {}).get("sizeLimit")] == []


def secret_references(document: Json) -> Iterator[tuple[str, str]]:
    """(Secret or Secret/key, container) of everything in an object that names a Secret."""
    for _, template in pod_templates(document):
        volumes = {
            volume["name"]: volume["secret"]["secretName"] for volume in template["spec"].get("volumes", []) if "secret" in volume
        }
        for container in containers(template):
            for entry in container.get("envFrom", []):
                if "secretRef" in entry:
                    yield entry["secretRef"]["name"], name_of(document, container)
            for entry in container.get("env", []):
                if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                    yield f"{reference['name']}/{reference['key']}", name_of(document, container)
            for mount in container.get("volumeMounts", []):
                if mount["name"] in volumes:
                    yield volumes[mount["name"]], name_of(document, container)
    options = document.get("spec", {}).get("rayClusterConfig", {}).get("gcsFaultToleranceOptions", {})
    if reference := options.get("redisPassword", {}).get("valueFrom", {}).get("secretKeyRef"):
        yield f"{reference['name']}/{reference['key']}", name_of(document)


def test_every_secret_reaches_only_the_containers_that_need_it() -> None:
    references = [
        (origin, re.sub(r"^(alertmanager-receivers)-\w+", r"\1", secret), container)
        for origin, document in every()
        for secret, container in secret_references(document)
    ]
    assert [one for one in references if one[2] not in SECRETS.get(one[1], set())] == []
    assert {secret for _, secret, _ in references} == set(SECRETS)


def secret_names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("secretRef", "secretKeyRef") and "name" in inner:
                yield inner["name"]
            elif key == "secretName":
                yield inner
            else:
                yield from secret_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from secret_names(inner)


def test_no_reference_to_a_secret_is_hidden_from_these_rules() -> None:
    outside = {"Ingress", "Gateway", "ExternalSecret", "SecretStore", "Issuer"}
    for origin, document in every():
        if document["kind"] not in outside:
            seen = {secret.partition("/")[0] for secret, _ in secret_references(document)}
            assert set(secret_names(document)) == seen, (origin, name_of(document))


def test_a_mounted_secret_is_readable_by_the_pods_group_and_by_nobody_else() -> None:
    for origin, document, template in every_pod():
        for volume in template["spec"].get("volumes", []):
            if "secret" in volume:
                assert volume["secret"].get("defaultMode") == 0o440, (origin, name_of(document), volume["name"])
                assert template["spec"]["securityContext"]["fsGroup"], (origin, name_of(document))
        for container in containers(template):
            mounts = {mount["name"]: mount for mount in container.get("volumeMounts", [])}
            for volume in template["spec"].get("volumes", []):
                if "secret" in volume and volume["name"] in mounts:
                    assert mounts[volume["name"]]["readOnly"] is True, (origin, name_of(document, container))


def test_every_image_of_others_has_a_version_and_none_is_pulled_again() -> None:
    for origin, document, template in every_pod():
        for container in containers(template):
            assert container["imagePullPolicy"] == "IfNotPresent", (origin, name_of(document, container))
            if container["image"] not in OWN_IMAGES:
                assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*(@sha256:[0-9a-f]{64})?", container["image"]), (
                    origin,
                    container["image"],
                )


def test_no_password_stands_in_a_manifest() -> None:
    word = re.compile(r"PASSWORD|TOKEN|SECRET|API_KEY", re.IGNORECASE)
    for origin, document, template in every_pod():
        for container in containers(template):
            plain = [entry["name"] for entry in container.get("env", []) if word.search(entry["name"]) and "value" in entry]
            assert all(name.endswith(("__FILE", "_DIR")) for name in plain), (origin, name_of(document, container), plain)
    for origin, document in every():
        if document["kind"] == "ConfigMap":
            assert [name for name in document.get("data") or {} if word.search(name)] == [], origin
        if document["kind"] == "Secret":
            values = [base64.b64decode(value).decode() for value in document.get("data", {}).values()]
            assert all(value.startswith("http://alert-log:8080/") for value in values), (origin, name_of(document))


def test_the_restricted_standard_has_a_version() -> None:
    for origin, document in every():
        if document["kind"] == "Namespace":
            labels = document["metadata"]["labels"]
            for mode in ("enforce", "warn", "audit"):
                assert re.fullmatch(r"v1\.\d+", labels[f"pod-security.kubernetes.io/{mode}-version"]), origin


def test_a_redis_requires_a_password_and_its_clients_send_it() -> None:
    servers = [
        container for _, _, template in every_pod() for container in containers(template) if container["image"].startswith("redis:")
    ]
    assert servers
    for container in servers:
        assert container["args"][container["args"].index("--requirepass") + 1] == "$(REDIS_PASSWORD)"
    clients = [one["spec"]["rayClusterConfig"] for _, one in every() if one["kind"] == "RayService"]
    options = [client["gcsFaultToleranceOptions"] for client in clients if "gcsFaultToleranceOptions" in client]
    assert options
    assert all(option["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "iris-redis" for option in options)


def settings(objects: tuple[Json, ...]) -> Json:
    merged: Json = {}
    for name in ("iris-api-config", "iris-api-overrides"):
        for one in objects:
            if one["kind"] == "ConfigMap" and one["metadata"]["name"] == name:
                merged |= one["data"]
    return merged


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_and_no_other_origin_is_let_in_by_default(folder: Path) -> None:
    objects = build(folder)
    if any(one["kind"] == "RayService" for one in objects):
        assert settings(objects)["IRIS_ALLOW_JOBLIB"] == "false"
        assert settings(objects)["CORS_ORIGINS"] == ""
    for one in objects:
        for _, template in pod_templates(one):
            for container in containers(template):
                assert not {"IRIS_ALLOW_JOBLIB", "CORS_ORIGINS"} & {entry["name"] for entry in container.get("env", [])}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_mlflow_that_decides_what_is_served_requires_a_login(folder: Path) -> None:
    objects = build(folder)
    services = [one for one in objects if one["kind"] == "RayService"]
    servers = [one for one in objects if one["kind"] == "Deployment" and one["metadata"]["name"] == "mlflow-server"]
    # Without a store on a volume the replicas follow MLflow's alias.
    follows_alias = any("emptyDir" in volume for one in services for volume in models_volumes(one))
    for server in servers if follows_alias else ():
        assert "--app-name=basic-auth" in server["spec"]["template"]["spec"]["containers"][0]["args"]
    if folder.name in ("gcs", "gcs-emulator"):
        assert follows_alias
        assert servers


def models_volumes(service: Json) -> list[Json]:
    return [
        volume for _, template in pod_templates(service) for volume in template["spec"]["volumes"] if volume["name"] == "models"
    ]


def test_an_ingress_publishes_a_list_of_paths_under_a_name() -> None:
    ingresses = [one for _, one in every() if one["kind"] == "Ingress"]
    assert ingresses
    for ingress in ingresses:
        assert "defaultBackend" not in ingress["spec"]
        for rule in ingress["spec"]["rules"]:
            assert rule["host"]
            assert "*" not in rule["host"]
            types = {path["path"]: path["pathType"] for path in rule["http"]["paths"]}
            assert types == {**dict.fromkeys(PUBLISHED, "Exact"), **dict.fromkeys(PREFIXES, "Prefix")}


def test_a_gateway_publishes_the_same_paths_under_a_name_and_by_https_alone() -> None:
    objects = build(KUBERAY / "overlays" / "gateway")
    (gateway,) = [one for one in objects if one["kind"] == "Gateway"]
    hosts = {listener["hostname"] for listener in gateway["spec"]["listeners"] if listener["name"] != "grpc"}
    protocols = {listener["name"]: listener["protocol"] for listener in gateway["spec"]["listeners"]}
    assert protocols == {"http": "HTTP", "https": "HTTPS", "grpc": "HTTPS"}
    routes = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "HTTPRoute"}
    for spec in routes.values():
        assert set(spec["hostnames"]) == hosts
    published, redirect = routes["iris-api"], routes["iris-api-https"]
    assert published["parentRefs"] == [{"name": "iris-api", "sectionName": "https"}]
    paths = [match["path"] for rule in published["rules"] for match in rule["matches"]]
    types = {**dict.fromkeys(PUBLISHED, "Exact"), **dict.fromkeys(PREFIXES, "PathPrefix")}
    assert {path["value"]: path["type"] for path in paths} == types
    assert all(len(rule["matches"]) <= 8 for rule in published["rules"]), "more than Gateway API 1.0 allows"
    assert redirect["parentRefs"] == [{"name": "iris-api", "sectionName": "http"}]
    ((rule,),) = [[rule["filters"] for rule in redirect["rules"]]]
    assert [one["requestRedirect"]["scheme"] for one in rule] == ["https"]
    assert not [rule for rule in redirect["rules"] if "backendRefs" in rule]


def test_a_gateway_publishes_the_services_of_the_api_by_grpc_under_a_name_of_their_own() -> None:
    objects = build(KUBERAY / "overlays" / "gateway")
    (gateway,) = [one for one in objects if one["kind"] == "Gateway"]
    (route,) = [one["spec"] for one in objects if one["kind"] == "GRPCRoute"]
    (service,) = [one["spec"]["serveService"]["spec"] for one in objects if one["kind"] == "RayService"]
    (listener,) = [listener for listener in gateway["spec"]["listeners"] if listener["name"] == "grpc"]
    assert route["parentRefs"] == [{"name": "iris-api", "sectionName": "grpc"}]
    assert route["hostnames"] == [listener["hostname"]]
    others = [one["spec"] for one in objects if one["kind"] == "HTTPRoute"]
    assert not {listener["hostname"]} & {host for other in others for host in other["hostnames"]}, "a host is of one kind of route"
    (rule,) = route["rules"]
    services = {path.split("/")[1] for path in grpc_services.PATHS}
    assert [match["method"] for match in rule["matches"]] == [{"type": "Exact", "service": name} for name in sorted(services)[::-1]]
    (backend,) = rule["backendRefs"]
    (port,) = [port for port in service["ports"] if port["port"] == backend["port"]]
    assert (backend["name"], port["appProtocol"]) == ("iris-api-service", "kubernetes.io/h2c")


def overlay_with(folder: Path, components: list[str], **values: str) -> tuple[Json, ...]:
    """The objects of an overlay as a user makes it: components of kuberay/, and an exposure.yaml with values of one's own."""
    exposure = yaml.safe_load((KUBERAY / "overlays" / "gateway" / "exposure.yaml").read_text())
    exposure["data"] |= values
    (folder / "exposure.yaml").write_text(yaml.safe_dump(exposure))
    # kustomize takes no absolute paths.
    root = "../" * (len(folder.resolve().parts) - 1) + str(KUBERAY).lstrip("/")
    kustomization = {
        "resources": [f"{root}/overlays/api", "exposure.yaml"],
        "components": [f"{root}/components/{name}" for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(folder)


def test_the_values_of_one_file_reach_all_objects_of_the_exposure(tmp_path: Path) -> None:
    values = {
        "class": "other",
        "host": "api.team-a.example",
        "grpcHost": "grpc.team-a.example",
        "tlsSecret": "team-a",
        "path": "/iris",
        "httpPort": "8080",
        "httpsPort": "8443",
    }
    objects = overlay_with(tmp_path, ["ingress", "gateway", "gateway-grpc"], **values)
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert ("ConfigMap", "exposure") not in by_name
    assert by_name["ConfigMap", "iris-api-config"]["data"]["IRIS_ROOT_PATH"] == "/iris"
    ingress, gateway = by_name["Ingress", "iris-api"]["spec"], by_name["Gateway", "iris-api"]["spec"]
    route, redirect = by_name["HTTPRoute", "iris-api"]["spec"], by_name["HTTPRoute", "iris-api-https"]["spec"]
    assert ingress["ingressClassName"] == gateway["gatewayClassName"] == "other"
    assert ingress["tls"] == [{"hosts": ["api.team-a.example"], "secretName": "team-a"}]
    assert [rule["host"] for rule in ingress["rules"]] == route["hostnames"] == redirect["hostnames"] == ["api.team-a.example"]
    hosts = ["api.team-a.example", "api.team-a.example", "grpc.team-a.example"]
    assert [listener["hostname"] for listener in gateway["listeners"]] == hosts
    assert by_name["GRPCRoute", "iris-api"]["spec"]["hostnames"] == hosts[2:]
    assert [listener["port"] for listener in gateway["listeners"]] == [8080, 8443, 8443]
    for listener in gateway["listeners"][1:]:
        assert listener["tls"]["certificateRefs"] == [{"kind": "Secret", "name": "team-a"}]
    assert redirect["rules"][0]["filters"][0]["requestRedirect"]["port"] == 8443
    expected = {f"/iris{path}" for path in {*PUBLISHED, *PREFIXES}}
    assert {path["path"] for path in ingress["rules"][0]["http"]["paths"]} == expected
    assert {match["path"]["value"] for rule in route["rules"] for match in rule["matches"]} == expected


def test_the_forwarded_address_is_believed_only_where_nothing_but_the_proxy_connects(tmp_path: Path) -> None:
    for _, one in every():
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "iris-api-config":
            assert "IRIS_TRUSTED_PROXIES" not in one["data"]
    objects = overlay_with(tmp_path, ["ingress", "proxy-only"], controllerNamespace="front", controllerNetwork="198.51.100.0/24")
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert by_name["ConfigMap", "iris-api-config"]["data"]["IRIS_TRUSTED_PROXIES"] == "peer"
    rules = by_name["NetworkPolicy", "iris-api"]["spec"]["ingress"]
    (rule,) = [rule for rule in rules if {"port": 8000} in rule.get("ports", [])]
    assert {"port": 9000} in rule["ports"]
    assert rule["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "front"}}},
        {"ipBlock": {"cidr": "198.51.100.0/24"}},
        {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}},
    ]
    assert [rule for rule in rules if "from" not in rule] == []


def test_signing_reaches_everything_that_opens_a_bundle() -> None:
    objects = build(KUBERAY / "overlays" / "signing")
    values = settings(objects)
    private, public = Path(values["IRIS_SIGNING_KEY"]), Path(values["IRIS_VERIFY_KEY"])
    (service,) = [one for one in objects if one["kind"] == "RayService"]
    for where, template in pod_templates(service):
        assert mounted(template, "iris-api-verify-key") == public.parent, where
        (volume,) = [one for one in template["spec"]["volumes"] if one.get("secret", {}).get("secretName") == "iris-api-verify-key"]
        assert not volume["secret"].get("optional"), "a pod without the key would refuse nothing"
    plain = ("iris-store", "iris-adopt-job")
    jobs = [one for _, one in every() if one["kind"] in ("RayJob", "RayCronJob") or one["metadata"]["name"] in plain]
    assert len(jobs) >= 6
    for job in jobs:
        heads = [template for where, template in pod_templates(job) if "workerGroupSpecs" not in where and "submitter" not in where]
        for template in heads:
            assert {"configMapRef": {"name": "iris-api-config"}} in template["spec"]["containers"][0]["envFrom"]
            assert mounted(template, "iris-api-verify-key") == public.parent, name_of(job)
            if job["metadata"]["name"] in ("iris-train-job", "iris-adopt-job"):
                assert mounted(template, "iris-api-signing-key") == private.parent


def mounted(template: Json, secret: str) -> Path:
    (volume,) = [one["name"] for one in template["spec"]["volumes"] if one.get("secret", {}).get("secretName") == secret]
    (mount,) = [one for one in template["spec"]["containers"][0]["volumeMounts"] if one["name"] == volume]
    return Path(mount["mountPath"])


def test_make_creates_every_secret_that_an_overlay_needs_and_the_user_does_not_choose() -> None:
    chosen = {"iris-api-secrets", secrets.SIGNING_KEY, secrets.VERIFY_KEY}
    for folder in kustomizations():
        required = secrets.required_secrets(list(build(folder)))
        assert required - chosen <= set(secrets.GENERATED), folder
    assert secrets.required_secrets(list(build(KUBERAY / "overlays" / "ha-redis"))) == {"iris-api-secrets", "iris-redis"}
    for data in secrets.GENERATED.values():
        first, second = data(), data()
        passwords = {name for name in first if first[name] != second[name]}
        assert passwords == {name for name in first if "USERNAME" not in name}
        assert all(len(first[name]) == 64 for name in passwords)
