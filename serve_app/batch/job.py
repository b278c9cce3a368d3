"""The manifest of a scoring, beside its results: the specification, and the parts of the input.

A call with the same specification continues an unfinished scoring. A call with another specification is refused.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import orjson

from serve_app.batch.score_options import Format, OnError
from serve_app.errors import UsageError
from serve_app.tables.header import Header
from serve_app.tables.location import Folder, Kind, Source
from serve_app.tables.splits import Part

PLAN = "_plan.json"
"""The manifest of the scoring, in the folder of the results."""

DONE = "_done.json"
"""The totals, written last, when every part is complete."""

FORMAT = 3


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything that the result depends on, except the code of this program."""

    version: str
    digest: str
    predictor: str
    kind: Kind
    files: tuple[Source, ...]
    keep: tuple[str, ...]
    unknown: str
    on_error: OnError
    form: Format
    part_bytes: int
    separator: str | None = None
    decimal: str | None = None
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class JobManifest:
    """The specification and the parts of the input; `headers` has the header of each CSV file by path."""

    spec: JobSpec
    headers: Mapping[str, Header]
    parts: tuple[Part, ...]
    format: int = FORMAT


def write_manifest(folder: Folder, manifest: JobManifest) -> None:
    """Write the manifest into the folder of the results; raises UsageError or BackendUnavailable."""
    folder.write(PLAN, orjson.dumps(asdict(manifest), option=orjson.OPT_INDENT_2) + b"\n")


def read_manifest(folder: Folder, names: Sequence[str]) -> JobManifest | None:
    """The manifest that the folder holds, None for an empty folder; `names` are the files in it.

    Raises UsageError when the folder holds other files, or a manifest that cannot be read.
    """
    if PLAN not in names:
        foreign = sorted(name for name in names if not name.startswith("."))
        if foreign:
            raise UsageError(f"--out {folder.location.redacted} holds other files ({foreign[0]}): name an empty or new folder")
        return None
    manifest = None
    with contextlib.suppress(ValueError):
        manifest = msgspec.json.decode(folder.read(PLAN), type=JobManifest)
    if manifest is None or manifest.format != FORMAT:
        raise UsageError(f"{PLAN} in {folder.location.redacted} cannot be read: use --restart to start over")
    return manifest


def check_same(started: JobSpec, current: JobSpec, out: str) -> None:
    """Raise UsageError for the first difference between the specification in the folder and that of this call."""
    if (started.version, started.digest) != (current.version, current.digest):
        raise UsageError(
            f"{out} was started with version {started.version} ({started.digest[:12]}), not with version {current.version} "
            f"({current.digest[:12]}): --version {started.version} continues it, --restart starts over"
        )
    if started.files != current.files:
        before, now = ({source.path: source for source in files} for files in (started.files, current.files))
        changed = next(path for path in sorted({*before, *now}) if before.get(path) != now.get(path))
        change = "is gone" if changed not in now else "is new" if changed not in before else "was changed"
        raise UsageError(f"{changed} {change} since {out} was started: use --restart to score everything again, or another --out")
    options: dict[str, Any] = {
        "--keep": (started.keep, current.keep),
        "--unknown-category": (started.unknown, current.unknown),
        "--on-error": (started.on_error, current.on_error),
        "--format": (started.form, current.form),
        "--separator": (started.separator, current.separator),
        "--decimal": (started.decimal, current.decimal),
        "--encoding": (started.encoding, current.encoding),
        "--part-bytes": (started.part_bytes, current.part_bytes),
        "the predictor": (started.predictor, current.predictor),
    }
    for name, (before, now) in options.items():
        if before != now:
            raise UsageError(f"{out} was started with {name} {_text(before)}, not {_text(now)}: use --restart to start over")


def clear(folder: Folder, names: Sequence[str]) -> None:
    """Remove the files of an earlier scoring, its manifest last; other files stay."""
    parts = [name for name in names if name.startswith("part-") and name.endswith((".parquet", ".csv"))]
    folder.remove([*(name for name in (DONE,) if name in names), *parts, PLAN])


def _text(value: Any) -> str:
    return shlex.join(value) or "nothing" if isinstance(value, tuple) else str(value)
