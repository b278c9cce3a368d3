"""delete and clean: the workloads, or everything; custom resources first, while the operator can still finish them."""

from __future__ import annotations

import time

from kuberay.ctl.kube import PART_OF, PODS, Cluster, Json, field, say
from kuberay.ctl.waiting import Progress

CUSTOM = ("raycronjobs", "rayjobs", "rayservices", "rayclusters")
WORKLOADS = "cronjobs,jobs,deployments,statefulsets,ingresses,poddisruptionbudgets,networkpolicies,services"
OPERATED = ("externalsecrets.external-secrets.io", "secretstores.external-secrets.io", "issuers.cert-manager.io")
"""What other operators would make Secrets from again; not on every cluster."""
KEPT = "volumes (models-pvc, mlflow-pvc), Secrets and ConfigMaps stay; `make k8s-clean` removes them too"
STUCK_AFTER = 120.0


def delete(cluster: Cluster) -> None:
    """The workloads; what people made stays."""
    remove_workloads(cluster)
    say(f"the workloads in {cluster.namespace} are gone; {KEPT}")


def clean(cluster: Cluster) -> None:
    """Everything: workloads, volumes with the models, Secret, namespace."""
    namespace = cluster.get("namespace", cluster.namespace, namespaced=False)
    if namespace is None:
        say(f"there is no namespace {cluster.namespace}: nothing to do")
        return
    volumes = [field(claim, "spec.volumeName") for claim in cluster.items("persistentvolumeclaims", PART_OF)]
    remove_workloads(cluster)
    for kind in OPERATED:
        _delete(cluster, kind, PART_OF)
    _delete(cluster, "persistentvolumeclaims,configmaps,secrets,serviceaccounts,roles,rolebindings", PART_OF)
    _delete(cluster, "persistentvolumes", PART_OF, namespaced=False)
    if field(namespace, "metadata.labels", {}).get("app.kubernetes.io/part-of") == "iris-api":
        say(f"  namespace {cluster.namespace}")
        cluster.run("delete", "namespace", cluster.namespace, "--wait=false", "--ignore-not-found", namespaced=False)
        _until_gone("the namespace", lambda: [cluster.get("namespace", cluster.namespace, namespaced=False)])
    else:
        say(f"the namespace {cluster.namespace} was not made by this project, so it stays; what the project put into it is gone")
    left = [name for name in volumes if name and field(cluster.get("pv", name, namespaced=False), "spec") is not None]
    _until_gone("volumes", lambda: [cluster.get("pv", name, namespaced=False) for name in left], limit=60.0)
    kept = [name for name in left if cluster.get("pv", name, namespaced=False) is not None]
    say(f"everything is gone{f', except volumes that their class retains: {kept}' if kept else ''}")


def remove_workloads(cluster: Cluster) -> None:
    """Owners before what they own, and wait: what is deleted under the operator's hands it would make again."""
    for kind in CUSTOM:
        if cluster.ask("get", kind, "-o", "name"):
            _delete(cluster, kind, PART_OF if kind != "rayclusters" else "")
    _delete(cluster, WORKLOADS, PART_OF)
    _until_gone("pods", lambda: list(cluster.pods(PODS)))


def _delete(cluster: Cluster, kinds: str, selector: str, *, namespaced: bool = True) -> None:
    arguments = ("-l", selector) if selector else ("--all",)
    out = cluster.ask("delete", kinds, *arguments, "--wait=false", "--ignore-not-found", namespaced=namespaced) or ""
    for line in out.splitlines():
        if "deleted" in line:
            say(f"  {line.split(' from ')[0]}")
    for kind in kinds.split(","):
        _finish(cluster, kind, selector, namespaced=namespaced)


def _finish(cluster: Cluster, kind: str, selector: str, *, namespaced: bool) -> None:
    """Wait until they are gone; one whose operator never answers loses its finalizers."""
    progress = Progress()
    while left := [one for one in cluster.items(kind, selector, namespaced=namespaced) if field(one, "metadata.deletionTimestamp")]:
        if kind in CUSTOM and progress.seconds > STUCK_AFTER:
            for one in left:
                name = one["metadata"]["name"]
                say(f"  {kind}/{name}: nobody finishes its deletion (is the operator gone?), its finalizers are taken away")
                cluster.ask("patch", kind, name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', namespaced=namespaced)
        elif progress.seconds > STUCK_AFTER:
            say(f"  {kind}: {len(left)} still being deleted after {STUCK_AFTER:.0f} s")
            return
        time.sleep(0.5)


def _until_gone(what: str, look: object, limit: float = 180.0) -> None:
    assert callable(look)
    progress = Progress()
    while True:
        left: list[Json | None] = [one for one in look() if one is not None]
        if not left:
            return
        progress(f"waiting for {len(left)} {what} to end")
        if progress.seconds > limit:
            say(f"  {what}: {len(left)} still there after {limit:.0f} s: run `make k8s-doctor`")
            return
        time.sleep(1)
