"""Where runs are recorded, when the setting may name a bucket: known without importing mlflow."""

from __future__ import annotations

from urllib.parse import urlsplit

DEFAULT_URI = "sqlite:///mlflow.db"

BUCKETS = frozenset({"gs", "s3", "r2", "wasb", "wasbs", "abfss", "hdfs", "dbfs", "ftp", "sftp"})
"""Schemes of places for files; MLflow cannot record runs there."""


def resolve(uri: str | None) -> tuple[str, str | None]:
    """(tracking URI, root for artifacts or None): a bucket takes the files while runs go to the local SQLite file."""
    if not uri:
        return DEFAULT_URI, None
    if urlsplit(uri).scheme in BUCKETS:
        return DEFAULT_URI, uri.rstrip("/")
    return uri, None
