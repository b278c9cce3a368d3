"""The tracking URI and the location of artifacts, from one setting that may name a bucket. It does not import mlflow."""

from __future__ import annotations

from serve_app.errors import UsageError
from serve_app.mlflow_address import kind_of

DEFAULT_URI = "sqlite:///mlflow.db"


def resolve(uri: str | None) -> tuple[str, str | None]:
    """The tracking URI, and the root for artifacts or None. For a bucket, files go there and runs to the local SQLite file.

    Raises UsageError for an address at which MLflow cannot record runs.
    """
    if not uri:
        return DEFAULT_URI, None
    match kind_of(uri):
        case "bucket":
            return DEFAULT_URI, uri.rstrip("/")
        case "server" | "database":
            return uri, None
        case "folder":
            raise UsageError(
                f"--tracking-uri '{uri}' is a folder of runs, where MLflow records no more: use {DEFAULT_URI} (copy the runs with "
                f"`mlflow migrate-filestore --source {uri.removeprefix('file://')} --target {DEFAULT_URI}`), "
                "http://HOST:PORT or --no-tracking"
            )
        case "unknown":
            raise UsageError(
                f"--tracking-uri '{uri}' is not an MLflow server: use http://HOST:PORT, {DEFAULT_URI} or --no-tracking"
            )
