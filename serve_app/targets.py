"""The note that tells a Prometheus on this machine where the metrics are: Ray chooses their port anew at each start."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path


def note(port: int) -> Path:
    """The file about the application on `port`, in the form that Prometheus' `file_sd_configs` reads."""
    return Path(tempfile.gettempdir()) / f"iris-api-{port}-metrics.json"


def write_note(port: int, metrics_port: int) -> None:
    targets = [{"targets": [f"127.0.0.1:{metrics_port}"], "labels": {"app": "iris-api"}}]
    note(port).write_text(json.dumps(targets))
