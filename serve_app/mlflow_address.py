"""The kind of address in MLFLOW_TRACKING_URI, and the fix when replicas cannot take models from it. Needs no library.

Replicas have only MLflow's client, which needs an MLflow server over HTTP. The plain-Kubernetes system also took buckets and
folders.
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit, urlunsplit

Kind = Literal["server", "database", "bucket", "folder", "unknown"]

BUCKETS = frozenset({"gs", "s3", "r2", "wasb", "wasbs", "abfss", "hdfs", "dbfs", "ftp", "sftp"})
"""Schemes of file storage, where MLflow cannot record runs."""
DATABASES = frozenset({"sqlite", "postgresql", "mysql", "mssql"})
"""Schemes of databases; `postgresql+psycopg2` counts as `postgresql`."""
SERVERS = frozenset({"http", "https", "databricks"})


def kind_of(uri: str) -> Kind:
    """The kind of the address; a path without a scheme is a folder, as in MLflow."""
    scheme = urlsplit(uri).scheme.lower()
    if uri == "databricks" or scheme in SERVERS:
        return "server"
    if scheme.partition("+")[0] in DATABASES:
        return "database"
    if scheme in BUCKETS:
        return "bucket"
    return "folder" if scheme in ("", "file") else "unknown"


def refusal(uri: str) -> str | None:
    """The reason why replicas cannot take models from this address, with the fix, in one sentence; None for a server."""
    match kind_of(uri):
        case "server":
            return None
        case "bucket":
            where = f"{_subject(uri)}, which stores files and is not an MLflow server"
            if uri.startswith("gs:"):
                return f"{where}: run `make k8s-deploy OVERLAY=gcs`, or set the address of an MLflow server, like http://HOST:PORT"
            return (
                f"{where}: start an MLflow server that keeps its files there (`mlflow server --artifacts-destination {uri}`), "
                "and set its address, like http://HOST:PORT"
            )
        case "folder":
            return (
                f"{_subject(uri)}, a folder of runs, which MLflow no longer serves: run `mlflow migrate-filestore "
                f"--source {_path(uri)} --target sqlite:///mlflow.db`, start `mlflow server --backend-store-uri "
                "sqlite:///mlflow.db`, and set the address of that server, like http://HOST:5000"
            )
        case "database":
            return (
                f"{_subject(uri)}, a database, which replicas do not open: start `mlflow server --backend-store-uri "
                f"{_without_password(uri)}`, and set the address of that server, like http://HOST:5000"
            )
        case "unknown":
            return f"{_subject(uri)}, which is not the address of an MLflow server: set one like http://HOST:PORT"


def _subject(uri: str) -> str:
    return f"MLFLOW_TRACKING_URI is {_without_password(uri)}"


def _path(uri: str) -> str:
    return urlsplit(uri).path or uri


def _without_password(uri: str) -> str:
    """The address with `…` in place of the user and the password."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return uri if host == parts.netloc else urlunsplit(parts._replace(netloc=f"…@{host}"))
