"""The options of `score`, declared once: name, type, default, flag and help."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Annotated, Literal

import typer

from serve_app.command_line import (
    MODEL_DIR,
    SCRATCH_BYTES,
    AllowHttp,
    AllowJoblib,
    Decimal,
    Encoding,
    ModelDir,
    PredictorChoice,
    ScratchBytes,
    ScratchDir,
    Separator,
    VerifyKey,
)
from serve_app.errors import UsageError

# Declared here, because the modules that use them load numpy and ONNX Runtime, which `--help` does not need.
Format = Literal["parquet", "csv"]
OnError = Literal["refuse", "keep"]
Unknown = Literal["refuse", "unseen"]

PART_BYTES = 16 << 20
"""Bytes of the input in one output file."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What one scoring does."""

    data: Annotated[str, typer.Option(help="CSV or Parquet: a file, a folder, a pattern 'in/*.csv', gs://…, s3://…, or https://….")]
    out: Annotated[
        str, typer.Option(help="Folder of the results, on this machine or in a bucket; finished parts of an earlier run are kept.")
    ]
    model_dir: ModelDir = MODEL_DIR
    version: Annotated[int | None, typer.Option(help="A version that `models` lists. (default: the served one)")] = None
    keep: Annotated[
        list[str],
        typer.Option(metavar="COLUMN", help="Column of the input to repeat in the output, or several as A,B; repeatable."),
    ] = field(default_factory=list)
    on_error: Annotated[
        OnError, typer.Option(help="A row that the API would refuse: stop at it, or write the reason into the column `error`.")
    ] = "refuse"
    unknown: Annotated[
        Unknown,
        typer.Option(
            "--unknown-category",
            envvar="IRIS_UNKNOWN_CATEGORY",
            help="A category that training never saw: an error, or predicted.",
        ),
    ] = "refuse"
    separator: Separator = None
    decimal: Decimal = None
    encoding: Encoding = None
    form: Annotated[Format, typer.Option("--format", help="Format of the output files.")] = "parquet"
    restart: Annotated[bool, typer.Option("--restart", help="Start over: remove what an earlier run left in --out.")] = False
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. (default: one for each CPU that Ray has)")] = None
    part_bytes: Annotated[int, typer.Option(min=1, help="Bytes of the input in one output file.")] = PART_BYTES
    prefer: PredictorChoice = "auto"
    allow_joblib: AllowJoblib = True
    verify_key: VerifyKey = None
    scratch_dir: ScratchDir = None
    scratch_bytes: ScratchBytes = SCRATCH_BYTES
    allow_http: AllowHttp = False

    def kept_columns(self, columns: Callable[[], Collection[str]]) -> tuple[str, ...]:
        """The columns of the input that the output repeats, in the order of the flags; raises UsageError when one is kept twice.

        A value that is no name of a column is a list of names with commas between them. `columns` gives the names of the input; it
        is called only when a value holds a comma.
        """
        names: list[str] = []
        for value in self.keep:
            if "," in value and value not in columns():
                names += [name.strip() for name in value.split(",") if name.strip()]
            elif value.strip():
                names.append(value if "," in value else value.strip())
        twice = next((name for position, name in enumerate(names) if name in names[:position]), None)
        if twice is not None:
            raise UsageError(f"--keep names the column '{twice}' twice: name it once")
        return tuple(names)
