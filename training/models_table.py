"""The store as a table for people, and as rows for programs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.manifest_bounds import MAX_METRICS_BYTES
from serve_app.artifacts.names import METRICS, NATIVE, ONNX
from serve_app.artifacts.regular_file import UnfitFile, read_regular
from serve_app.artifacts.store import Entry

METRICS_SHOWN = ("accuracy", "f1_score", "roc_auc", "rmse", "r2")
COLUMNS = ("served", "version", "digest", "predictor", "model", "metrics", "trained", "run")


def row(entry: Entry) -> dict[str, Any]:
    """One version for programs: numbers and texts as JSON holds them; `damaged` when its manifest cannot be read."""
    manifest = entry.manifest or Manifest()
    metrics: Mapping[str, Any] = {}
    with contextlib.suppress(OSError, UnfitFile, ValueError):
        metrics = _metrics(entry)
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
    """What computes on a replica that allows everything."""
    if ONNX in manifest.files:
        return "onnx"
    native = next((library for file, library in NATIVE.items() if file in manifest.files), None)
    return native or ("scikit-learn" if manifest.frame is None else "frame")


def _metrics(entry: Entry) -> Mapping[str, Any]:
    """The metrics of a bundle whose files somebody else may have replaced, so that nothing but a plain file of the size is read."""
    published = entry.manifest.files.get(METRICS) if entry.manifest else None
    if published is None:
        return {}
    raw = read_regular(entry.folder / METRICS, min(published.size, MAX_METRICS_BYTES))
    metrics = json.loads(raw)
    return metrics if isinstance(metrics, dict) else {}


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row[name]
    if name == "served":
        return "*" if value else ""
    if name == "digest":
        return str(value)[:12]
    if name == "metrics":
        text = " ".join(f"{metric}={number:.4f}" for metric, number in value.items())
        return text + (" forced" if row["forced"] else "") + (" damaged" if row["damaged"] else "")
    return "-" if value is None else str(value)


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines with aligned columns, the header first."""
    cells = [COLUMNS, *[tuple(_cell(name, row) for name in COLUMNS) for row in rows]]
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS))]
    for line in cells:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
