"""The notes that tell a Prometheus on this machine where the metrics are: their ports are chosen anew at each start."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path


def note(port: int, what: str = "metrics") -> Path:
    """The file about the application on `port`, as Prometheus' `file_sd_configs` reads it; `what`: metrics or haproxy."""
    return Path(tempfile.gettempdir()) / f"iris-api-{port}-{what}.json"


def write_notes(port: int, **ports: int) -> None:
    """A note for each of `ports`, by what listens there."""
    for what, at in ports.items():
        note(port, what).write_text(json.dumps([{"targets": [f"127.0.0.1:{at}"], "labels": {"app": "iris-api"}}]))
