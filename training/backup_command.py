"""The commands `backup` and `restore`: the store, MLflow's database and artifacts, and a folder of data, in one archive."""

from __future__ import annotations

import contextlib
import enum
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from serve_app.artifacts import store_archive
from serve_app.artifacts.archive import END, Reader, Section, Source, Summary, new_file, verify, write_section
from serve_app.artifacts.durable import sync_folder
from serve_app.artifacts.store import Entry, Store
from serve_app.command_line import MODEL_DIR, AllowJoblib, ModelDir, PredictorChoice, VerifyKey, options_command, say
from serve_app.errors import BundleRefused, StoreError, UsageError
from serve_app.progress import bar
from training import folder_archive, mlflow_archive


class Part(enum.StrEnum):
    """The parts of an archive, in their order.

    MLflow is copied after the store, so every model of the archive has its run.
    """

    MODELS = "models"
    MLFLOW = "mlflow"
    DATA = "data"


RESTORE_ORDER = (Part.DATA, Part.MLFLOW, Part.MODELS)
"""The store comes last, because its pointer decides which version is served."""
STANDARD = "-"
_NAME = "iris-api-%Y%m%dT%H%M%SZ.tar"
_NAMED = re.compile(r"iris-api-\d{8}T\d{6}Z\.tar")


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """The parts and their folders."""

    part: Annotated[list[Part] | None, typer.Option("--part", help="Part; repeatable. (default: every existing part)")] = None
    model_dir: ModelDir = MODEL_DIR
    mlflow_dir: Annotated[Path, typer.Option(help="Folder of mlflow.db and its artifacts.")] = Path()
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the part `data`.")] = None


@dataclass(frozen=True, kw_only=True)
class BackupOptions(PartOptions):
    """The options of `backup`."""

    to: Annotated[str, typer.Argument(metavar="TO", help="New file, folder for a file named by the time, or - for stdout.")]
    keep: Annotated[int | None, typer.Option(min=1, help="Keep this many archives in the folder TO, and remove older ones.")] = None


@dataclass(frozen=True, kw_only=True)
class RestoreOptions(PartOptions):
    """The options of `restore`."""

    archive: Annotated[str, typer.Argument(metavar="FROM", help="An archive of `backup`, or - for stdin.")]
    merge: Annotated[bool, typer.Option("--merge", help="Add missing files to a store or folder that is not empty.")] = False
    check: Annotated[bool, typer.Option("--check", help="Check whether the parts can be restored, without FROM.")] = False
    prefer: PredictorChoice = "auto"
    allow_joblib: AllowJoblib = True
    verify_key: VerifyKey = None


def backup(options: BackupOptions) -> None:
    """Write an archive of the models, of MLflow and of data while the system runs."""
    parts = _parts_to_back_up(options)
    if options.to == STANDARD:
        if sys.stdout.isatty():
            raise UsageError("an archive cannot go to a terminal: give a file, or redirect stdout")
        _write(sys.stdout.buffer, parts, options)
        return
    path = Path(options.to)
    in_folder = path.is_dir()
    if options.keep is not None and not in_folder:
        raise UsageError("--keep needs an existing folder as TO")
    if in_folder:
        path /= datetime.now(UTC).strftime(_NAME)
    if path.exists():
        raise UsageError(f"{path} exists already: choose another file")
    size = _write_file(path, parts, options)
    say(f"{path}: {size / 1e6:,.1f} MB, every digest verified", err=True)
    if options.keep is not None:
        for old in sorted(other for other in path.parent.iterdir() if _NAMED.fullmatch(other.name))[: -options.keep]:
            old.unlink()
            say(f"removed {old}", err=True)


def restore(options: RestoreOptions) -> None:
    """Restore the parts of an archive; each part is restored completely or not at all."""
    if options.check:
        for part in options.part or Part:
            _target(part, options)
        return
    if options.archive == STANDARD:
        if sys.stdin.isatty():
            raise UsageError("an archive cannot come from a terminal: give a file, or redirect stdin")
        for part in options.part or ():
            _target(part, options)
        with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as stream:
            _restore_stream(stream, options)
        return
    with open(options.archive, "rb") as file:
        summaries = {summary.part: summary for summary in verify(file)}
        chosen = _parts_to_restore(summaries, options)
        for part in chosen:
            _target(part, options)
        for part in chosen:
            file.seek(0)
            for section in Reader(file).sections():
                if section.part == part:
                    _restore_section(section, options)


def register(app: typer.Typer) -> None:
    """Add `backup` and `restore` to a command line."""
    app.command()(options_command(BackupOptions, backup))
    app.command()(options_command(RestoreOptions, restore))


# --- backup


def _parts_to_back_up(options: BackupOptions) -> Sequence[Part]:
    if options.part:
        return [part for part in Part if part in options.part]
    store = Store(options.model_dir)
    there = {
        Part.MODELS: store.pointer() is not None or bool(store.entries()),
        Part.MLFLOW: (options.mlflow_dir / mlflow_archive.DATABASE).is_file(),
        Part.DATA: options.data_dir is not None,
    }
    if not any(there.values()):
        raise UsageError(
            f"there is nothing to back up: no model in {options.model_dir}, no {mlflow_archive.DATABASE} in {options.mlflow_dir}; "
            "see --model-dir and --mlflow-dir"
        )
    return [part for part in Part if there[part]]


