"""A worker: it verifies the bundle like a replica, then scores one part after the other and writes an output file for each."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from serve_app.artifacts.bundle import Bundle, verify_files
from serve_app.artifacts.fields import Unknown
from serve_app.artifacts.legacy import legacy_digest
from serve_app.artifacts.read_policy import BackendChoice
from serve_app.batch.results import encode_tables, output_table, score_rows
from serve_app.batch.score_options import Format, OnError
from serve_app.errors import BundleRefused, IrisApiError, UsageError
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.predictor import Predictor, open_predictor
from serve_app.tables.columns import Reading, Rows, csv_rows, parquet_rows
from serve_app.tables.header import Header
from serve_app.tables.location import Folder, Kind, Location
from serve_app.tables.splits import Part


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle for a worker, which verifies it against its digest; `manifest` is None for the legacy layout."""

    bundle: Bundle = field(repr=False)
    manifest: bytes | None = field(repr=False)
    prefer: BackendChoice = "auto"
    allow_joblib: bool = True
    unknown: Unknown = "refuse"

    def open(self) -> Predictor:
        """Verify the digest of every file, load the model, and replay the golden examples. Raises BundleRefused."""
        bundle = self.bundle
        policy = LoadPolicy(allow_joblib=self.allow_joblib, backend=self.prefer, verify=None)
        if self.manifest is not None:
            bundle = verify_files(
                bundle.version, bundle.digest, self.manifest, bundle.files, source=bundle.source, seal=bundle.seal, policy=policy
            )
        elif legacy_digest(bundle.files) != bundle.digest:
            raise BundleRefused("digest", "the files of the model changed on the way to the worker: run the command again")
        # `run._open_model` verified the seal of this digest before it sent the bundle to the workers.
        return open_predictor(bundle, policy)


@dataclass(frozen=True, slots=True)
class ScoringTask:
    """The input, output, columns and parts of a scoring, for its workers. `schema` is that of the output."""

    data: Location
    out: Location
    kind: Kind
    form: Format
    keep: tuple[str, ...]
    on_error: OnError
    schema: pa.Schema
    headers: Mapping[str, Header]
    parts: tuple[Part, ...]


def file_name(number: int, form: Format) -> str:
    """The name of the output file of a part."""
    return f"part-{number:06d}.{form}"


class Scorer:
    """Scores parts by their numbers. Ray Data creates and calls one scorer in each worker."""

    def __init__(self, task: ScoringTask, model: Model) -> None:
        pa.set_cpu_count(1)  # the other cores run other workers
        self._task = task
        self._folder = Folder(task.out)
        self._refusal = ""
        try:
            predictor = model.open()
        except BundleRefused as error:
            self._refusal = f"version {model.bundle.version} is refused: {error}"
            return
        self._predictor = predictor
        self._reading = Reading(predictor.signature, task.keep, model.unknown)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Score the part `batch["number"][0]`; the result has lists of one value, as Ray Data requires.

        `usage_error` and `failure` are messages, empty on success, because Ray would not keep the type of an exception.
        """
        number = int(batch["number"][0])
        result: dict[str, Any] = {"number": number, "rows": 0, "errors": 0, "usage_error": "", "failure": self._refusal}
        result["started"] = time.time()
        if not self._refusal:
            try:
                result["rows"], result["errors"] = self._score(self._task.parts[number])
            except UsageError as error:
                result["usage_error"] = str(error)
            except IrisApiError as error:
                result["failure"] = str(error)
            except MemoryError:
                result["failure"] = "a worker has too little memory for a part: use a smaller --part-bytes or fewer --workers"
        result["ended"] = time.time()
        result["peak_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {name: [value] for name, value in result.items()}

    def _score(self, part: Part) -> tuple[int, int]:
        """Write the output of a part; returns the number of its rows and the number of rows with an error."""
        task = self._task
        data, rows, errors = encode_tables(self._tables(part), task.schema, task.form)
        self._folder.write(file_name(part.number, task.form), data)
        return rows, errors

    def _tables(self, part: Part) -> Iterator[pa.Table]:
        task, signature = self._task, self._predictor.signature
        first_row = part.first_row
        for read in self._rows(part):
            rows, scores = score_rows(read, self._predictor.scores)
            if rows.problems and task.on_error == "refuse":
                first = min(rows.problems)
                raise UsageError(
                    f"{part.path}, row {first_row + first + 1}: {rows.problems[first]} "
                    "(correct it, or use --on-error keep to continue)"
                )
            first_row += len(rows.matrix)
            yield output_table(rows, scores, signature, self._predictor.version, task.schema)

    def _rows(self, part: Part) -> Iterator[Rows]:
        if self._task.kind == "parquet":
            return parquet_rows(self._task.data, part, self._reading)
        return csv_rows(self._task.data, part, self._task.headers[part.path], self._reading)
