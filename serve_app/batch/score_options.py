"""The options of `score`, declared once: name, type, default, flag and help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from serve_app.command_line import MODEL_DIR, AllowJoblib, Decimal, Encoding, ModelDir, PredictorChoice, Separator, VerifyKey
from serve_app.errors import UsageError

# Declared here, because the modules that use them load numpy and ONNX Runtime, which `--help` does not need.
Format = Literal["parquet", "csv"]
OnError = Literal["refuse", "keep"]
Unknown = Literal["refuse", "unseen"]

PART_BYTES = 16 << 20
"""Bytes of the input in one output file."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What one scoring does. Raises UsageError when a column is kept twice."""

    data: Annotated[str, typer.Option(help="CSV or Parquet: a file, a folder, a pattern 'in/*.csv', or gs://…, s3://….")]
    out: Annotated[
        str, typer.Option(help="Folder of the results, on this machine or in a bucket; finished parts of an earlier run are kept.")
    ]
    model_dir: ModelDir = MODEL_DIR
    version: Annotated[int | None, typer.Option(help="A version that `models` lists. (default: the served one)")] = None
    keep: Annotated[str, typer.Option(metavar="COLUMN,…", help="Columns of the input to repeat in the output.")] = ""
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

    def __post_init__(self) -> None:
        if len(set(self.kept_columns)) != len(self.kept_columns):
            raise UsageError(f"--keep '{self.keep}' names a column twice")

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """The columns of the input that the output repeats, in the order of the flag."""
        return tuple(name.strip() for name in self.keep.split(",") if name.strip())
