"""The tracking URI and the place for artifacts, from one setting that may name a bucket. It does not import mlflow."""

from __future__ import annotations

from urllib.parse import urlsplit

from serve_app.errors import UsageError

DEFAULT_URI = "sqlite:///mlflow.db"

BUCKETS = frozenset({"gs", "s3", "r2", "wasb", "wasbs", "abfss", "hdfs", "dbfs", "ftp", "sftp"})
"""Schemes of storage for files; MLflow cannot record runs there."""

SERVERS = frozenset({"http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks"})
"""Schemes of tracking stores; `postgresql+psycopg2` counts as `postgresql`."""


def resolve(uri: str | None) -> tuple[str, str | None]:
    """The tracking URI, and the root for artifacts or None. With a bucket, files go there and runs to the local SQLite file.

    Raises UsageError for an address where MLflow cannot record runs.
    """
    if not uri:
        return DEFAULT_URI, None
    scheme = urlsplit(uri).scheme
    if scheme in BUCKETS:
        return DEFAULT_URI, uri.rstrip("/")
    if uri != "databricks" and scheme.partition("+")[0] not in SERVERS:
        raise UsageError(
            f"--tracking-uri '{uri}' is not an MLflow server: use http://HOST:PORT, sqlite:///mlflow.db or --no-tracking"
        )
    return uri, None
