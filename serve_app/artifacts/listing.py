"""The versions of a store as rows for programs: model, metrics, and whether the version is served or damaged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.manifest_bounds import MAX_METRICS_BYTES
from serve_app.artifacts.names import METRICS, NATIVE, ONNX
from serve_app.artifacts.regular_file import UnfitFile, read_regular
from serve_app.artifacts.store import Entry

METRICS_SHOWN = ("accuracy", "f1_score", "roc_auc", "rmse", "r2")


def row(entry: Entry) -> dict[str, Any]:
    """One version as JSON values; `damaged` is true when its manifest cannot be read."""
    manifest = entry.manifest or Manifest()
    metrics = metrics_of(entry)
    return {
        "version": entry.version,
        "digest": entry.digest,
        "served": entry.served,
        "damaged": entry.manifest is None,
        "predictor": _predictor(manifest),
        "model": manifest.model_type,
        "metrics": {name: metrics[name] for name in METRICS_SHOWN if isinstance(metrics.get(name), int | float)},
        "trained": manifest.trained_at,
        "run": manifest.mlflow_run_id,
        "forced": bool(manifest.forced),
    }


def _predictor(manifest: Manifest) -> str:
    """The backend on a replica that allows every backend."""
    if ONNX in manifest.files:
        return "onnx"
    native = next((library for file, library in NATIVE.items() if file in manifest.files), None)
    return native or ("scikit-learn" if manifest.frame is None else "frame")


def metrics_of(entry: Entry) -> Mapping[str, Any]:
    """The metrics of a bundle; empty when they cannot be read.

    Another process may have replaced the file, so it reads only a regular file of at most the published size.
    """
    published = entry.manifest.files.get(METRICS) if entry.manifest else None
    if published is None:
        return {}
    with contextlib.suppress(OSError, UnfitFile, ValueError):
        metrics = json.loads(read_regular(entry.folder / METRICS, min(published.size, MAX_METRICS_BYTES)))
        return metrics if isinstance(metrics, dict) else {}
    return {}
