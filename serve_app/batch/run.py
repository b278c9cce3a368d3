"""From a question to a folder of results: the model, the plan, the parts that are left, and the sum of it all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from serve_app import progress as shown
from serve_app.artifacts.bundle import MANIFEST, Bundle, read_bundle
from serve_app.artifacts.signing import SigningError, verifier
from serve_app.artifacts.store import Store
from serve_app.batch import job as plan
from serve_app.batch.job import DONE, PLAN, JobSpec, Plan
from serve_app.batch.pool import Pool, WorkerPool, in_process, on_ray
from serve_app.batch.results import ERROR, errors_in, output_schema
from serve_app.batch.score_options import PART_BYTES, ScoreOptions
from serve_app.batch.worker import Job, Model, file_name
from serve_app.errors import BackendUnavailable, BundleRefused, StoreError, UsageError
from serve_app.inference.predictor import LoadPolicy, Predictor, open_predictor
from serve_app.tables import splits as cuts
from serve_app.tables.columns import Reading, check_columns, check_types
from serve_app.tables.location import Folder, Location, Source, sources
from serve_app.tables.splits import Part

Progress = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: all rows and errors, also of parts that were there already; seconds and memory of this run's workers."""

    version: str
    digest: str
    rows: int
    errors: int
    parts: int
    already: int
    workers: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0


def score(options: ScoreOptions, progress: Progress, pool: Pool | None = None) -> Outcome:
    """Raises UsageError, BackendUnavailable, StoreError or BundleRefused. Finished parts stay: the same call continues.

    A table of one part is not worth the start of Ray: unless told a pool, this process scores it.
    """
    data, folder = Location(options.data), Folder(Location(options.out))
    with progress("verify the model"):
        model, predictor = _model(options)
    with progress("list the input"):
        kind, files = sources(data)
    asked = JobSpec(
        *(predictor.version, predictor.digest, predictor.kind, kind, tuple(files), options.kept_columns),
        *(options.unknown, options.on_error, options.form, options.part_bytes),
    )
    names = folder.names()
    if options.restart and PLAN in names:
        plan.clear(folder, list(names))
        names = {}
    begun = plan.begun(folder, list(names))
    if begun is not None:
        plan.check_same(begun, asked, options.out)
        if DONE in names:
            return Outcome(**orjson.loads(folder.read(DONE)), already=len(begun.parts))
    reading = Reading(predictor.signature, options.kept_columns, options.unknown)
    size = sum(source.size for source in files)
    if pool is None:
        pool = in_process if size <= options.part_bytes else lambda: on_ray(options.workers)
    with pool() as hands:
        if begun is None:
            with progress(f"cut the input ({size / 1e6:,.1f} MB)"):
                begun = _cut(data, files, asked, reading, hands)
            plan.write(folder, begun)
        return _finish(folder, begun, _job(data, folder, begun, reading), model, hands, names)


def _model(options: ScoreOptions) -> tuple[Model, Predictor]:
    store = Store(options.model_dir)
    bundle: Bundle | None
    manifest: bytes | None = None
    if options.version is None:
        bundle = store.current()
        if bundle is None:
            raise UsageError(f"the store {options.model_dir} holds no model: train one, or name another with --model-dir")
    else:
        entry = next((entry for entry in store.entries() if entry.version == options.version), None)
        if entry is None:
            known = ", ".join(str(entry.version) for entry in store.entries()) or "none"
            raise StoreError(f"{options.model_dir} holds no version {options.version}; it holds: {known}")
        bundle = read_bundle(entry.folder)
    if bundle.source == "store":
        manifest = (options.model_dir / "bundles" / f"{bundle.version}-{bundle.digest}" / MANIFEST).read_bytes()
    try:
        verify = None if options.verify_key is None else verifier(options.verify_key)
    except SigningError as error:
        raise UsageError(f"--verify-key: {error}") from None
    terms = LoadPolicy(allow_joblib=options.allow_joblib, prefer=options.prefer, verify=verify)
    try:
        predictor = open_predictor(bundle, terms)
    except BundleRefused as error:
        raise StoreError(f"version {bundle.version} is refused: {error}") from None
    return Model(bundle, manifest, options.prefer, options.allow_joblib, options.unknown), predictor


