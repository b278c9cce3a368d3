"""A scoring: it opens the model, splits the input, scores the remaining parts, and writes the totals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from serve_app import progress
from serve_app.artifacts.bundle import Bundle, manifest_bytes, read_bundle
from serve_app.artifacts.store import BUNDLES, Store
from serve_app.batch.job import DONE, PLAN, JobManifest, JobSpec, check_same, clear, read_manifest, write_manifest
from serve_app.batch.pool import Pool, WorkerPool, in_process, on_ray
from serve_app.batch.results import ERROR, errors_in, output_schema
from serve_app.batch.score_options import PART_BYTES, ScoreOptions
from serve_app.batch.worker import Model, ScoringTask, file_name
from serve_app.errors import BackendUnavailable, BundleRefused, StoreError, UsageError
from serve_app.inference.policy import LoadPolicy, load_policy
from serve_app.inference.predictor import Predictor, open_predictor
from serve_app.progress import Progress
from serve_app.tables.columns import Reading, check_columns, check_types
from serve_app.tables.dialect import DialectFlags
from serve_app.tables.fetch import fetched
from serve_app.tables.header import Header, csv_header
from serve_app.tables.location import Folder, Kind, Location, Source, hive_keys, sources, translate_errors
from serve_app.tables.scratch import ScratchSpace
from serve_app.tables.splits import Part, csv_parts, last_byte, parquet_parts, scan_range, split_ranges


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a scoring. `rows` and `errors` include the `already` complete parts of earlier calls.

    `workers`, `seconds` of scoring and `peak_bytes` of the largest worker refer to this call.
    """

    version: str
    digest: str
    rows: int
    errors: int
    parts: int
    already: int
    workers: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0


def score(options: ScoreOptions, report: Progress, pool: Pool | None = None) -> Outcome:
    """Score a table; after a failure, complete parts stay, and the same call scores the remaining parts.

    Without a pool, this process scores a table of a single part itself, and Ray scores a larger table. Raises UsageError,
    BackendUnavailable, StoreError or BundleRefused.
    """
    folder = Folder(Location(options.out, allow_http=options.allow_http))
    data = Location(options.data, allow_http=options.allow_http)
    with report("verify the model"):
        model, predictor = _open_model(options)
    if not data.web:  # each worker reads buckets itself
        return _score(options, data, folder, model, predictor, report, pool)
    with fetched(data, ScratchSpace(options.scratch_dir, options.scratch_bytes), report) as copy:
        return _score(options, copy, folder, model, predictor, report, pool)


def _score(
    options: ScoreOptions,
    data: Location,
    folder: Folder,
    model: Model,
    predictor: Predictor,
    report: Progress,
    pool: Pool | None,
) -> Outcome:
    with report("list the input"):
        kind, files = sources(data)
    flags = DialectFlags(options.separator, options.decimal, options.encoding)
    kept = options.kept_columns(lambda: _column_names(data, kind, files[0], flags))
    spec = JobSpec(
        version=predictor.version,
        digest=predictor.digest,
        predictor=predictor.kind,
        kind=kind,
        files=tuple(files),
        keep=kept,
        unknown=options.unknown,
        on_error=options.on_error,
        form=options.form,
        part_bytes=options.part_bytes,
        separator=flags.separator,
        decimal=flags.decimal,
        encoding=flags.encoding,
    )
    names = folder.names()
    if options.restart and PLAN in names:
        clear(folder, list(names))
        names = {}
    manifest = read_manifest(folder, list(names))
    if manifest is not None:
        check_same(manifest.spec, spec, folder.location.redacted)
        if DONE in names:
            return Outcome(**orjson.loads(folder.read(DONE)), already=len(manifest.parts))
    reading = Reading(predictor.signature, kept, options.unknown)
    if manifest is not None:
        headers = manifest.headers
    else:
        headers = _headers(data, spec, flags)
        for remark in dict.fromkeys(_remarks(spec, headers)):
            progress.note(remark)
    size = sum(headers[source.path].size if headers else source.size for source in files)
    if pool is None:
        pool = in_process if size <= options.part_bytes else lambda: on_ray(options.workers)
    with pool() as workers:
        if manifest is None:
            with report(f"split the input ({size / 1e6:,.1f} MB)"):
                manifest = _split(data, spec, headers, reading, workers)
            write_manifest(folder, manifest)
        return _score_parts(folder, _task(data, folder, manifest, reading), manifest.spec, model, workers, names)


def _open_model(options: ScoreOptions) -> tuple[Model, Predictor]:
    """The bundle for the workers, and its predictor, which proves that the workers can open it."""
    policy = load_policy(allow_joblib=options.allow_joblib, backend=options.prefer, verify_key=options.verify_key)
    version = "the served version" if options.version is None else f"version {options.version}"
    try:
        bundle = _read_bundle(options, policy)
        version = f"version {bundle.version}"
        manifest: bytes | None = None
        if bundle.source == "store":
            manifest = manifest_bytes(options.model_dir / BUNDLES / f"{bundle.version}-{bundle.digest}")
        predictor = open_predictor(bundle, policy)
    except BundleRefused as error:
        raise StoreError(f"{version} is refused: {error}") from None
    return Model(bundle, manifest, options.prefer, options.allow_joblib, options.unknown), predictor


def _read_bundle(options: ScoreOptions, policy: LoadPolicy) -> Bundle:
    """The served bundle, or that of `--version`."""
    store = Store(options.model_dir)
    if options.version is None:
        bundle = store.current(policy)
        if bundle is None:
            raise UsageError(f"the store {options.model_dir} holds no model: train a model, or name another store with --model-dir")
        return bundle
    entry = next((entry for entry in store.entries() if entry.version == options.version), None)
    if entry is None:
        known = ", ".join(str(entry.version) for entry in store.entries()) or "none"
        raise StoreError(f"{options.model_dir} holds no version {options.version}; it holds: {known}")
    return read_bundle(entry.folder, policy)


