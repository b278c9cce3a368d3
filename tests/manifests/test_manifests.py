"""What can be known about the YAML without a cluster."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from kuberay.components.schedule import scheduled_run
from kuberay.ctl import train
from tests.manifests.shipped import (
    KUBERAY,
    ROOT,
    Json,
    all_pod_templates,
    documents,
    files,
    kustomizations,
    locked,
    one,
    pod_templates,
)

IMAGES = {"iris-api:latest", "iris-train:latest"}
OTHERS = {"redis:7", "fsouza/fake-gcs-server:1.52.3"}
"""Images of neighbours that an overlay brings along."""
CONTROLLERS = {"argoproj.io": "argocd", "source.toolkit.fluxcd.io": "flux-system", "kustomize.toolkit.fluxcd.io": "flux-system"}
"""The namespace of the objects that a GitOps controller reads."""


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(KUBERAY)))
def test_every_file_is_yaml_and_says_why_it_exists_or_is_short(path: Path) -> None:
    text = path.read_text()
    assert list(yaml.safe_load_all(text))
    assert text.startswith("#") or len(text.splitlines()) <= 15


@pytest.mark.parametrize("folder", kustomizations(), ids=lambda path: str(path.relative_to(KUBERAY)))
def test_kustomize_builds_every_variant_without_a_warning(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("NOT TESTED: kubectl is not installed, so no kustomization was built")
    process = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    built = list(yaml.safe_load_all(process.stdout))
    names = [(document["kind"], document["metadata"]["name"]) for document in built]
    assert len(names) == len(set(names))
    for document in built:
        check_security(document)


@pytest.mark.parametrize(("file", "document"), documents(), ids=lambda value: value if isinstance(value, str) else value["kind"])
def test_every_object_belongs_to_the_product_and_to_its_namespace(file: str, document: Json) -> None:
    cluster_wide = {"Namespace", "PersistentVolume", "PriorityClass", "Cluster"}
    if document["kind"] == "Cluster":  # the description of a kind cluster
        return
    assert document["metadata"]["labels"]["app.kubernetes.io/part-of"] == "iris-api", file
    if document["kind"] not in cluster_wide:
        assert document["metadata"]["namespace"] == CONTROLLERS.get(document["apiVersion"].partition("/")[0], "mlops"), file


def test_the_namespace_enforces_the_restricted_standard() -> None:
    labels = one("Namespace", "mlops")["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")} == {"restricted"}


@pytest.mark.parametrize(("where", "template"), all_pod_templates(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_pod_runs_without_privileges_on_a_read_only_root(where: str, template: Json) -> None:
    spec = template["spec"]
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"] + spec.get("initContainers", []):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False, where
        assert own["readOnlyRootFilesystem"] is True, where
        assert own["capabilities"] == {"drop": ["ALL"]}, where
        if container["image"] in IMAGES:
            assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
            assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"]), f"{where} cannot write to /tmp"


@pytest.mark.parametrize(("where", "template"), all_pod_templates(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_container_says_what_it_needs_and_how_it_is_seen_to_live(where: str, template: Json) -> None:
    for container in template["spec"]["containers"]:
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}, where
        assert "memory" in container["resources"]["limits"], where
        assert container["image"] in IMAGES | OTHERS, where
        assert container.get("imagePullPolicy") == "IfNotPresent", where
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            assert set(container.get(probe, {"httpGet": {}})) & {"httpGet", "tcpSocket", "exec"}, where
        for probe in ("livenessProbe", "readinessProbe"):
            labels = template["metadata"]["labels"]
            # A submitter ends by itself; it serves nothing.
            if labels["app"] in ("iris-api", "iris-train", "mlflow-server") and labels.get("component") != "submitter":
                assert "httpGet" in container[probe], f"{where}: no wget or curl is in the image"


def test_labels_that_the_operator_sets_are_left_to_it() -> None:
    """A pod that carries app.kubernetes.io/name is not selected by the head Service that the operator makes."""
    for where, template in all_pod_templates():
        assert not {"app.kubernetes.io/name", "app.kubernetes.io/created-by"} & set(template["metadata"]["labels"]), where


def test_ray_is_the_same_version_everywhere() -> None:
    versions = {
        document["spec"][key]["rayVersion"]
        for document in ray_objects()
        for key in ("rayClusterConfig", "rayClusterSpec")
        if key in document["spec"]
    }
    assert versions == {locked("ray")} == {locked("ray", "train")}


def test_the_flags_of_ray_serve_are_those_of_serve_env_on_head_and_workers() -> None:
    lines = (ROOT / "serve_app" / "rayserve" / "serve.env").read_text().splitlines()
    assigned = (shlex.split(line, comments=True) for line in lines)
    expected = dict(word.split("=", 1) for words in assigned for word in words)
    assert one("ConfigMap", "iris-api-serve-flags")["data"] == expected
    for _, template in pod_templates(one("RayService", "iris-api")):
        assert {"configMapRef": {"name": "iris-api-serve-flags"}} in template["spec"]["containers"][0]["envFrom"]


def test_config_and_secret_keep_the_names_that_users_know() -> None:
    config = one("ConfigMap", "iris-api-config")["data"]
    assert config["ENVIRONMENT"] == "production"
    assert config["MODEL_DIR"] == "/app/models"
    assert {"LOG_LEVEL", "CORS_ORIGINS"} <= set(config)
    assert set(one("Secret", "iris-api-secrets")["stringData"]) == {"API_KEY", "MLFLOW_TRACKING_URI"}


def test_a_change_of_the_config_can_reach_head_and_workers() -> None:
    for where, template in pod_templates(one("RayService", "iris-api")):
        assert template["metadata"]["annotations"]["iris-api/config-checksum"] == "unset", where


def test_the_example_secret_is_no_real_one_and_git_ignores_the_real_one() -> None:
    assert one("Secret", "iris-api-secrets")["stringData"]["API_KEY"].startswith("replace-me")
    process = subprocess.run(["git", "check-ignore", "-q", "kuberay/base/secret.yaml"], cwd=ROOT, check=False)
    assert process.returncode == 0


def test_the_service_is_inside_of_the_cluster_and_has_the_name_the_operator_looks_for() -> None:
    service = one("RayService", "iris-api")["spec"]["serveService"]
    assert service["metadata"]["name"] == "iris-api-service"
    assert service["spec"]["type"] == "ClusterIP"
    http, grpc = service["spec"]["ports"]
    assert http == {"name": "serve", "port": 8000, "targetPort": 8000}
    assert grpc == {"name": "serve-grpc", "port": 9000, "targetPort": 9000, "appProtocol": "kubernetes.io/h2c"}
    assert "selector" not in service["spec"], "the operator moves the Service to the new cluster of an upgrade"


def test_ports_of_serve_are_the_same_in_its_config_its_pods_and_its_service() -> None:
    spec = one("RayService", "iris-api")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    expected = {"serve": config["http_options"]["port"], "serve-grpc": config["grpc_options"]["port"]}
    assert {port["name"]: port["targetPort"] for port in spec["serveService"]["spec"]["ports"]} == expected
    for where, template in pod_templates(one("RayService", "iris-api")):
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert {name: port for name, port in ports.items() if name.startswith("serve")} == expected, where
    policy = one("NetworkPolicy", "iris-api")["spec"]["ingress"]
    (everybody,) = [rule["ports"] for rule in policy if "from" not in rule]
    assert {port["port"] for port in everybody} == set(expected.values())


def test_the_node_port_selects_workers_alone_because_they_are_ready_only_with_a_replica() -> None:
    service = one("Service", "iris-api-service-nodeport")["spec"]
    assert [port["nodePort"] for port in service["ports"]] == [30080]
    assert not [name for name in service["selector"] if name.startswith("ray.io/")]
    spec = one("RayService", "iris-api")["spec"]["rayClusterConfig"]
    (worker,) = spec["workerGroupSpecs"]
    assert service["selector"].items() <= worker["template"]["metadata"]["labels"].items()
    assert not service["selector"].items() <= spec["headGroupSpec"]["template"]["metadata"]["labels"].items()
    (container,) = worker["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}


def test_requests_in_flight_end_before_a_pod_is_killed() -> None:
    for where, template in pod_templates(one("RayService", "iris-api")):
        env = {entry["name"]: entry["value"] for entry in template["spec"]["containers"][0]["env"]}
        drain = int(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain + 10 <= template["spec"]["terminationGracePeriodSeconds"], where


def test_the_disruption_budget_counts_workers_and_is_a_number() -> None:
    budget = one("PodDisruptionBudget", "iris-api")["spec"]
    assert isinstance(budget["minAvailable"], int)
    worker = one("RayService", "iris-api")["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    labels = worker["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()
    assert budget["minAvailable"] < worker["minReplicas"]


def test_the_store_is_written_by_training_and_only_read_by_the_api() -> None:
    for where, template in pod_templates(one("RayService", "iris-api")):
        mounts = [m for c in template["spec"]["containers"] for m in c["volumeMounts"] if m["name"] == "models"]
        assert [(m["mountPath"], m.get("readOnly")) for m in mounts] == [("/app/models", True)], where
    template = one("RayJob", "iris-train-job")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    mounts = [m for m in template["spec"]["containers"][0]["volumeMounts"] if m["name"] == "models"]
    assert [(m["mountPath"], m.get("readOnly", False)) for m in mounts] == [("/app/models", False)]
    assert {"name": "data", "mountPath": "/data", "readOnly": True} in template["spec"]["containers"][0]["volumeMounts"]
    template = one("RayJob", "iris-score")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    read_only = {m["mountPath"]: m.get("readOnly", False) for m in template["spec"]["containers"][0]["volumeMounts"]}
    assert read_only == {"/tmp": False, "/app/models": True, "/data": False, "/etc/iris-api/verify": True}


def test_mlflow_lets_in_every_name_under_which_its_service_is_known() -> None:
    container = one("Deployment", "mlflow-server")["spec"]["template"]["spec"]["containers"][0]
    (hosts,) = [arg.partition("=")[2].split(",") for arg in container["args"] if arg.startswith("--allowed-hosts=")]
    namespace = next(entry for entry in container["env"] if entry["name"] == "NAMESPACE")
    assert namespace["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    name = "mlflow-server-service"
    names = (name, f"{name}.$(NAMESPACE)", f"{name}.$(NAMESPACE).svc", f"{name}.$(NAMESPACE).svc.cluster.local")
    assert {f"{name}:5000" for name in names} <= set(hosts)
    assert "*" not in hosts
    service = one("Service", "mlflow-server-service")["spec"]
    labels = one("Deployment", "mlflow-server")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert [port["port"] for port in service["ports"]] == [5000]


def test_every_job_ends_by_itself_and_is_cleaned_up() -> None:
    for name in ("iris-train-job", "iris-score"):
        job = one("RayJob", name)["spec"]
        assert job["shutdownAfterJobFinishes"] is True
        assert job["ttlSecondsAfterFinished"] > 0
        assert job["activeDeadlineSeconds"] > 0
    for name in ("iris-store", "iris-adopt-job", "iris-data", "iris-backup-models", "iris-backup-mlflow", "iris-backup-data"):
        short = one("Job", name)["spec"]
        assert short["ttlSecondsAfterFinished"] > 0
        assert short["activeDeadlineSeconds"] > 0


def test_every_make_target_that_users_know_is_there() -> None:
    text = (KUBERAY / "k8s.mk").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", text, re.MULTILINE))
    assert targets >= {
        "build",
        "k8s-setup",
        "k8s-setup-kind",
        "k8s-deploy",
        "k8s-deploy-mlflow",
        "k8s-train",
        "k8s-status",
        "k8s-logs",
    }
    assert targets >= {"k8s-port-forward", "k8s-mlflow-ui", "k8s-test", "k8s-models", "k8s-promote", "k8s-rollback", "k8s-delete"}
    assert targets >= {"k8s-clean", "k8s-doctor", "k8s-score", "k8s-adopt", "k8s-backup", "k8s-restore"}


def ray_objects() -> list[Json]:
    return [document for _, document in documents() if document["kind"] in ("RayService", "RayJob", "RayCluster")]


def check_security(document: Json) -> None:
    for where, template in pod_templates(document):
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, where
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, where
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True, where
        assert not [volume for volume in template["spec"].get("volumes", []) if "hostPath" in volume], where


@pytest.mark.parametrize("name", ["iris-train-job", "iris-score"])
def test_the_output_of_a_job_is_the_log_of_a_pod_that_the_namespace_admits(name: str) -> None:
    spec = one("RayJob", name)["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    template = spec["submitterPodTemplate"]
    pod, (container,) = template["spec"], template["spec"]["containers"]
    assert pod["restartPolicy"] == "Never"
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["name"] == train.SUBMITTER
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # The policy iris-jobs lets pods of this role reach the head.
    assert template["metadata"]["labels"]["iris-api/role"] == "training"


def test_the_schedule_may_create_and_read_training_jobs_and_nothing_else() -> None:
    rules = one("Role", "iris-train-schedule")["rules"]
    assert rules == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]


def test_a_scheduled_run_outlasts_the_deadline_of_its_training() -> None:
    job = one("CronJob", "iris-train-schedule")["spec"]["jobTemplate"]["spec"]
    assert job["activeDeadlineSeconds"] > one("RayJob", "iris-train-job")["spec"]["activeDeadlineSeconds"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [scheduled_run.FAILED]
    (container,) = job["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_the_ingress_routes_the_api_and_nothing_of_ray() -> None:
    (rule,) = one("Ingress", "iris-api")["spec"]["rules"]
    paths = {(path["path"], path["pathType"]) for path in rule["http"]["paths"]}
    assert ("/", "Prefix") not in paths
    assert not [path for path, _ in paths if path.startswith("/-") or path == "/metrics"]
    assert {path["backend"]["service"]["name"] for path in rule["http"]["paths"]} == {"iris-api-service"}