def _cut(data: Location, files: Sequence[Source], asked: JobSpec, reading: Reading, hands: WorkerPool) -> Plan:
    parts: list[Part] = []
    headers: dict[str, tuple[str, ...]] = {}
    if asked.kind == "parquet":
        for source in files:
            schema, more = cuts.parquet_parts(data, source, asked.part_bytes, len(parts))
            check_columns(reading, schema.names, source.path)
            check_types(reading, schema, source.path)
            parts += more
    else:
        found = {source: cuts.csv_header(data, source) for source in files}
        for source, header in found.items():
            check_columns(reading, header.columns, source.path)
            headers[source.path] = header.columns
        pieces = [piece for source, header in found.items() for piece in cuts.ranges(source, header, asked.part_bytes)]
        looks = hands.scan(data, pieces)
        for source, header in found.items():
            seen = [(piece, look) for piece, look in zip(pieces, looks, strict=True) if piece.path == source.path]
            parts += cuts.csv_parts(source, header, seen, cuts.last_byte(data, source), len(parts))
    if not parts:
        raise UsageError(f"{data.shown} has no rows")
    return Plan(asked, headers, tuple(parts))


def _job(data: Location, folder: Folder, begun: Plan, reading: Reading) -> Job:
    asked = begun.question
    if asked.kind == "parquet":
        kinds = {source.path: _types(data, source, asked.keep) for source in asked.files}
        first = next(iter(kinds.values()))
        for path, found in kinds.items():
            if found != first:
                raise UsageError(f"{path} holds the kept columns as other types than {asked.files[0].path}: score them apart")
        typed = list(zip(asked.keep, first, strict=True))
    else:
        typed = [(name, pa.string()) for name in asked.keep]
    schema = output_schema(reading.signature, typed, asked.on_error)
    return Job(data, folder.place, asked.kind, asked.form, asked.keep, asked.on_error, schema, begun.headers, begun.parts)


def _types(data: Location, source: Source, names: Sequence[str]) -> list[Any]:
    schema, _ = cuts.parquet_parts(data, source, PART_BYTES, 0)
    return [schema.field(name).type for name in names]


def _finish(folder: Folder, begun: Plan, job: Job, model: Model, hands: WorkerPool, names: dict[str, int]) -> Outcome:
    there = [part for part in job.parts if file_name(part.number, job.form) in names]
    left = [part for part in job.parts if file_name(part.number, job.form) not in names]
    rows = sum(part.rows for part in there)
    errors = 0
    if ERROR in job.schema.names:
        errors = sum(errors_in(folder.read(file_name(part.number, job.form)), job.form) for part in there)
    begin, end, peak = float("inf"), 0.0, 0
    with shown.bar(sum(part.rows for part in job.parts), "score", " rows", scaled=True) as bar:
        bar.update(rows)
        for told in hands.score(job, model, left) if left else ():
            if told["mistake"]:
                raise UsageError(told["mistake"])
            if told["failure"]:
                raise BackendUnavailable(told["failure"])
            rows, errors = rows + told["rows"], errors + told["errors"]
            begin, end, peak = min(begin, told["started"]), max(end, told["ended"]), max(peak, told["peak_kib"] * 1024)
            bar.update(told["rows"])
    asked = begun.question
    result: dict[str, Any] = {
        "version": asked.version,
        "digest": asked.digest,
        "rows": rows,
        "errors": errors,
        "parts": len(job.parts),
    }
    folder.write(DONE, orjson.dumps(result, option=orjson.OPT_INDENT_2) + b"\n")
    return Outcome(
        **result, already=len(there), workers=min(hands.count, len(left)), seconds=end - begin if left else 0.0, peak_bytes=peak
    )
