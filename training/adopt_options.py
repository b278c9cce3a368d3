"""The options of `adopt`: its own, and those of the gate, which are declared by `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from serve_app.command_line import Decimal, Encoding, Separator
from serve_app.errors import UsageError
from training.train_options import DateFlag, TrainOptions, parse_date

GATE = (
    *("floor", "min_accuracy", "allow_unpredicted_classes", "tolerance", "importance_seconds", "force", "same_columns"),
    *("exit_refused", "report", "keep", "signing_key", "prefer", "allow_joblib", "verify_key", "no_tracking", "experiment_name"),
    *("run_name", "model_name", "model_alias", "tag", "model_dir", "tracking_uri", "scratch_dir", "scratch_bytes", "allow_http"),
)
"""The options of `train` that `adopt` takes over, by their fields."""

SECONDS = 600
"""Time in which a model has to be loaded and examined, unless a flag says otherwise."""


@dataclass(frozen=True, kw_only=True)
class AdoptOptions:
    """What is adopted, and how the sample is read. Raises UsageError when two flags do not fit."""

    model: Annotated[
        str,
        typer.Argument(
            help="File of the model (joblib, pickle, skops, .ubj, .txt, .cbm), or models:/NAME@ALIAS or runs:/ID/PATH in MLflow."
        ),
    ]
    sample: Annotated[
        str | None,
        typer.Option(help="CSV or Parquet with rows like those of the fit: a file, a folder, gs://…, s3://…, https://…."),
    ] = None
    target: Annotated[str | None, typer.Option(help="Column of the sample with the labels, or several as A,B.")] = None
    held_out: Annotated[bool, typer.Option("--held-out", help="The model has not learnt from the rows of the sample.")] = False
    category: Annotated[list[str], typer.Option(metavar="COLUMN", help="Column of categories; repeatable.")] = field(
        default_factory=list
    )
    number: Annotated[list[str], typer.Option(metavar="COLUMN", help="Column of numbers; repeatable.")] = field(
        default_factory=list
    )
    date: Annotated[
        list[DateFlag],
        typer.Option(metavar="COLUMN[=FORMAT]", parser=parse_date, help="Column of dates, which CSV writes as texts; repeatable."),
    ] = field(default_factory=list)
    nullable: Annotated[
        list[str], typer.Option(metavar="COLUMN", help="Column that may be null, also when the sample has no gap; repeatable.")
    ] = field(default_factory=list)
    na: Annotated[
        list[str], typer.Option(metavar="TEXT", help="Text that means a missing value, besides the empty cell; repeatable.")
    ] = field(default_factory=list)
    separator: Separator = None
    decimal: Decimal = None
    encoding: Encoding = None
    package: Annotated[
        list[Path], typer.Option(metavar="PATH", help="Module, folder or wheel with code that the model needs; repeatable.")
    ] = field(default_factory=list)
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the report, and stop.")] = False
    seconds: Annotated[int, typer.Option(min=1, help="Time for loading and examining the model.")] = SECONDS
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", min=0.1, help="Memory for the model. (default: three quarters of the machine's)")
    ] = None

    def __post_init__(self) -> None:
        flags = (("--category", self.category), ("--number", self.number), ("--date", list(self.dates)))
        for at, (flag, columns) in enumerate(flags):
            for other, others in flags[at + 1 :]:
                both = sorted(set(columns) & set(others))
                if both:
                    raise UsageError(f"'{both[0]}' is named by {flag} and by {other}: name one kind")
        if self.target in {*self.category, *self.number, *self.dates, *self.nullable}:
            raise UsageError(f"--target '{self.target}' is named as a column of the model, too: leave one out")
        if self.held_out and self.target is None:
            raise UsageError("--held-out says that labels are new to the model, and --target, which names them, is missing")

    @property
    def dates(self) -> Mapping[str, tuple[str, ...]]:
        """By column of dates, its formats."""
        forms: dict[str, tuple[str, ...]] = {}
        for column, form in self.date:
            forms[column] = (*forms.get(column, ()), *([form] if form else []))
        return forms


@dataclass(frozen=True, slots=True)
class AdoptOrder:
    """What the process is told. `memory_bytes` limits its memory; `examined` is the pipe for the byte that says it has examined."""

    options: AdoptOptions
    gate: TrainOptions
    memory_bytes: int
    examined: int
