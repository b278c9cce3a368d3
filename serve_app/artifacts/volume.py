"""What the folder of models tells besides the model: free space, and how the last training ended."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson

REPORT = "verdict.json"
"""Training leaves its verdict here (training/pipeline.py)."""

VERDICTS = ("accepted", "forced", "refused")


@dataclass(frozen=True, slots=True)
class Volume:
    """Bytes of the volume, free and in all; verdict of the last training and its time, None when there is no report."""

    free: float | None = None
    size: float | None = None
    verdict: str | None = None
    verdict_at: float | None = None


def look(folder: Path) -> Volume:
    """Look once. It never raises, and may block as long as the volume does."""
    return Volume(*_space(folder), *_verdict(folder))


def _space(folder: Path) -> tuple[float | None, float | None]:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None, None
    return float(found.f_bavail * found.f_frsize), float(found.f_blocks * found.f_frsize)


def _verdict(folder: Path) -> tuple[str | None, float | None]:
    try:
        report = orjson.loads((folder / REPORT).read_bytes())
        at = datetime.fromisoformat(report["trained_at"]).timestamp()
        verdict = "accepted" if report["accepted"] else "forced" if report["forced"] else "refused"
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        return None, None
    return verdict, at