def _write_file(path: Path, parts: Sequence[Part], options: BackupOptions) -> int:
    """Write a temporary file, read it back, and rename it; returns its size. After a failure, there is no file."""
    with new_file(path) as file:
        _write(file, parts, options)
        size = file.tell()
        file.seek(0)
        verify(file)
    sync_folder(path.parent)
    return size


def _write(out: BinaryIO, parts: Sequence[Part], options: BackupOptions) -> None:
    for part in parts:
        with _SNAPSHOTS[part](options) as (sources, details):
            total = sum(source.line.size for source in sources)
            say(f"{part}: {len(sources)} files, {total} bytes{_described(details)}", err=True)
            with bar(total, part, "B", scaled=True, delay=1.0) as progress:
                summary = write_section(out, part, sources, details, copied=progress.update)
            say(f"{part}: sha256 of the manifest {summary.manifest_sha256}", err=True)
    out.write(END)
    out.flush()


def _described(details: Mapping[str, object]) -> str:
    """The counts of a section, after a comma."""
    counts = {name: len(value) if isinstance(value, list) else value for name, value in details.items()}
    return "".join(f", {value} {name.replace('_', ' ')}" for name, value in counts.items() if isinstance(value, int))


Snapshot = tuple[Sequence[Source], Mapping[str, object]]


@contextlib.contextmanager
def _models(options: PartOptions) -> Iterator[Snapshot]:
    with contextlib.ExitStack() as handles:
        snapshot = store_archive.snapshot(Store(options.model_dir), handles)
        for version in snapshot.damaged:
            say(f"note: version {version} is damaged, so the archive does not hold it", err=True)
        yield snapshot.sources, snapshot.details


@contextlib.contextmanager
def _mlflow(options: PartOptions) -> Iterator[Snapshot]:
    with mlflow_archive.snapshot(options.mlflow_dir) as snapshot:
        yield snapshot


@contextlib.contextmanager
def _data(options: PartOptions) -> Iterator[Snapshot]:
    yield folder_archive.snapshot(_data_dir(options)), {}


_SNAPSHOTS: Mapping[Part, Callable[[PartOptions], contextlib.AbstractContextManager[Snapshot]]] = {
    Part.MODELS: _models,
    Part.MLFLOW: _mlflow,
    Part.DATA: _data,
}


# --- restore


def _parts_to_restore(summaries: Mapping[str, Summary], options: RestoreOptions) -> Sequence[Part]:
    for part in options.part or ():
        if part not in summaries:
            raise UsageError(f"the archive has no part {part}; its parts are: {', '.join(summaries)}")
    return [part for part in RESTORE_ORDER if part in (options.part or summaries)]


def _restore_stream(stream: BinaryIO, options: RestoreOptions) -> None:
    missing: set[str] = set(options.part or ())
    for section in Reader(stream, open_ended=True).sections():
        if not options.part or section.part in options.part:
            _restore_section(section, options)
        missing.discard(section.part)
    if missing:
        raise UsageError(f"the archive has no part {', '.join(sorted(missing))}")


def _target(part: Part, options: RestoreOptions) -> None:
    """Raise an error when a part cannot be restored into its folder."""
    match part:
        case Part.MODELS:
            store_archive.check_target(Store(options.model_dir), merge=options.merge)
        case Part.MLFLOW:
            mlflow_archive.check_target(options.mlflow_dir, merge=options.merge)
        case Part.DATA:
            folder_archive.check_target(_data_dir(options), merge=options.merge)


def _restore_section(section: Section, options: RestoreOptions) -> None:
    match section.part:
        case Part.MODELS:
            _restore_models(section, options)
        case Part.MLFLOW:
            outcome = mlflow_archive.restore(section, options.mlflow_dir, merge=options.merge)
            say(
                f"mlflow: left as it is, because {options.mlflow_dir} holds runs or models"
                if outcome is None
                else f"mlflow: the database and {outcome.added} artifacts are restored{_described(section.summary.details)}"
            )
        case Part.DATA:
            outcome = folder_archive.restore(section, _data_dir(options), merge=options.merge)
            say(f"data: {outcome.added} files added, {outcome.existing} existed already")
        case other:
            raise UsageError(f"this release does not know the part {other} of the archive: choose the other parts with --part")


def _restore_models(section: Section, options: RestoreOptions) -> None:
    from serve_app.artifacts.promotion import check_entry
    from serve_app.inference.policy import load_policy

    def check(entry: Entry) -> None:
        try:
            check_entry(entry, policy)
        except BundleRefused as error:
            raise StoreError(
                f"the replicas would refuse version {entry.version} of the archive ({error.reason}: {error}), "
                "so nothing was restored: first restore the Secrets and settings that served it"
            ) from error

    policy = load_policy(allow_joblib=options.allow_joblib, backend=options.prefer, verify_key=options.verify_key)
    store = Store(options.model_dir)
    outcome = store_archive.restore(section, store, merge=options.merge, check=check)
    say(f"models: {outcome.added} versions added, {outcome.existing} existed already")
    served = store.served()
    if served is not None:
        say(f"version {served.version} ({served.digest[:12]}) is served")


def _data_dir(options: PartOptions) -> Path:
    if options.data_dir is None:
        raise UsageError("the part data needs a folder: add --data-dir, or choose the other parts with --part")
    return options.data_dir
