"""The options of `adopt`: its own options, and those of the gate, which `train` declares."""

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
"""The fields of the options of `train` that `adopt` also has."""

SECONDS = 600
"""Default seconds in which a model must be loaded and examined."""


@dataclass(frozen=True, kw_only=True)
class AdoptOptions:
    """The model, the sample, and how to read the sample. Raises UsageError when two flags contradict each other."""

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
    held_out: Annotated[bool, typer.Option("--held-out", help="The rows of the sample are new to the model.")] = False
    category: Annotated[list[str], typer.Option(metavar="COLUMN", help="Column of categories; repeatable.")] = field(
        default_factory=list
    )
    number: Annotated[list[str], typer.Option(metavar="COLUMN", help="Column of numbers; repeatable.")] = field(
        default_factory=list
    )
    date: Annotated[
        list[DateFlag],
        typer.Option(metavar="COLUMN[=FORMAT]", parser=parse_date, help="Column of dates, which CSV holds as texts; repeatable."),
    ] = field(default_factory=list)
    nullable: Annotated[
        list[str], typer.Option(metavar="COLUMN", help="Column that may be null, even if the sample has no gap; repeatable.")
    ] = field(default_factory=list)
    na: Annotated[
        list[str], typer.Option(metavar="TEXT", help="Text that means a missing value, like an empty cell; repeatable.")
    ] = field(default_factory=list)
    separator: Separator = None
    decimal: Decimal = None
    encoding: Encoding = None
    package: Annotated[
        list[Path], typer.Option(metavar="PATH", help="Module, folder or wheel with code of the model; repeatable.")
    ] = field(default_factory=list)
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the report and stop.")] = False
    seconds: Annotated[int, typer.Option(min=1, help="Most seconds to load and examine the model.")] = SECONDS
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", min=0.1, help="Memory for the model. (default: three quarters of the machine)")
    ] = None

    def __post_init__(self) -> None:
        flags = (("--category", self.category), ("--number", self.number), ("--date", list(self.dates)))
        for at, (flag, columns) in enumerate(flags):
            for other, others in flags[at + 1 :]:
                both = sorted(set(columns) & set(others))
                if both:
                    raise UsageError(f"{flag} and {other} both name the column '{both[0]}': use one of them")
        if self.target in {*self.category, *self.number, *self.dates, *self.nullable}:
            raise UsageError(f"another flag names the --target '{self.target}' as a feature: remove one of them")
        if self.held_out and self.target is None:
            raise UsageError("--held-out needs labels: give the name of their column with --target")

    @property
    def dates(self) -> Mapping[str, tuple[str, ...]]:
        """The formats of each column of dates, by name."""
        forms: dict[str, tuple[str, ...]] = {}
        for column, form in self.date:
            forms[column] = (*forms.get(column, ()), *([form] if form else []))
        return forms


@dataclass(frozen=True, slots=True)
class AdoptOrder:
    """The order for the process. `memory_bytes` limits its memory; `examined` is the pipe for the byte after the examination."""

    options: AdoptOptions
    gate: TrainOptions
    memory_bytes: int
    examined: int
