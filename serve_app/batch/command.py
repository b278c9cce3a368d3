"""The command `score`, for `iris-api` and `python -m training`."""

from __future__ import annotations

import time

import typer

from serve_app.batch.score_options import ScoreOptions
from serve_app.command_line import INTERRUPTED, options_command, say
from serve_app.progress import step
from serve_app.tables.address import redacted


def score(options: ScoreOptions) -> None:
    """Predict every row of a table of any size, on all cores; the same command continues an unfinished run."""
    started = time.monotonic()
    with step("load the libraries"):
        from serve_app.batch import run
    try:
        outcome = run.score(options, step)
    except KeyboardInterrupt:
        say("error: stopped; run the same command again to score the remaining parts", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if outcome.already:
        say(f"{outcome.already} of {outcome.parts} parts were already complete", err=True)
    bad = f", {outcome.errors:,} of them with an error" if outcome.errors else ""
    say(f"{outcome.rows:,} rows scored by version {outcome.version} ({outcome.digest[:12]}){bad}: {redacted(options.out)}")
    if outcome.workers:
        total = f"{time.monotonic() - started:.1f} s, of which {outcome.seconds:.1f} s scoring"
        workers = f"{outcome.workers} workers of at most {outcome.peak_bytes / 1e6:,.0f} MB each"
        say(f"done in {total} by {workers}", err=True)


def register(app: typer.Typer) -> None:
    """Add `score` to a command line."""
    app.command()(options_command(ScoreOptions, score))
