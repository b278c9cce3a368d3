"""The report that each training writes beside the bundles: the verdict and its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from serve_app.artifacts.manifest import DataSource, Section

Outcome = Literal["accepted", "forced", "refused"]
"""The result of a training: published, published although the rules refused it, or not published."""


class PublishedVersion(Section, frozen=True, kw_only=True):
    """Number and digest of the version that a training put into the store."""

    version: int
    digest: str


class TrainingReport(Section, frozen=True, kw_only=True):
    """The verdict of one training with the evidence; `trained_at` is an ISO 8601 text in UTC.

    `published` is None for a refused model. `columns` describe how training used each column. The manifest has the other keys, too.
    """

    accepted: bool
    reasons: tuple[str, ...] = ()
    comparison: Mapping[str, Any] | None = None
    forced: bool
    published: PublishedVersion | None = None
    metrics: Mapping[str, Any] | None = None
    limits: Mapping[str, float | None] | None = None
    tolerance: float | None = None
    data: DataSource | None = None
    estimator: str | None = None
    mlflow_run_id: str | None = None
    trained_at: str
    columns: Sequence[Mapping[str, Any]] | None = None

    @property
    def outcome(self) -> Outcome:
        """The verdict in one word."""
        if self.accepted:
            return "accepted"
        return "forced" if self.forced else "refused"

    @property
    def trained_seconds(self) -> float:
        """`trained_at` in seconds since 1970; raises ValueError for another text."""
        return datetime.fromisoformat(self.trained_at).timestamp()
