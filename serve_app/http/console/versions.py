"""The content of the store: versions, reasons of refusals, and model cards. All functions read files, and can block."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from serve_app.artifacts.bundle import read_manifest
from serve_app.artifacts.listing import metrics_of, row
from serve_app.artifacts.manifest import Manifest, sha256
from serve_app.artifacts.names import CARD, REPORT
from serve_app.artifacts.regular_file import UnfitFile, read_regular
from serve_app.artifacts.store import BUNDLES, Entry, Store
from serve_app.artifacts.training_report import TrainingReport
from serve_app.artifacts.volume import MAX_REPORT_BYTES
from serve_app.errors import BundleRefused, StoreError

MAX_CARD_BYTES = 8 * 1024 * 1024
MAX_METRICS = 50
"""Most metrics that the page shows for one version; a model with several targets has metrics for each target."""
SHARES = frozenset({"accuracy", "coverage", "outlier_share"})
"""Metrics that are a share of the rows. The number of rows gives their interval."""
_STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)
_Z = 1.959963984540054
"""The quantile of the normal distribution for 95 %."""


NO_STORE: dict[str, Any] = {"versions": [], "training": None, "problem": None, "writable": False}
"""The content of the page for a store that cannot be read."""


def read_store(folder: Path) -> dict[str, Any]:
    """The versions of the store, newest first, and the result of the last training; `problem` if the store cannot be read."""
    try:
        entries = Store(folder).entries()
    except StoreError as error:
        return {**NO_STORE, "problem": str(error)}
    versions = [_version(entry) for entry in reversed(entries)]
    return {"versions": versions, "training": _training(folder), "problem": None, "writable": _is_writable(folder)}


def _is_writable(folder: Path) -> bool:
    """Whether this process has the permission to move the pointer; the volume can still refuse the write."""
    return all(os.access(path, os.W_OK | os.X_OK) for path in (folder, folder / BUNDLES))


def measured(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name and value of each metric; `low` and `high` bound the 95 % interval of a share of the rows (None for other metrics)."""
    rows = metrics.get("rows")
    found = [
        (name, float(value))
        for name, value in metrics.items()
        if name != "rows" and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]
    return [_metric(name, value, rows if isinstance(rows, int) and rows > 0 else None) for name, value in found[:MAX_METRICS]]


def wilson(share: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of Wilson for a share of `rows` rows."""
    square = _Z * _Z / rows
    middle, half = share + square / 2, _Z * math.sqrt(share * (1 - share) / rows + square / (4 * rows))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def provenance(manifest: Manifest) -> dict[str, Any]:
    """The origin of a version: table, code, run and verdict, as JSON types."""
    document = manifest.to_dict()
    keys = ("trained_at", "estimator", "model_type", "data", "code", "libraries", "adopted", "tags", "forced", "limits")
    run = {key: document[key] for key in ("mlflow_run_id", "mlflow_model_name", "mlflow_model_version", "tracking")}
    return {**{key: document[key] for key in keys}, **run, **_verdict(manifest)}


def read_card(folders: Iterable[Path], digest: str, stylesheet: str) -> str | None:
    """The model card of the bundle with this digest, as HTML; None when there is none.

    A content security policy allows no style inside of a page, so the card's is replaced by a link to `stylesheet`.
    """
    for folder in folders:
        for entry in _entries(folder):
            listed = entry.manifest.files.get(CARD) if entry.manifest and entry.digest == digest else None
            if listed is None:
                continue
            try:
                card = read_regular(entry.folder / CARD, min(listed.size, MAX_CARD_BYTES))
            except (OSError, UnfitFile):
                continue
            if sha256(card) == listed.sha256:
                return _STYLE.sub(f'<link rel="stylesheet" href="{stylesheet}">', card.decode(errors="replace"), count=1)
    return None


def _entries(folder: Path) -> Sequence[Entry]:
    try:
        return Store(folder).entries()
    except StoreError:
        return ()


def _version(entry: Entry) -> dict[str, Any]:
    manifest = entry.manifest or Manifest()
    verdict = _verdict(manifest)
    damage = _damage(entry) if entry.manifest is None else None
    return {
        **row(entry),
        "measured": measured(metrics_of(entry)),
        "verdict": verdict["verdict"],
        "reasons": [damage] if damage else verdict["reasons"],
        "comparison": verdict["comparison"],
        "card": CARD in manifest.files,
    }


def _damage(entry: Entry) -> str:
    try:
        read_manifest(entry.folder)
    except (BundleRefused, OSError) as error:
        return str(error)
    return "the bundle could not be read"


def _verdict(manifest: Manifest) -> dict[str, Any]:
    verdict = manifest.verdict
    if verdict is None:
        return {"verdict": None, "reasons": [], "comparison": None}
    outcome = "accepted" if verdict.accepted else "forced" if manifest.forced else "refused"
    return {"verdict": outcome, "reasons": list(verdict.reasons), "comparison": _comparison(verdict.comparison)}


def _comparison(comparison: Mapping[str, Any] | None) -> str | None:
    if not comparison:
        return None
    if comparison.get("compared"):
        return f"Compared with version {comparison.get('version')} on the same {comparison.get('rows')} held-out rows."
    why = comparison.get("why")
    return f"Not compared with another model: {why}." if why else None


def _training(folder: Path) -> dict[str, Any] | None:
    try:
        report = TrainingReport.from_dict(orjson.loads(read_regular(folder / REPORT, MAX_REPORT_BYTES)))
    except (OSError, UnfitFile, AttributeError, ValueError):
        return None
    return {
        "outcome": report.outcome,
        "reasons": list(report.reasons),
        "at": report.trained_at,
        "estimator": report.estimator,
        "run": report.mlflow_run_id,
        "version": None if report.published is None else report.published.version,
        "comparison": _comparison(report.comparison),
        "measured": measured(report.metrics or {}),
        "data": None if report.data is None else report.data.to_dict(),
    }


def _metric(name: str, value: float, rows: int | None) -> dict[str, Any]:
    low, high = wilson(value, rows) if name in SHARES and rows and 0 <= value <= 1 else (None, None)
    return {"name": name, "value": value, "low": low, "high": high}
