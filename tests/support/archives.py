"""Archives of backups, right or wrong in one part, and small folders of MLflow."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve_app.artifacts.archive import END, FORMAT, Reader, Section, Source, hashed, manifest_name, tar_header, write_section
from serve_app.artifacts.store import Store
from serve_app.artifacts.store_archive import Restored, restore, snapshot

CREATED = "2026-01-01T00:00:00+00:00"


def source(name: str, data: bytes) -> Source:
    return hashed(name, lambda: [data])


def archive(files: Mapping[str, bytes], *, part: str = "data", details: Mapping[str, Any] | None = None) -> bytes:
    """The archive that `write_section` makes of these files."""
    out = io.BytesIO()
    write_section(out, part, [source(name, data) for name, data in files.items()], details or {})
    return out.getvalue() + END


def line(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def forged(
    lines: Sequence[Mapping[str, Any]],
    bodies: bytes = b"",
    *,
    part: str = "data",
    details: Any = None,
    **head: Any,
) -> bytes:
    """An archive whose manifest says what it is told; `bodies` are the bytes after it."""
    document = {"format": FORMAT, "part": part, "created": CREATED, "files": len(lines), "details": details or {}}
    document |= {"bytes": sum(one["size"] for one in lines if isinstance(one.get("size"), int)), **head}
    raw = "".join(json.dumps(row) + "\n" for row in (document, *lines)).encode()
    return manifest_member(raw, part) + bodies + END


def manifest_member(raw: bytes, part: str = "data") -> bytes:
    return tar_header(manifest_name(part, hashlib.sha256(raw).hexdigest()), len(raw)) + raw + bytes(-len(raw) % 512)


def member(name: str, data: bytes) -> bytes:
    return tar_header(name, len(data)) + data + bytes(-len(data) % 512)


def first_section(raw: bytes) -> Section:
    return next(Reader(io.BytesIO(raw)).sections())


def store_archive(store: Store) -> bytes:
    out = io.BytesIO()
    with contextlib.ExitStack() as handles:
        taken = snapshot(store, handles)
        write_section(out, "models", taken.sources, taken.details)
    return out.getvalue() + END


def restore_store(raw: bytes, store: Store, **options: Any) -> Restored:
    """Restore the only section of an archive, and read the archive to its end."""
    outcome = None
    for section in Reader(io.BytesIO(raw)).sections():
        outcome = restore(section, store, **options)
    assert outcome is not None
    return outcome


def mlflow_folder(folder: Path, *, runs: Sequence[str] = (), schema: str = "a1", extra: str = "") -> Path:
    """A folder as MLflow's server leaves it, with the tables that a backup counts and one artifact for each run."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.executescript(
            "CREATE TABLE alembic_version (version_num TEXT); CREATE TABLE experiments (name TEXT); CREATE TABLE runs (run TEXT);"
            "CREATE TABLE model_versions (run TEXT); CREATE TABLE registered_model_aliases (alias TEXT, version TEXT);"
            "INSERT INTO experiments VALUES ('Default');"
        )
        connection.execute("INSERT INTO alembic_version VALUES (?)", (schema,))
        connection.executemany("INSERT INTO runs VALUES (?)", [(run,) for run in runs])
        connection.commit()
        connection.executescript(extra)
    for run in runs:
        file = folder / "artifacts" / "1" / run / "artifacts" / "model.onnx"
        file.parent.mkdir(parents=True)
        file.write_bytes(run.encode())
    return folder


def runs_of(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return sorted(run for (run,) in connection.execute("SELECT run FROM runs"))
