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

# Declared here, because the modules that use them import numpy and ONNX Runtime, which `--help` does not need.
Format = Literal["parquet", "csv"]
OnError = Literal["refuse", "keep"]
Unknown = Literal["refuse", "unseen"]

PART_BYTES = 16 << 20
"""Bytes of the input in one output file."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The options of one scoring."""

    data: Annotated[str, typer.Option(help="CSV or Parquet: a file, a folder, a pattern 'in/*.csv', gs://…, s3://…, or https://….")]
    out: Annotated[
        str, typer.Option(help="Folder for the results, on this machine or in a bucket; it keeps complete parts of an earlier run.")
    ]
    model_dir: ModelDir = MODEL_DIR
    version: Annotated[int | None, typer.Option(help="A version that `models` lists. (default: the served one)")] = None
    keep: Annotated[
        list[str],
        typer.Option(metavar="COLUMN", help="Column of the input to copy to the output, or several as A,B; repeatable."),
    ] = field(default_factory=list)
    on_error: Annotated[
        OnError, typer.Option(help="A row that the API would refuse: stop at it, or write the reason to the column `error`.")
    ] = "refuse"
    unknown: Annotated[
        Unknown,
        typer.Option(
            "--unknown-category",
            envvar="IRIS_UNKNOWN_CATEGORY",
            help="What to do with a category that training did not see: refuse the row, or predict it.",
        ),
    ] = "refuse"
    separator: Separator = None
    decimal: Decimal = None
    encoding: Encoding = None
    form: Annotated[Format, typer.Option("--format", help="Format of the output files.")] = "parquet"
    restart: Annotated[bool, typer.Option("--restart", help="Start over: remove the results of an earlier run from --out.")] = False
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. (default: one for each CPU of Ray)")] = None
    part_bytes: Annotated[int, typer.Option(min=1, help="Bytes of the input in one output file.")] = PART_BYTES
    prefer: PredictorChoice = "auto"
    allow_joblib: AllowJoblib = True
    verify_key: VerifyKey = None
    scratch_dir: ScratchDir = None
    scratch_bytes: ScratchBytes = SCRATCH_BYTES
    allow_http: AllowHttp = False

    def kept_columns(self, columns: Callable[[], Collection[str]]) -> tuple[str, ...]:
        """The columns that the output copies from the input, in the order of the flags; raises UsageError for a repeated column.

        A value that is not the name of a column is a list of names with commas between them. `columns` returns the names of the
        input; the method calls it only when a value has a comma.
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
