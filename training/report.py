"""verdict.json: the result of the last training. Serving shows it as a metric (serve_app/artifacts/volume.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import orjson

from serve_app.artifacts.durable import replace_file
from serve_app.artifacts.manifest import Manifest, Verdict
from serve_app.artifacts.store import Entry
from serve_app.artifacts.training_report import PublishedVersion, TrainingReport
from training.column_report import ColumnReport
from training.publication import Publication


def write_report(path: Path, publication: Publication, manifest: Manifest, verdict: Verdict, entry: Entry | None) -> list[str]:
    """Replace the report atomically; returns a failure as a note."""
    report = TrainingReport(
        accepted=verdict.accepted,
        reasons=verdict.reasons,
        comparison=verdict.comparison,
        forced=bool(manifest.forced),
        published=None if entry is None else PublishedVersion(version=entry.version, digest=entry.digest),
        metrics=publication.candidate.metrics.to_dict(),
        limits=publication.floors,
        tolerance=publication.options.tolerance,
        data=manifest.data,
        estimator=manifest.estimator,
        mlflow_run_id=manifest.mlflow_run_id,
        trained_at=publication.trained_at,
        columns=[column.to_dict() for column in publication.candidate.dataset.columns],
    )
    try:
        replace_file(path, orjson.dumps(report.to_dict(), option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        return [f"the report {path} could not be written: {error.strerror}"]
    return []


def write_columns(path: Path, columns: Sequence[ColumnReport]) -> None:
    """Write the report of a dry run as JSON with the key `columns`; raises OSError."""
    replace_file(path, orjson.dumps({"columns": [column.to_dict() for column in columns]}, option=orjson.OPT_INDENT_2) + b"\n")
