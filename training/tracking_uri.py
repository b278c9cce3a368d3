"""Where runs are recorded, when the setting may name a bucket: known without importing mlflow."""

from __future__ import annotations

from urllib.parse import urlsplit

from serve_app.errors import UsageError

DEFAULT_URI = "sqlite:///mlflow.db"

BUCKETS = frozenset({"gs", "s3", "r2", "wasb", "wasbs", "abfss", "hdfs", "dbfs", "ftp", "sftp"})
"""Schemes of places for files; MLflow cannot record runs there."""


SERVERS = frozenset({"http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks"})
"""Schemes of what records runs; `postgresql+psycopg2` counts as `postgresql`."""


def resolve(uri: str | None) -> tuple[str, str | None]:
    """(tracking URI, root for artifacts or None): a bucket takes the files while runs go to the local SQLite file.

    UsageError for an address at which MLflow records nothing.
    """
    if not uri:
        return DEFAULT_URI, None
    scheme = urlsplit(uri).scheme
    if scheme in BUCKETS:
        return DEFAULT_URI, uri.rstrip("/")
    if uri != "databricks" and scheme.partition("+")[0] not in SERVERS:
        raise UsageError(f"--tracking-uri '{uri}' is no MLflow server: use http://HOST:PORT, sqlite:///mlflow.db or --no-tracking")
    return uri, None
