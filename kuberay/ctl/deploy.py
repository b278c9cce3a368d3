"""deploy: apply an overlay and wait until the API answers. setup: install the operator."""

from __future__ import annotations

import shutil
import subprocess

from kuberay.ctl import manifests, mlflow_uri, secrets
from kuberay.ctl.kube import MLFLOW, PART_OF, SERVICE, Cluster, CommandError, echo, field
from kuberay.ctl.node_port import node_ports
from kuberay.ctl.readiness import wait_for_api, wait_for_mlflow

CRD = "rayservices.ray.io"
RELEASE = "kuberay-operator"
HELM_REPOSITORY = "https://ray-project.github.io/kuberay-helm/"


def deploy(cluster: Cluster, name: str) -> None:
    """Apply an overlay, its Secrets first, and wait until MLflow (if the overlay has it) and the API are ready.

    Raises CommandError when something is missing or not ready within K8S_TIMEOUT seconds.
    """
    manifests.overlay(name)  # reports a wrong name before any call to the cluster
    require_operator(cluster)
    uri = mlflow_uri.tracking_uri(cluster)
    folder = mlflow_uri.overlay_for(cluster, name, uri)
    documents = manifests.build(cluster, folder)
    mlflow_uri.check(uri, documents)
    secrets.apply_before(cluster, documents)
    secrets.create_missing(cluster, documents)
    manifests.set_checksum(documents, secrets.used_secrets(cluster, documents))
    for line in cluster.run("apply", "-f", "-", text=manifests.dump(documents), namespaced=False).splitlines():
        if not line.endswith("unchanged"):
            echo(f"  {line}")
    has_mlflow = any(document["metadata"]["name"] == MLFLOW for document in manifests.of_kind(documents, "Deployment"))
    seconds = (wait_for_mlflow(cluster) if has_mlflow else 0.0) + wait_for_api(cluster)
    ports = node_ports(cluster.items("services", PART_OF))
    outside = f"port {ports[0]} of every node" if ports else "for clients outside the cluster: make k8s-nodeport"
    echo(f"the API answers after {seconds:.0f} s: Service {SERVICE}:8000, {outside}")
    echo(f"next: make k8s-test, {mlflow_uri.next_training(uri)}")


def require_operator(cluster: Cluster) -> None:
    """Raise CommandError when no cluster answers or the KubeRay operator's custom resources are missing."""
    if cluster.try_run("version", "-o", "json", namespaced=False) is None:
        raise CommandError("no cluster answers: check `kubectl cluster-info`, set KUBECONFIG or KUBECTL='kubectl --context NAME'")
    if cluster.get("crd", CRD, namespaced=False) is None:
        raise CommandError("the KubeRay operator is not installed on this cluster: run `make k8s-setup`")


def installed_operator(cluster: Cluster) -> tuple[str, int] | None:
    """The image and the number of available replicas of the operator, in any namespace; None when there is no operator."""
    for deployment in cluster.items("deployments", all_namespaces=True):
        for container in field(deployment, "spec.template.spec.containers", []):
            if "kuberay/operator" in container["image"] or deployment["metadata"]["name"] == RELEASE:
                return str(container["image"]), int(field(deployment, "status.availableReplicas", 0))
    return None


def setup(cluster: Cluster, version: str) -> None:
    """Install the operator with helm, or with kubectl if helm is missing; an installed operator stays as it is."""
    operator = installed_operator(cluster)
    if operator is not None and cluster.get("crd", CRD, namespaced=False) is not None:
        echo(f"the KubeRay operator is installed already: {operator[0]}, {operator[1]} running; nothing to do")
        return
    if shutil.which("helm"):
        command = ["helm", "upgrade", "--install", RELEASE, RELEASE, "--repo", HELM_REPOSITORY, "--version", version]
        command += ["--namespace", "kuberay-system", "--create-namespace", "--wait"]
    else:
        source = f"github.com/ray-project/kuberay/ray-operator/config/default?ref=v{version}"
        command = cluster.command("apply", "--server-side", "-k", source, namespaced=False)
    echo("  " + " ".join(command))
    if subprocess.run(command, check=False).returncode:  # noqa: S603
        raise CommandError(f"the operator {version} was not installed: see the message above")
    echo("the KubeRay operator is installed")