def _column_names(data: Location, kind: Kind, source: Source, flags: DialectFlags) -> list[str]:
    """The names of a file's columns and of the keys of its folders."""
    with translate_errors(source.path):
        if kind == "parquet":
            names: Sequence[str] = parquet_parts(data, source, PART_BYTES, 0)[0].names
        else:
            names = csv_header(data, source.path, source.size, flags).columns
    return [*names, *hive_keys(data, source.path)]


def _headers(data: Location, spec: JobSpec, flags: DialectFlags) -> dict[str, Header]:
    """The header of each CSV file by path; empty for Parquet."""
    headers = {}
    for source in spec.files if spec.kind == "csv" else ():
        with translate_errors(source.path):
            headers[source.path] = csv_header(data, source.path, source.size, flags)
    return headers


def _remarks(spec: JobSpec, headers: Mapping[str, Header]) -> Iterator[str]:
    """Remarks on the format of the input, for the user."""
    if spec.kind == "parquet":
        yield "read as Parquet"
    for header in headers.values():
        yield f"read as CSV: {header.dialect.description}"
        yield from header.remarks


def _split(data: Location, spec: JobSpec, headers: Mapping[str, Header], reading: Reading, workers: WorkerPool) -> JobManifest:
    """Check the columns of every file and split the input into parts."""
    parts: list[Part] = []
    if spec.kind == "parquet":
        for source in spec.files:
            schema, more = parquet_parts(data, source, spec.part_bytes, len(parts))
            check_columns(reading, [*schema.names, *hive_keys(data, source.path)], source.path)
            check_types(reading, schema, source.path)
            parts += more
    else:
        by_source = {source: headers[source.path] for source in spec.files}
        for source, header in by_source.items():
            check_columns(reading, [*header.columns, *hive_keys(data, source.path)], source.path)
        ranges = [piece for source, header in by_source.items() for piece in split_ranges(source, header, spec.part_bytes)]
        plain = [piece for piece in ranges if piece.form.plain]
        # This process has already unpacked the other files.
        scans = [*zip(plain, workers.scan(data, plain), strict=True)]
        scans += [(piece, scan_range(data, piece)) for piece in ranges if not piece.form.plain]
        for source, header in by_source.items():
            own = [(byte_range, scan) for byte_range, scan in scans if byte_range.path == source.path]
            parts += csv_parts(source, header, own, last_byte(data, source, header), len(parts))
    if not parts:
        raise UsageError(f"{data.redacted} has no rows")
    return JobManifest(spec, headers, tuple(parts))


def _task(data: Location, folder: Folder, manifest: JobManifest, reading: Reading) -> ScoringTask:
    spec = manifest.spec
    schema = output_schema(reading.signature, _kept_types(data, spec), spec.on_error)
    return ScoringTask(
        data, folder.location, spec.kind, spec.form, spec.keep, spec.on_error, schema, manifest.headers, manifest.parts
    )


def _kept_types(data: Location, spec: JobSpec) -> list[tuple[str, pa.DataType]]:
    """The kept columns with their types: text in CSV; in Parquet, the types of the files, which must agree."""
    if spec.kind == "csv":
        return [(name, pa.string()) for name in spec.keep]
    by_path = {source.path: _types(data, source, spec.keep) for source in spec.files}
    first = next(iter(by_path.values()))
    for path, types in by_path.items():
        if types != first:
            raise UsageError(f"the kept columns have other types in {path} than in {spec.files[0].path}: score them separately")
    return list(zip(spec.keep, first, strict=True))


def _types(data: Location, source: Source, names: Sequence[str]) -> list[Any]:
    schema, _ = parquet_parts(data, source, PART_BYTES, 0)
    return [schema.field(name).type if name in schema.names else pa.string() for name in names]


def _score_parts(
    folder: Folder, task: ScoringTask, spec: JobSpec, model: Model, workers: WorkerPool, names: Mapping[str, int]
) -> Outcome:
    """Score the parts whose output is not among `names`, and write the totals."""
    complete = [part for part in task.parts if file_name(part.number, task.form) in names]
    left = [part for part in task.parts if file_name(part.number, task.form) not in names]
    rows = sum(part.rows for part in complete)
    errors = 0
    if ERROR in task.schema.names:
        errors = sum(errors_in(folder.read(file_name(part.number, task.form)), task.form) for part in complete)
    started, ended, peak = float("inf"), 0.0, 0
    with progress.bar(sum(part.rows for part in task.parts), "score", " rows", scaled=True) as bar:
        bar.update(rows)
        for result in workers.score(task, model, left) if left else ():
            if result["usage_error"]:
                raise UsageError(result["usage_error"])
            if result["failure"]:
                raise BackendUnavailable(result["failure"])
            rows, errors = rows + result["rows"], errors + result["errors"]
            started, ended = min(started, result["started"]), max(ended, result["ended"])
            peak = max(peak, result["peak_kib"] * 1024)
            bar.update(result["rows"])
    totals: dict[str, Any] = {
        "version": spec.version,
        "digest": spec.digest,
        "rows": rows,
        "errors": errors,
        "parts": len(task.parts),
    }
    folder.write(DONE, orjson.dumps(totals, option=orjson.OPT_INDENT_2) + b"\n")
    return Outcome(
        **totals,
        already=len(complete),
        workers=min(workers.count, len(left)),
        seconds=ended - started if left else 0.0,
        peak_bytes=peak,
    )
