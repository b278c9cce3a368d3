"""The plan beside the results: what was asked, of which model, over which files, cut how.

Whoever starts again with the same question goes on where the plan was left; another question is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import orjson

from serve_app.batch.score_options import Format, OnError
from serve_app.errors import UsageError
from serve_app.tables.location import Folder, Kind, Source
from serve_app.tables.splits import Part

PLAN = "_plan.json"
DONE = "_done.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class JobSpec:
    """All that the result depends on, besides this program."""

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


@dataclass(frozen=True, slots=True)
class Plan:
    """The question and how the input is cut; `headers` are the columns of each CSV file."""

    question: JobSpec
    headers: Mapping[str, tuple[str, ...]]
    parts: tuple[Part, ...]
    format: int = FORMAT


def write(folder: Folder, plan: Plan) -> None:
    folder.write(PLAN, orjson.dumps(asdict(plan), option=orjson.OPT_INDENT_2) + b"\n")


def begun(folder: Folder, names: Sequence[str]) -> Plan | None:
    """The plan that the folder holds; raises UsageError when it holds something else."""
    if PLAN not in names:
        foreign = sorted(name for name in names if not name.startswith("."))
        if foreign:
            raise UsageError(f"--out {folder.place.shown} holds other files ({foreign[0]}): name an empty or new folder")
        return None
    plan = None
    with contextlib.suppress(ValueError):
        plan = msgspec.json.decode(folder.read(PLAN), type=Plan)
    if plan is None or plan.format != FORMAT:
        raise UsageError(f"{PLAN} in {folder.place.shown} cannot be read: use --restart to begin anew")
    return plan


def check_same(plan: Plan, asked: JobSpec, out: str) -> None:
    """Raises UsageError, which names the first thing that differs."""
    was = plan.question
    if (was.version, was.digest) != (asked.version, asked.digest):
        raise UsageError(
            f"{out} was begun with version {was.version} ({was.digest[:12]}), not with version {asked.version} "
            f"({asked.digest[:12]}): --version {was.version} goes on with it, --restart begins anew"
        )
    if was.files != asked.files:
        before, now = ({source.path: source for source in files} for files in (was.files, asked.files))
        changed = next(path for path in sorted({*before, *now}) if before.get(path) != now.get(path))
        word = "is gone" if changed not in now else "is new" if changed not in before else "was changed"
        raise UsageError(f"{changed} {word} since {out} was begun: use --restart to score everything again, or another --out")
    options: dict[str, Any] = {
        "--keep": (was.keep, asked.keep),
        "--unknown-category": (was.unknown, asked.unknown),
        "--on-error": (was.on_error, asked.on_error),
        "--format": (was.form, asked.form),
        "--part-bytes": (was.part_bytes, asked.part_bytes),
        "the predictor": (was.predictor, asked.predictor),
    }
    for name, (before, now) in options.items():
        if before != now:
            raise UsageError(f"{out} was begun with {name} {_shown(before)}, not {_shown(now)}: use --restart to begin anew")


def clear(folder: Folder, names: Sequence[str]) -> None:
    """Remove what an earlier scoring left, the plan last; what is not ours stays."""
    mine = [name for name in names if name.startswith("part-") and name.endswith((".parquet", ".csv"))]
    folder.remove([*(name for name in (DONE,) if name in names), *mine, PLAN])


def _shown(value: Any) -> str:
    return ",".join(value) or "nothing" if isinstance(value, tuple) else str(value)
