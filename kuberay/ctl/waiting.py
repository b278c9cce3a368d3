"""Waiting with progress: a line whenever something changes, an end as soon as waiting cannot help."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from kuberay.ctl.faults import Fault, application_fault, pod_faults
from kuberay.ctl.kube import RAYSERVICE, SERVICE, Cluster, CommandError, Json, conditions, field, say

PATIENCE = 30.0
"""Seconds that a fault may last before it counts: an image can be pulled at the second try."""

SETTLING = 15.0
"""Seconds that a failed application must stay failed before it is believed."""


class Progress:
    """Prints what changed, with the seconds since the beginning."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = ""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def __call__(self, text: str) -> None:
        if text != self._last:
            say(f"{self.seconds:5.0f} s  {text}")
            self._last = text


def until(cluster: Cluster, what: str, look: Callable[[], tuple[bool, str]], selector: str) -> float:
    """Call `look` until it says done; returns the seconds. Raises Stop on a lasting fault or after K8S_TIMEOUT seconds."""
    limit = float(os.environ.get("K8S_TIMEOUT") or 600)
    progress = Progress()
    since: dict[Fault, float] = {}
    while True:
        done, text = look()
        progress(text)
        if done:
            return progress.seconds
        faults = pod_faults(cluster, selector)
        since = {fault: since.get(fault, progress.seconds) for fault in faults}
        for fault, start in since.items():
            if progress.seconds - start >= PATIENCE:
                if fault.final:
                    raise CommandError(str(fault))
                progress(str(fault))
        if progress.seconds > limit:
            hint = "; ".join(str(fault) for fault in faults) or "run `make k8s-doctor`"
            raise CommandError(f"{what} is not ready after {limit:.0f} s: {hint}")
        time.sleep(1)


def mlflow(cluster: Cluster) -> float:
    def look() -> tuple[bool, str]:
        status = field(cluster.get("deployment", "mlflow-server"), "status", {})
        done = status.get("availableReplicas", 0) >= 1 and status.get("updatedReplicas", 0) >= 1
        return done, f"MLflow {'is ready' if done else 'starts'}"

    return until(cluster, "MLflow", look, "app=mlflow-server")


def api(cluster: Cluster) -> float:
    """Until the RayService serves what its spec says, not only something, and its Service leads there."""

    first_seen: dict[Fault, float] = {}
    led_there = False  # at the look before: a node's proxy learns of endpoints a moment after the API server does

    def look() -> tuple[bool, str]:
        nonlocal led_there
        service = cluster.get("rayservice", RAYSERVICE)
        fault = application_fault(service)
        if fault is not None and observed(service):
            # For a moment the status may still be that of the spec before.
            if time.monotonic() - first_seen.setdefault(fault, time.monotonic()) > SETTLING:
                raise CommandError(str(fault).replace("NAMESPACE", cluster.namespace))
        else:
            first_seen.clear()
        led_before = led_there
        led_there = has_endpoints(cluster.items("endpointslices", f"kubernetes.io/service-name={SERVICE}"))
        text = _describe(cluster, service) + ("" if led_there else ", no endpoints yet")
        return settled(service) and led_before and led_there, text

    return until(cluster, "the API", look, "app=iris-api")


def has_endpoints(slices: list[Json]) -> bool:
    """Whether a Service with these EndpointSlices leads to a pod that is ready."""
    endpoints = [endpoint for found in slices for endpoint in found.get("endpoints") or []]
    return any(field(endpoint, "conditions.ready", False) for endpoint in endpoints)


def observed(service: Json | None) -> bool:
    """Whether the operator has seen the newest spec."""
    return bool(field(service, "status.observedGeneration", 0) >= field(service, "metadata.generation", 1))


def settled(service: Json | None) -> bool:
    """Whether what the spec says is what answers."""
    have = conditions(service)
    applications = field(service, "status.activeServiceStatus.applicationStatuses") or {}
    return (
        observed(service)
        and have.get("Ready", {}).get("status") == "True"
        and have.get("UpgradeInProgress", {}).get("status") != "True"
        and bool(applications)
        and all(status.get("status") == "RUNNING" for status in applications.values())
    )


def _describe(cluster: Cluster, service: Json | None) -> str:
    if service is None:
        return "waiting for the RayService"
    pods = [pod for pod in cluster.pods("app=iris-api") if field(pod, "metadata.deletionTimestamp") is None]
    parts = []
    for component in ("head", "worker"):
        mine = [pod for pod in pods if field(pod, "metadata.labels", {}).get("component") == component]
        ready = sum(conditions(pod).get("Ready", {}).get("status") == "True" for pod in mine)
        parts.append(f"{component}s {ready}/{len(mine)} ready")
    for side in ("activeServiceStatus", "pendingServiceStatus"):
        where = " (new cluster)" if side.startswith("pending") else ""
        applications = (field(service, f"status.{side}.applicationStatuses") or {}).values()
        parts += [f"application {status.get('status')}{where}" for status in applications]
    if conditions(service).get("UpgradeInProgress", {}).get("status") == "True":
        parts.append("upgrade in progress")
    return ", ".join(parts)
