"""How many replicas: the largest of what CPU, memory and requests in flight ask for, damped like the HPA it replaces.

Serve applies the bounds (2 to 10) and the delays (up after seconds, down after minutes) of the deployment's configuration.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CPU_TARGET = 70.0
MEMORY_TARGET = 80.0
TOLERANCE = 0.1
"""Within ten per cent of the target nothing is changed."""


def wanted_replicas(current: int, usage: Mapping[str, float], targets: Mapping[str, float]) -> int:
    """Replicas that bring every mean back to its target; at most doubled (or +2) upwards, at most halved downwards."""
    ratios = [usage[name] / target for name, target in targets.items() if name in usage and target > 0]
    if not ratios or current < 1:
        return max(current, 1)
    ratio = max(ratios)
    if abs(ratio - 1.0) <= TOLERANCE:
        return current
    return max(math.ceil(current / 2), min(math.ceil(current * ratio), max(current * 2, current + 2)))


def autoscale(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's autoscaling policy. It never raises: one raising policy would stop the scaling of every application."""
    current = context.target_num_replicas
    try:
        running = max(1, context.current_num_replicas)
        usage = {name: _mean(values) for name, values in (context.aggregated_metrics or {}).items() if values}
        usage["in_flight"] = usage.get("in_flight", 0.0) + context.total_num_requests / running
        targets = {"cpu": CPU_TARGET, "memory": MEMORY_TARGET, "in_flight": context.config.target_ongoing_requests}
        return wanted_replicas(running, usage, targets), {}
    except Exception:
        return current, {}


class Usage:
    """CPU and memory of this replica in percent of what it may use, as the policy reads them."""

    def __init__(self, cpus: float) -> None:
        self._cpus = max(cpus, 0.001)
        self._limit = memory_limit()
        self._last = (time.monotonic(), _cpu_seconds())

    def read(self) -> dict[str, float]:
        now, used = time.monotonic(), _cpu_seconds()
        before, used_before = self._last
        self._last = (now, used)
        share = (used - used_before) / max(now - before, 0.001) / self._cpus
        return {"cpu": 100.0 * share, "memory": 100.0 * _resident_bytes() / self._limit}


def assigned_cpus() -> float:
    """The CPUs that Ray has set aside for this replica (serveConfigV2 may say another number than the code); 0 outside of Ray."""
    import ray

    if not ray.is_initialized():
        return 0.0
    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 0.0))


def memory_limit() -> float:
    """Bytes this container may use; the machine's memory where there is no limit."""
    machine = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return min(machine, float(text))
    return machine


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident_bytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def _mean(values: Mapping[Any, float]) -> float:
    return sum(values.values()) / len(values)
