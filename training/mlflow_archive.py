"""MLflow's SQLite databases and its artifacts in an archive.

SQLite copies the databases while MLflow runs, before the artifacts are listed, so the archive holds the artifacts of every finished
run in the copy. SQLite also restores the databases, each in one transaction.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from serve_app.artifacts.archive import ArchiveError, Section, Source
from serve_app.artifacts.staging import check_space, move_missing, staging, unpack
from serve_app.artifacts.store_archive import Restored
from serve_app.errors import BackendUnavailable, StoreError, UsageError
from training import folder_archive

DATABASE = "mlflow.db"
USERS = "auth.db"
"""Users and permissions, with hashes of passwords (kuberay/components/mlflow-auth)."""
DATABASES = (USERS, DATABASE)
TREES = ("artifacts", "mlruns", "mlartifacts")
"""The folders beside the database where MLflow keeps artifacts: in the cluster, and by default on one machine."""
BUSY_SECONDS = 60.0
_FOREIGN = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'view' OR sql LIKE 'CREATE VIRTUAL%'"
"""Views and virtual tables, which could compute values of the archive's own when they are read in place of a table."""
_COUNTED = {
    "experiments": "SELECT COUNT(*) FROM experiments",
    "runs": "SELECT COUNT(*) FROM runs",
    "registered_versions": "SELECT COUNT(*) FROM model_versions",
    "aliases": "SELECT COUNT(*) FROM registered_model_aliases",
}


@dataclass(frozen=True, slots=True)
class Contents:
    """The content of an MLflow database: the version of its schema, and numbers of rows."""

    schema: str
    counts: Mapping[str, int]

    @property
    def is_empty(self) -> bool:
        """Whether the database holds only the default experiment, which MLflow creates at its start."""
        return self.counts["runs"] == self.counts["registered_versions"] == 0 and self.counts["experiments"] <= 1


@contextlib.contextmanager
def snapshot(folder: Path) -> Iterator[tuple[list[Source], Mapping[str, object]]]:
    """The sources of the databases and artifacts in `folder`, and the counts of the database.

    Raises UsageError without a database, and BackendUnavailable when SQLite cannot read one.
    """
    if not (folder / DATABASE).is_file():
        raise UsageError(f"there is no {DATABASE} in {folder}: give the folder of MLflow's database with --mlflow-dir")
    with tempfile.TemporaryDirectory(prefix="iris-api-backup-") as name:
        copies = Path(name)
        for database in DATABASES:
            if (folder / database).is_file():
                _copy(folder / database, copies / database)
        contents = read_contents(copies / DATABASE)
        copied = folder_archive.sources(copies, settled=True)
        yield [*copied, *folder_archive.sources(folder, *TREES)], {"schema": contents.schema, **contents.counts}


def check_target(folder: Path, *, merge: bool) -> None:
    """Raise StoreError when MLflow in `folder` holds runs or models, unless `merge` allows it."""
    live = folder / DATABASE
    if not merge and live.is_file() and not read_contents(live).is_empty:
        raise StoreError(
            f"MLflow in {folder} holds runs or models already, so nothing was restored: restore into an empty MLflow, "
            "or use --merge, which leaves MLflow as it is"
        )


def restore(section: Section, folder: Path, *, merge: bool = False) -> Restored | None:
    """Replace the databases of an empty MLflow in `folder` and add the artifacts; returns None when `merge` left MLflow as it is.

    Raises ArchiveError, StoreError and BackendUnavailable.
    """
    check_target(folder, merge=merge)
    live = folder / DATABASE
    if live.is_file() and not read_contents(live).is_empty:
        section.skip()
        return None
    for line in section.lines():
        if line.name not in DATABASES and line.name.partition("/")[0] not in TREES:
            raise ArchiveError("the archive holds files that do not belong to MLflow")
    folder.mkdir(parents=True, exist_ok=True)
    with staging(folder) as staged:
        check_space(staged, section.lines())
        lines = unpack(section, staged)
        _check_database(staged / DATABASE, live)
        moved, existing = move_missing([line for line in lines if line.name not in DATABASES], staged, folder)
        check_target(folder, merge=False)
        for database in DATABASES:
            if (staged / database).is_file():
                _replace(staged / database, folder / database)
    return Restored(moved, existing)


def read_contents(database: Path) -> Contents:
    """Schema and counts of a database; raises BackendUnavailable when it is not a database of MLflow."""
    with _connected(database) as connection:
        (schema,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or ("",)
        counts = {name: int(connection.execute(query).fetchone()[0]) for name, query in _COUNTED.items()}
        return Contents(str(schema), counts)


def _check_database(staged: Path, live: Path) -> None:
    """Refuse a database that the local MLflow cannot use."""
    if not staged.is_file():
        raise ArchiveError(f"the archive holds no {DATABASE}")
    try:
        with _connected(staged) as connection:
            (foreign,) = connection.execute(_FOREIGN).fetchone()
            if foreign:
                raise ArchiveError(f"the archive's {DATABASE} holds views or virtual tables, which MLflow does not use")
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        schema = read_contents(staged).schema
    except BackendUnavailable as error:
        raise ArchiveError(f"the archive's {DATABASE} is not a database of MLflow: {error}") from None
    if answer != "ok":
        raise ArchiveError(f"the archive's {DATABASE} is damaged: {answer}")
    if live.is_file() and (here := read_contents(live).schema) != schema:
        raise StoreError(
            f"the archive has the MLflow schema {schema}, but MLflow here has {here}, so nothing was restored: "
            "restore with the release that made the archive, then upgrade"
        )


def _copy(source: Path, target: Path) -> None:
    """A consistent copy of a database that may be in use."""
    with _connected(source) as connection:
        connection.execute("VACUUM INTO ?", (str(target),))


def _replace(staged: Path, live: Path) -> None:
    """Replace the content of a database in one transaction, so that other processes see the old or the new content."""
    if not live.is_file():
        staged.rename(live)
        return
    deadline = time.monotonic() + BUSY_SECONDS

    def busy(_status: int, _remaining: int, _total: int) -> None:
        if time.monotonic() > deadline:
            raise sqlite3.OperationalError("the database is in use")

    with _connected(staged) as source, _connected(live) as target:
        source.backup(target, pages=-1, progress=busy, sleep=0.1)


@contextlib.contextmanager
def _connected(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection to an existing database; an error of SQLite becomes BackendUnavailable with one sentence."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(database.absolute()))}?mode=rw", uri=True, timeout=BUSY_SECONDS)
        ) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            yield connection
    except sqlite3.Error as error:
        raise BackendUnavailable(f"{database.name} cannot be used ({error})") from error
