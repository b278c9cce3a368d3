"""One process of many: it verifies the bundle as a replica does, then turns one part after the other into an output file."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from serve_app.artifacts.bundle import Bundle, plain_digest, verify_files
from serve_app.artifacts.fields import Unknown
from serve_app.batch.results import encoded, scored
from serve_app.batch.score_options import Format, OnError
from serve_app.errors import BundleRefused, IrisApiError, UsageError
from serve_app.inference.predictor import LoadPolicy, Predictor, Prefer, open_predictor
from serve_app.tables.columns import Reading, Rows, csv_rows, parquet_rows
from serve_app.tables.location import Folder, Kind, Location
from serve_app.tables.splits import Part


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle on its way to a worker, which believes the digest and nothing else; `manifest` is None for plain files."""

    bundle: Bundle = field(repr=False)
    manifest: bytes | None = field(repr=False)
    prefer: Prefer = "auto"
    allow_joblib: bool = True
    unknown: Unknown = "refuse"

    def open(self) -> Predictor:
        """Verify the digest of every file, load, replay the golden examples. Raises BundleRefused."""
        sent = self.bundle
        if self.manifest is not None:
            found = verify_files(sent.version, sent.digest, self.manifest, sent.files, source=sent.source, seal=sent.seal)
        elif plain_digest(sent.files) == sent.digest:
            found = sent
        else:
            raise BundleRefused("digest", "the model's files do not have the digest that was read")
        return open_predictor(found, LoadPolicy(allow_joblib=self.allow_joblib, prefer=self.prefer))


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker is told: where from, where to, which columns, the parts."""

    data: Location
    out: Location
    kind: Kind
    form: Format
    keep: tuple[str, ...]
    on_error: OnError
    schema: pa.Schema
    headers: Mapping[str, tuple[str, ...]]
    parts: tuple[Part, ...]


def file_name(number: int, form: Format) -> str:
    return f"part-{number:06d}.{form}"


class Scorer:
    """Called with the number of a part; tells how it went, so that a mistake in a table is told in one sentence."""

    def __init__(self, job: Job, model: Model) -> None:
        pa.set_cpu_count(1)  # the other cores have workers of their own
        self._job = job
        self._folder = Folder(job.out)
        self._refusal = ""
        try:
            predictor = model.open()
        except BundleRefused as error:
            self._refusal = f"version {model.bundle.version} is refused: {error}"
            return
        self._predictor = predictor
        self._reading = Reading(predictor.signature, job.keep, model.unknown)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        number = int(batch["number"][0])
        told: dict[str, Any] = {"number": number, "rows": 0, "errors": 0, "mistake": "", "failure": self._refusal}
        told["started"] = time.time()
        if not self._refusal:
            try:
                told["rows"], told["errors"] = self._do(self._job.parts[number])
            except UsageError as error:
                told["mistake"] = str(error)
            except IrisApiError as error:
                told["failure"] = str(error)
            except MemoryError:
                told["failure"] = "the memory of a worker is too small for a part: use a smaller --part-bytes, or fewer --workers"
        told["ended"] = time.time()
        told["peak_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {name: [value] for name, value in told.items()}

    def _do(self, part: Part) -> tuple[int, int]:
        job = self._job
        data, rows, errors = encoded(self._tables(part), job.schema, job.form)
        self._folder.write(file_name(part.number, job.form), data)
        return rows, errors

    def _tables(self, part: Part) -> Iterator[pa.Table]:
        job, signature = self._job, self._predictor.signature
        seen = part.first_row
        for rows in self._rows(part):
            if rows.problems and job.on_error == "refuse":
                first = min(rows.problems)
                raise UsageError(
                    f"{part.path}, row {seen + first + 1}: {rows.problems[first]} (correct it, or use --on-error keep to go on)"
                )
            seen += len(rows.matrix)
            yield scored(rows, self._predictor.scores, signature, self._predictor.version, job.schema)

    def _rows(self, part: Part) -> Iterator[Rows]:
        if self._job.kind == "parquet":
            return parquet_rows(self._job.data, part, self._reading)
        return csv_rows(self._job.data, part, self._job.headers[part.path], self._reading)
