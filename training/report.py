"""verdict.json: how the last training ended. Serving shows it as a metric (serve_app/artifacts/volume.py)."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from serve_app.artifacts.store import Entry
from serve_app.artifacts.volume import REPORT
from training.publish import Publication
from training.rules import Verdict

__all__ = ["REPORT", "write_report"]


def write_report(
    path: Path, publication: Publication, manifest: Mapping[str, Any], verdict: Verdict, entry: Entry | None
) -> list[str]:
    """Replace the report in one step; a failure is returned as a note."""
    document = {
        **verdict.to_dict(),
        "forced": manifest["forced"],
        "published": None if entry is None else {"version": entry.version, "digest": entry.digest},
        "metrics": publication.candidate.metrics.to_dict(),
        "limits": manifest["limits"],
        "tolerance": publication.options.tolerance,
        "data": manifest["data"],
        "estimator": manifest["estimator"],
        "mlflow_run_id": manifest["mlflow_run_id"],
        "trained_at": manifest["trained_at"],
    }
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        return [f"the report {path} could not be written: {error.strerror}"]
    return []
