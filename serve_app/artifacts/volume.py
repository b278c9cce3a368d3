"""The state of the store's volume: its free space, and the verdict of the last training."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import orjson

from serve_app.artifacts.names import REPORT
from serve_app.artifacts.regular_file import UnfitFile, read_regular
from serve_app.artifacts.training_report import Outcome, TrainingReport

MAX_REPORT_BYTES = 4 * 1024 * 1024
"""Maximum size of the report in bytes. A replica reads the report at each poll."""

VERDICTS: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class Volume:
    """Free and total bytes of the volume; verdict of the last training and its time, None without a report."""

    free: float | None = None
    size: float | None = None
    verdict: str | None = None
    verdict_at: float | None = None


def read_volume(folder: Path) -> Volume:
    """Read the state once. It never raises, and it blocks while the volume blocks."""
    return Volume(*_space(folder), *_verdict(folder))


def _space(folder: Path) -> tuple[float | None, float | None]:
    try:
        status = os.statvfs(folder)
    except OSError:
        return None, None
    return float(status.f_bavail * status.f_frsize), float(status.f_blocks * status.f_frsize)


def _verdict(folder: Path) -> tuple[str | None, float | None]:
    try:
        report = TrainingReport.from_dict(orjson.loads(read_regular(folder / REPORT, MAX_REPORT_BYTES)))
        trained_at = report.trained_seconds
    except (OSError, UnfitFile, AttributeError, ValueError, OverflowError):
        return None, None
    return report.outcome, trained_at
