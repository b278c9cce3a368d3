"""Export of a replica's metrics to Ray's metrics port, so that one scrape per pod sees every replica in the pod.

Each sample becomes a Ray gauge with the running total. It has the name of the sample on `/metrics`; Ray adds the prefix `ray_`, and
the scrape configuration removes it. Counters are not exported as Ray counters, because these cannot start at zero, so `increase()`
would miss the first event. Histograms are not exported as Ray histograms, because these estimate their sum and need a call per
value. A gauge disappears together with its replica.
"""

from __future__ import annotations

import time

from prometheus_client import Metric
from ray.serve import metrics

from serve_app.telemetry.collector import MetricsCollector

SECONDS = 5.0
"""Interval of the export. Ray collects every 10 seconds and drops a gauge that was not set since its last collection."""


class Exporter:
    """Sets Ray's gauges every `SECONDS`; the application calls it about once a second, in the thread of the collector.

    Ray adds the labels `deployment`, `replica` and `application` to each gauge.
    """

    def __init__(self) -> None:
        self._gauges: dict[str, metrics.Gauge] = {}
        self._due = 0.0

    def __call__(self, collector: MetricsCollector) -> None:
        """Set every gauge to its current value, unless the last export is less than `SECONDS` ago."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + SECONDS
        for family in collector.collect():
            for sample in family.samples:
                self._gauge(family, sample.name, tuple(sample.labels)).set(sample.value, sample.labels)

    def _gauge(self, family: Metric, name: str, labels: tuple[str, ...]) -> metrics.Gauge:
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = self._gauges[name] = metrics.Gauge(name, family.documentation, labels)
        return gauge
