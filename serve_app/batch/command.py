"""`python -m training score`: the flags, and what is said at the end."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from serve_app.errors import UsageError
from serve_app.progress import step


class OnError(StrEnum):
    refuse = "refuse"
    keep = "keep"


class Unknown(StrEnum):
    refuse = "refuse"
    unseen = "unseen"


class Form(StrEnum):
    parquet = "parquet"
    csv = "csv"


class Prefer(StrEnum):
    auto = "auto"
    onnx = "onnx"
    scikit_learn = "scikit-learn"


def score(
    data: Annotated[str, typer.Option(help="CSV or Parquet: a file, a folder, a pattern 'in/*.csv', or gs://…, s3://….")],
    out: Annotated[str, typer.Option(help="Folder of the results, here or in a bucket; parts of an unfinished run are kept.")],
    version: Annotated[int | None, typer.Option(help="A version that `list` shows. (default: the served one)")] = None,
    keep: Annotated[str, typer.Option(metavar="COLUMN,…", help="Columns of the input to repeat in the output.")] = "",
    on_error: Annotated[
        OnError, typer.Option(help="A row that the API would refuse: stop at it, or write why into the column `error`.")
    ] = OnError.refuse,
    unknown_category: Annotated[
        Unknown, typer.Option(envvar="IRIS_UNKNOWN_CATEGORY", help="A category that training never saw: an error, or predicted.")
    ] = Unknown.refuse,
    form: Annotated[Form, typer.Option("--format", help="Of the output files.")] = Form.parquet,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew: removes what an earlier run left in --out.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. (default: one for each CPU that Ray has)")] = None,
    part_bytes: Annotated[int, typer.Option(min=1, help="Bytes of the input in one output file.")] = 16 << 20,
    predictor: Annotated[Prefer, typer.Option(envvar="IRIS_PREDICTOR", help="What computes, as for a replica.")] = Prefer.auto,
    allow_joblib: Annotated[
        bool, typer.Option(envvar="IRIS_ALLOW_JOBLIB", help="Whether a model without an ONNX form may be unpickled.")
    ] = True,
    verify_key: Annotated[
        Path | None,
        typer.Option(envvar="IRIS_VERIFY_KEY", help="Score only with bundles signed by these Ed25519 public keys (PEM)."),
    ] = None,
    model_dir: Annotated[Path, typer.Option(envvar="MODEL_DIR", help="The store: folder of published models.")] = Path("models"),
) -> None:
    """Predict every row of a table larger than memory, on all cores; started again, it goes on where it was."""
    started = time.monotonic()
    with step("load the libraries"):
        from serve_app.batch import run
    names = tuple(name.strip() for name in keep.split(",") if name.strip())
    if len(set(names)) != len(names):
        raise UsageError(f"--keep '{keep}' names a column twice")
    options = run.Options(
        data=data,
        out=out,
        model_dir=model_dir,
        version=version,
        keep=names,
        on_error=on_error.value,
        unknown=unknown_category.value,
        form=form.value,
        restart=restart,
        workers=workers,
        part_bytes=part_bytes,
        prefer=predictor.value,
        allow_joblib=allow_joblib,
        verify_key=verify_key,
    )
    try:
        found = run.score(options, step)
    except KeyboardInterrupt:
        typer.echo("error: stopped; the same command goes on with what is left", err=True)
        raise typer.Exit(130) from None
    if found.already:
        typer.echo(f"{found.already} of {found.parts} parts were there already", err=True)
    bad = f", {found.errors:,} of them with an error" if found.errors else ""
    typer.echo(f"{found.rows:,} rows scored by version {found.version} ({found.digest[:12]}){bad}: {out}")
    if found.workers:
        typer.echo(
            f"done in {time.monotonic() - started:.1f} s, of which {found.seconds:.1f} s scoring by {found.workers} workers of at "
            f"most {found.peak_bytes / 1e6:,.0f} MB each",
            err=True,
        )
