"""delete and clean: remove the workloads, or everything. Custom resources go first, while the operator can still finish them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kuberay.ctl.kube import PART_OF, PODS, Cluster, Json, echo, field
from kuberay.ctl.waiting import DeadlineExceeded, Progress, poll

CUSTOM = ("raycronjobs", "rayjobs", "rayservices", "rayclusters")
WORKLOADS = "cronjobs,jobs,deployments,statefulsets,ingresses,poddisruptionbudgets,networkpolicies,services"
GATEWAY = ("grpcroutes.gateway.networking.k8s.io", "httproutes.gateway.networking.k8s.io", "gateways.gateway.networking.k8s.io")
"""Kinds that a cluster may not have."""
OPERATED = ("externalsecrets.external-secrets.io", "secretstores.external-secrets.io", "issuers.cert-manager.io")
"""Kinds from which other operators create Secrets again; a cluster may not have them."""
KEPT = "volumes (models-pvc, mlflow-pvc), Secrets and ConfigMaps stay; `make k8s-clean` removes them too"
DELETION_TIMEOUT = 120.0
PODS_TIMEOUT = 180.0
VOLUMES_TIMEOUT = 60.0
NO_FINALIZERS = '{"metadata":{"finalizers":null}}'


def delete(cluster: Cluster) -> None:
    """Remove the workloads; volumes, Secrets and ConfigMaps stay."""
    remove_workloads(cluster)
    echo(f"the workloads in {cluster.namespace} are removed; {KEPT}")


def clean(cluster: Cluster) -> None:
    """Remove everything: workloads, volumes with the models, Secrets, and the namespace when this project created it."""
    namespace = cluster.get("namespace", cluster.namespace, namespaced=False)
    if namespace is None:
        echo(f"there is no namespace {cluster.namespace}: nothing to do")
        return
    volumes = [field(claim, "spec.volumeName") for claim in cluster.items("persistentvolumeclaims", PART_OF)]
    remove_workloads(cluster)
    for kind in OPERATED:
        _delete(cluster, kind, PART_OF)
    _delete(cluster, "persistentvolumeclaims,configmaps,secrets,serviceaccounts,roles,rolebindings", PART_OF)
    for volume in cluster.items("persistentvolumes", PART_OF, namespaced=False):
        if field(volume, "spec.claimRef.namespace") == cluster.namespace:  # volumes may also belong to another installation
            echo(f"  persistentvolume {volume['metadata']['name']}")
            cluster.run("delete", "persistentvolume", volume["metadata"]["name"], "--wait=false", namespaced=False)
    _delete_namespace(cluster, namespace)
    names = [name for name in volumes if name and cluster.get("pv", name, namespaced=False) is not None]

    def existing() -> list[str]:
        return [name for name in names if cluster.get("pv", name, namespaced=False) is not None]

    _wait_until_gone("volumes", existing, VOLUMES_TIMEOUT)
    retained = existing()
    echo(f"everything is removed{f', except volumes that their class retains: {retained}' if retained else ''}")


def remove_workloads(cluster: Cluster) -> None:
    """Delete owners before the objects that they own, and wait: the operator recreates an object while its owner exists."""
    for kind in CUSTOM:
        if cluster.try_run("get", kind, "-o", "name"):
            _delete(cluster, kind, PART_OF if kind != "rayclusters" else "")
    for kind in GATEWAY:
        _delete(cluster, kind, PART_OF)
    _delete(cluster, WORKLOADS, PART_OF)
    _wait_until_gone("pods", lambda: cluster.pods(PODS), PODS_TIMEOUT)


def _delete_namespace(cluster: Cluster, namespace: Json) -> None:
    if field(namespace, "metadata.labels", {}).get("app.kubernetes.io/part-of") != "iris-api":
        echo(f"this project did not create the namespace {cluster.namespace}, so it stays; the project's objects in it are removed")
        return
    echo(f"  namespace {cluster.namespace}")
    cluster.run("delete", "namespace", cluster.namespace, "--wait=false", "--ignore-not-found", namespaced=False)

    def existing() -> list[Json]:
        document = cluster.get("namespace", cluster.namespace, namespaced=False)
        return [document] if document else []

    _wait_until_gone("the namespace", existing, PODS_TIMEOUT)


def _delete(cluster: Cluster, kinds: str, selector: str, *, namespaced: bool = True) -> None:
    """Delete the objects of some kinds that match a label selector, and wait; an empty selector matches all objects."""
    arguments = ("-l", selector) if selector else ("--all",)
    output = cluster.try_run("delete", kinds, *arguments, "--wait=false", "--ignore-not-found", namespaced=namespaced) or ""
    for line in output.splitlines():
        if "deleted" in line:
            echo(f"  {line.split(' from ')[0]}")
    for kind in kinds.split(","):
        _finish(cluster, kind, selector, namespaced=namespaced)


def _finish(cluster: Cluster, kind: str, selector: str, *, namespaced: bool) -> None:
    """Wait until the deletion ends; remove the finalizers of objects whose operator does not answer."""

    def deleted() -> list[Json]:
        items = cluster.items(kind, selector, namespaced=namespaced)
        return [item for item in items if field(item, "metadata.deletionTimestamp")]

    if _gone(deleted, DELETION_TIMEOUT):
        return
    if kind in CUSTOM:
        for item in deleted():
            name = item["metadata"]["name"]
            echo(f"  {kind}/{name}: finalizers removed, because the operator does not finish the deletion (is it installed?)")
            cluster.try_run("patch", kind, name, "--type=merge", "-p", NO_FINALIZERS, namespaced=namespaced)
        if _gone(deleted, DELETION_TIMEOUT):
            return
    echo(f"  {kind}: the deletion of {len(deleted())} objects has not ended after {DELETION_TIMEOUT:.0f} s: run `make k8s-doctor`")


def _wait_until_gone(what: str, remaining: Callable[[], Sequence[object]], timeout: float) -> None:
    if not _gone(remaining, timeout, what):
        echo(f"  {what}: {len(remaining())} objects remain after {timeout:.0f} s: run `make k8s-doctor`")


def _gone(remaining: Callable[[], Sequence[object]], timeout: float, what: str = "") -> bool:
    """Whether all objects are gone within `timeout` seconds; with `what`, prints the number of remaining objects."""

    def check(progress: Progress) -> bool | None:
        count = len(remaining())
        if count and what:
            progress(f"waiting for the end of {count} {what}")
        return True if not count else None

    try:
        return poll(check, timeout=timeout, failure=f"{what or 'objects'} remain", interval=0.5)
    except DeadlineExceeded:
        return False
