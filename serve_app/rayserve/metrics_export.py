"""The accounts of a replica on Ray's metrics port, so that one scrape per pod sees every replica in it.

Each sample becomes a Ray gauge that is set to the running total, under the name it has on `/metrics` (Ray puts `ray_` before
it, which the scrape takes off again). A Ray counter would do worse: it cannot start at zero, so that `increase()` misses the
first event; a Ray histogram guesses its sum, and costs a call per value. And a gauge goes when its replica goes.
"""

from __future__ import annotations

import time

from prometheus_client import Metric
from ray.serve import metrics

from serve_app.telemetry.collector import MetricsCollector

SECONDS = 5.0
"""Between two exports: Ray collects every 10 seconds, and a gauge that was not set in between is gone."""


class Exporter:
    """Called about once a second with the accounts, in their thread; sets Ray's gauges every few seconds.

    Ray adds the labels deployment, replica and application.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, metrics.Gauge] = {}
        self._due = 0.0

    def __call__(self, accounts: MetricsCollector) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + SECONDS
        for family in accounts.collect():
            for sample in family.samples:
                self._gauge(family, sample.name, tuple(sample.labels)).set(sample.value, sample.labels)

    def _gauge(self, family: Metric, name: str, labels: tuple[str, ...]) -> metrics.Gauge:
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = self._gauges[name] = metrics.Gauge(name, family.documentation, labels)
        return gauge
