"""The autoscaling policy: the largest number of replicas that CPU, memory or requests in flight need, damped as in the HPA.

Ray Serve applies the bounds (`min_replicas`, `max_replicas`) and the delays (`upscale_delay_s`, `downscale_delay_s`) of the
deployment's `autoscaling_config` to what the policy returns.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_app.artifacts.memory_limit import memory_limit

log = logging.getLogger("ray.serve.iris_api.autoscaling")
"""A child of Serve's logger: the policy runs in Serve's controller, so its lines reach the controller's log file."""

CPU_TARGET = 70.0
"""Target in percent of a replica's CPUs."""
MEMORY_TARGET = 80.0
"""Target in percent of the memory limit of a replica's container."""
TOLERANCE = 0.1
"""Relative distance to the target within which the number of replicas does not change, as in the HPA."""

_logged_errors: set[type[Exception]] = set()


def desired_replicas(current: int, usage: Mapping[str, float], targets: Mapping[str, float]) -> int:
    """The number of replicas that brings every mean back to its target.

    `usage` and `targets` hold the mean of each resource per replica, in the same unit. One step at most doubles the number (or adds
    two) and at most halves it. The formula comes from Kubernetes' HorizontalPodAutoscaler.
    """
    ratios = [usage[name] / target for name, target in targets.items() if name in usage and target > 0]
    if not ratios or current < 1:
        return max(current, 1)
    ratio = max(ratios)
    if abs(ratio - 1.0) <= TOLERANCE:
        return current
    return max(math.ceil(current / 2), min(math.ceil(current * ratio), max(current * 2, current + 2)))


def autoscale(context: Any) -> tuple[int, dict[str, Any]]:
    """The autoscaling policy for Ray Serve: return the target number of replicas, and an empty policy state.

    The policy never raises, because an exception would stop the scaling of every application on the cluster. After an error, the
    number of replicas does not change, and the log gets one line for each type of error.
    """
    current = context.target_num_replicas
    try:
        running = max(1, context.current_num_replicas)
        usage = {name: _mean(values) for name, values in (context.aggregated_metrics or {}).items() if values}
        usage["in_flight"] = usage.get("in_flight", 0.0) + context.total_num_requests / running
        targets = {"cpu": CPU_TARGET, "memory": MEMORY_TARGET, "in_flight": context.config.target_ongoing_requests}
        return desired_replicas(running, usage, targets), {}
    except Exception as error:
        if type(error) not in _logged_errors:  # Serve calls the policy several times a second
            _logged_errors.add(type(error))
            log.exception("the autoscaling policy failed; the number of replicas stays at %s", current)
        return current, {}


class Usage:
    """CPU and memory of this replica, in percent of its CPUs (`cpus`, at least 0.001) and of its memory limit."""

    def __init__(self, cpus: float) -> None:
        self._cpus = max(cpus, 0.001)
        self._limit = memory_limit()
        self._last = (time.monotonic(), _cpu_seconds())

    def read(self) -> dict[str, float]:
        """Return `cpu` since the last call (or since the start) and the current `memory`, both in percent."""
        now, seconds = time.monotonic(), _cpu_seconds()
        last, last_seconds = self._last
        self._last = (now, seconds)
        share = (seconds - last_seconds) / max(now - last, 0.001) / self._cpus
        return {"cpu": 100.0 * share, "memory": 100.0 * _resident_bytes() / self._limit}


def assigned_cpus() -> float:
    """The CPUs that Ray has assigned to this replica (serveConfigV2 overrides the number in the code); 0 outside Ray."""
    import ray

    if not ray.is_initialized():
        return 0.0
    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _resident_bytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _mean(values: Mapping[Any, float]) -> float:
    return sum(values.values()) / len(values)
