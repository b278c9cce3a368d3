"""Waits until the system is ready: MLflow runs, the API serves its newest spec, every replica answers with one version."""

from __future__ import annotations

from kuberay.ctl.api_client import ApiClient, connect
from kuberay.ctl.faults import Fault, application_fault, pod_faults
from kuberay.ctl.kube import MLFLOW, RAYSERVICE, SERVICE, Cluster, Json, conditions, field, is_ready
from kuberay.ctl.waiting import Progress, poll

VERSION_TIMEOUT = 90.0
REFUSAL_GRACE = 5.0
"""Seconds that a refusal may last, because replicas try again to read a file after a failure."""
VERSION_REQUESTS = 20
"""Number of consecutive responses, each on its own connection, that prove that every replica serves a version."""


def wait_for_mlflow(cluster: Cluster) -> float:
    """Wait until MLflow's newest pod is available; returns the seconds. Raises CommandError like `poll`."""

    def available(progress: Progress) -> bool | None:
        status = field(cluster.get("deployment", MLFLOW), "status", {})
        ready = status.get("availableReplicas", 0) >= 1 and status.get("updatedReplicas", 0) >= 1
        progress(f"MLflow {'is ready' if ready else 'is starting'}")
        return ready or None

    progress = Progress()
    poll(
        available,
        timeout=cluster.timeout,
        failure="MLflow is not ready",
        faults=lambda: pod_faults(cluster, f"app={MLFLOW}"),
        progress=progress,
    )
    return progress.seconds


def wait_for_api(cluster: Cluster) -> float:
    """Wait until the API serves its newest spec; returns the seconds. Raises CommandError like `poll`."""
    progress, readiness = Progress(), ApiReadiness(cluster)
    poll(readiness.check, timeout=cluster.timeout, failure="the API is not ready", faults=readiness.faults, progress=progress)
    return progress.seconds


class ApiReadiness:
    """Whether the RayService serves its newest spec and its Service has had endpoints in two checks.

    The proxy of a node learns of endpoints shortly after the API server, so one check is not enough.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._service: Json | None = None
        self._has_endpoints = False

    def check(self, progress: Progress) -> bool | None:
        """Return True when the API is ready, else None; reports the state."""
        before = self._has_endpoints
        self._service = self._cluster.get("rayservice", RAYSERVICE)
        slices = self._cluster.items("endpointslices", f"kubernetes.io/service-name={SERVICE}")
        self._has_endpoints = has_endpoints(slices)
        progress(describe(self._cluster, self._service) + ("" if self._has_endpoints else ", no endpoints yet"))
        return (is_settled(self._service) and before and self._has_endpoints) or None

    def faults(self) -> list[Fault]:
        """The faults of the pods, and of the application when its status belongs to the newest spec."""
        fault = application_fault(self._service) if is_observed(self._service) else None
        return [*([fault] if fault else []), *pod_faults(self._cluster, "app=iris-api")]


def wait_for_version(cluster: Cluster, version: str, progress: Progress) -> None:
    """Wait until the API answers only with the model `version`.

    Raises CommandError like `poll`, and with the reason when a replica refuses that model.
    """
    with connect(cluster) as client:

        def switched(progress: Progress) -> bool | None:
            versions = served_versions(client)
            if versions == {version}:
                return True
            progress(f"the API answers with version {', '.join(sorted(map(str, versions)))}")
            return None

        poll(
            switched,
            timeout=VERSION_TIMEOUT,
            failure=f"the API does not answer only with version {version} (see `make k8s-test`)",
            interval=0.5,
            faults=lambda: refusals(client, version),
            progress=progress,
        )


def refusals(client: ApiClient, version: str) -> list[Fault]:
    """The fault that a replica reports for this version in `GET /model`; empty while it refuses no version or another one."""
    try:
        refused = client.request("/model").body.get("refused")
    except OSError:
        return []
    if not isinstance(refused, dict) or not str(refused.get("candidate")).startswith(f"{version}-"):
        return []
    cause = f"the replicas refuse it ({refused.get('reason')}): {refused.get('message')}; they still serve the previous model"
    return [
        Fault(
            f"model version {version}",
            cause,
            "make k8s-models, then make k8s-promote VERSION=… with another version",
            grace=REFUSAL_GRACE,
        )
    ]


def served_versions(client: ApiClient) -> set[str | None]:
    """The versions in the next responses; a failed request counts as a separate version."""
    versions: set[str | None] = set()
    for _ in range(VERSION_REQUESTS):
        try:
            versions.add(client.request("/model/info").version)
        except OSError as error:
            versions.add(f"no answer ({error})")
    return versions


def has_endpoints(slices: list[Json]) -> bool:
    """Whether a Service with these EndpointSlices has a ready pod."""
    endpoints = [endpoint for item in slices for endpoint in item.get("endpoints") or []]
    return any(field(endpoint, "conditions.ready", False) for endpoint in endpoints)


def is_observed(service: Json | None) -> bool:
    """Whether the operator has seen the newest spec."""
    return bool(field(service, "status.observedGeneration", 0) >= field(service, "metadata.generation", 1))


def is_settled(service: Json | None) -> bool:
    """Whether the application with the newest spec answers."""
    status = {name: condition.get("status") for name, condition in conditions(service).items()}
    applications = field(service, "status.activeServiceStatus.applicationStatuses") or {}
    return (
        is_observed(service)
        and status.get("Ready") == "True"
        and status.get("UpgradeInProgress") != "True"
        and bool(applications)
        and all(application.get("status") == "RUNNING" for application in applications.values())
    )


def describe(cluster: Cluster, service: Json | None) -> str:
    """The pods, applications and upgrade of the RayService in one line."""
    if service is None:
        return "waiting for the RayService"
    pods = [pod for pod in cluster.pods("app=iris-api") if field(pod, "metadata.deletionTimestamp") is None]
    parts = [_describe_pods(pods, component) for component in ("head", "worker")]
    for side, note in (("activeServiceStatus", ""), ("pendingServiceStatus", " (new cluster)")):
        applications = (field(service, f"status.{side}.applicationStatuses") or {}).values()
        parts += [f"application {application.get('status')}{note}" for application in applications]
    if conditions(service).get("UpgradeInProgress", {}).get("status") == "True":
        parts.append("upgrade in progress")
    return ", ".join(parts)


def _describe_pods(pods: list[Json], component: str) -> str:
    members = [pod for pod in pods if field(pod, "metadata.labels", {}).get("component") == component]
    ready = sum(map(is_ready, members))
    return f"{component}s {ready}/{len(members)} ready"
