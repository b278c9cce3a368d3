"""Files with scrape targets for a Prometheus on this machine, because the metrics ports change with each start."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path


def targets_file(port: int, source: str = "metrics") -> Path:
    """The file with the targets of the application on `port`, in the format of Prometheus' `file_sd_configs`.

    `source` is `metrics` (Ray's metrics port) or `haproxy` (HAProxy's exporter).
    """
    return Path(tempfile.gettempdir()) / f"iris-api-{port}-{source}.json"


def write_targets(port: int, **metrics_ports: int) -> None:
    """Write one file for each source: `write_targets(8000, metrics=44217, haproxy=9101)`."""
    for source, metrics_port in metrics_ports.items():
        targets = [{"targets": [f"127.0.0.1:{metrics_port}"], "labels": {"app": "iris-api"}}]
        targets_file(port, source).write_text(json.dumps(targets))
