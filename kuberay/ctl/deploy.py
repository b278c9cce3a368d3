"""deploy: from an overlay's name to an API that answers; setup: the operator."""

from __future__ import annotations

import shutil
import subprocess

from kuberay.ctl import manifests, waiting
from kuberay.ctl.kube import SERVICE, Cluster, CommandError, field, say

CRD = "rayservices.ray.io"
RELEASE = "kuberay-operator"
HELM_REPOSITORY = "https://ray-project.github.io/kuberay-helm/"


def deploy(cluster: Cluster, name: str) -> None:
    """Apply everything in an order in which nothing waits for something later, then wait until it serves."""
    folder = manifests.overlay(name)
    require_operator(cluster)
    documents = manifests.build(cluster, folder)
    from_outside = any(manifests.kind(text) == "ExternalSecret" for text in documents)
    secret = None if from_outside else manifests.check_secret(cluster)
    first = [text for text in documents if manifests.kind(text) == "Namespace"]
    cluster.run("apply", "-f", "-", text="---\n".join(first), namespaced=False)
    if secret is not None:
        cluster.run("apply", "-f", "-", text=secret)
    documents = manifests.stamp(cluster, documents)
    for line in cluster.run("apply", "-f", "-", text="---\n".join(documents), namespaced=False).splitlines():
        if not line.endswith("unchanged"):
            say(f"  {line}")
    seconds = waiting.mlflow(cluster) if any(": mlflow-server\n" in text for text in documents) else 0.0
    seconds += waiting.api(cluster)
    ports = field(cluster.get("service", SERVICE), "spec.ports", [])
    node_port = next((port["nodePort"] for port in ports if "nodePort" in port), None)
    say(
        f"the API answers after {seconds:.0f} s: Service {SERVICE}:8000"
        + (f", port {node_port} of every node" if node_port else "")
    )
    say("next: make k8s-test, make k8s-train")


def require_operator(cluster: Cluster) -> None:
    if cluster.ask("version", "-o", "json", namespaced=False) is None:
        raise CommandError("no cluster answers: look at `kubectl cluster-info`, set KUBECONFIG or KUBECTL='kubectl --context NAME'")
    if cluster.get("crd", CRD, namespaced=False) is None:
        raise CommandError("the KubeRay operator is not installed on this cluster: run `make k8s-setup`")


def operator(cluster: Cluster) -> tuple[str, int] | None:
    """(image, available replicas) of the operator that is installed, wherever it is."""
    for deployment in cluster.items("deployments", everywhere=True):
        for container in field(deployment, "spec.template.spec.containers", []):
            if "kuberay/operator" in container["image"] or deployment["metadata"]["name"] == RELEASE:
                return str(container["image"]), int(field(deployment, "status.availableReplicas", 0))
    return None


def setup(cluster: Cluster, version: str) -> None:
    """Install the operator, once."""
    found = operator(cluster)
    if found is not None and cluster.get("crd", CRD, namespaced=False) is not None:
        say(f"the KubeRay operator is there already: {found[0]}, {found[1]} running; nothing to do")
        return
    if shutil.which("helm"):
        command = ["helm", "upgrade", "--install", RELEASE, RELEASE, "--repo", HELM_REPOSITORY, "--version", version]
        command += ["--namespace", "kuberay-system", "--create-namespace", "--wait"]
    else:
        source = f"github.com/ray-project/kuberay/ray-operator/config/default?ref=v{version}"
        command = cluster.command("apply", "--server-side", "-k", source, namespaced=False)
    say("  " + " ".join(command))
    if subprocess.run(command, check=False).returncode:  # noqa: S603
        raise CommandError(f"the operator {version} could not be installed: see the message above")
    say("the KubeRay operator is installed")
