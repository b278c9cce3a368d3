"""The commands of training, for `iris-api` and `python -m training`: train, models, promote, rollback, backup, restore.

This module does not import pandas, scikit-learn or MLflow; the commands that use them import them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from serve_app.artifacts import listing
from serve_app.artifacts.store import Check, Entry, Store
from serve_app.command_line import (
    INTERRUPTED,
    MODEL_DIR,
    AllowJoblib,
    ModelDir,
    PredictorChoice,
    VerifyKey,
    options_command,
    say,
)
from serve_app.errors import BackendUnavailable, StoreError, UsageError
from serve_app.progress import step
from training import adopt_command, backup_command, models_table
from training.default_arguments import default_arguments
from training.train_options import DEFAULT_MODEL_ALIAS, DEFAULT_MODEL_NAME, ModelAlias, ModelName, TrackingUri, TrainOptions

if TYPE_CHECKING:
    from training.pipeline import Outcome

app = typer.Typer(
    name="training",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Train a model and publish it to the store, or manage the models in the store.",
)


class TaggedCommand(TyperCommand):
    """A command that accepts `--tag KEY VALUE`; typer has no repeatable option with two values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line with each `--tag KEY VALUE` as `--tag KEY=VALUE`."""
        return super().parse_args(ctx, join_tags(args))


class TrainCommand(TaggedCommand):
    """The command `train`, which also takes flags from the environment."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line after the defaults from the environment."""
        return super().parse_args(ctx, default_arguments(args, os.environ) + args)


def train(options: TrainOptions) -> None:
    """Train a model, judge it, and publish it when it is accepted."""
    started = time.monotonic()
    try:
        with step("load the libraries"):
            from training import pipeline
        if options.dry_run:
            pipeline.look(options, step)
            say("dry run: nothing was trained, recorded or published", err=True)
            return
        if not options.no_tracking:
            print_tracking_location(options.tracking_uri)
        outcome = pipeline.train(options, step)
    except KeyboardInterrupt:
        say("error: stopped; nothing was published", err=True)
        raise typer.Exit(INTERRUPTED) from None
    print_outcome(outcome, options.model_dir, time.monotonic() - started)
    if outcome.entry is None:
        raise typer.Exit(options.exit_refused)


app.command(cls=TrainCommand)(options_command(TrainOptions, train))


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model_dir: ModelDir = MODEL_DIR,
) -> None:
    """List the models in the store, and show which one is served."""
    rows = [listing.row(entry) for entry in Store(model_dir).entries()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif not rows:
        say(f"{model_dir} has no published model")
    else:
        for line in models_table.lines(rows):
            say(line)


app.command("list", hidden=True)(models)


@dataclass(frozen=True, kw_only=True)
class PointerOptions:
    """The options of commands that move the store's pointer: the store, the policy of its replicas, and the model in MLflow."""

    model_dir: ModelDir = MODEL_DIR
    prefer: PredictorChoice = "auto"
    allow_joblib: AllowJoblib = True
    verify_key: VerifyKey = None
    model_name: ModelName = DEFAULT_MODEL_NAME
    model_alias: ModelAlias = DEFAULT_MODEL_ALIAS
    tracking_uri: TrackingUri = None


@dataclass(frozen=True, kw_only=True)
class PromoteOptions(PointerOptions):
    """The options of `promote`."""

    version: Annotated[
        str,
        typer.Argument(
            help="Version from the list of `models`, or with a bundle in MLflow: models:/NAME@ALIAS, models:/NAME/VERSION."
        ),
    ]


def promote(options: PromoteOptions) -> None:
    """Serve this version from now on."""
    if not options.version.isdigit() and not options.version.startswith("models:"):
        raise UsageError(f"'{options.version}' is not a version: give a number from the list of `models`, or models:/NAME@ALIAS")

    if options.version.isdigit():
        _move_pointer(lambda store, check: store.promote(int(options.version), check=check), options)
        return
    from training.mlflow_model import parse_address
    from training.registered_bundle import bring

    def move(store: Store, check: Check) -> Entry:
        return store.promote(bring(options.version, store, tracking_uri=options.tracking_uri), check=check)

    name = parse_address(options.version).name
    _move_pointer(move, options if name is None else replace(options, model_name=name))


def rollback(options: PointerOptions) -> None:
    """Serve the newest undamaged version that is older than the served one."""
    _move_pointer(lambda store, check: store.roll_back(check=check), options)


app.command()(options_command(PromoteOptions, promote))
app.command()(options_command(PointerOptions, rollback))
backup_command.register(app)
adopt_command.register(app, TaggedCommand)


def join_tags(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--tag KEY VALUE` as `--tag KEY=VALUE`."""
    rest, joined = list(arguments), []
    while rest:
        argument = rest.pop(0)
        if argument == "--tag" and len(rest) > 1 and "=" not in rest[0] and not rest[1].startswith("--"):
            joined += [argument, f"{rest.pop(0)}={rest.pop(0)}"]
        else:
            joined.append(argument)
    return joined


def _move_pointer(move: Callable[[Store, Check], Entry], options: PointerOptions) -> None:
    """Move the store's pointer, which decides the served version; MLflow's alias follows if possible."""
    from serve_app.artifacts.promotion import check_promotion
    from serve_app.inference.policy import load_policy

    policy = load_policy(allow_joblib=options.allow_joblib, backend=options.prefer, verify_key=options.verify_key)
    store = Store(options.model_dir)
    entry = move(store, check_promotion(policy))
    for reason in entry.skipped:
        say(f"note: {reason}", err=True)
    say(f"version {entry.version} ({entry.digest[:12]}) is served from now on")
    tracked = entry.manifest is not None and entry.manifest.mlflow_model_version
    if not tracked or (options.tracking_uri is None and not Path("mlflow.db").exists()):
        return
    from training import tracking

    try:
        tracking.follow(options.tracking_uri, store, options.model_name, policy, options.model_alias)
    except (UsageError, StoreError, BackendUnavailable) as error:
        say(f"note: {error}", err=True)


def print_tracking_location(uri: str | None) -> None:
    """Print where runs go when the address names file storage."""
    from training.tracking_uri import resolve

    server, artifact_root = resolve(uri)
    if artifact_root is not None:
        say(f"note: {uri} stores only files: runs go to {server}, files to {artifact_root}", err=True)


def print_outcome(outcome: Outcome, model_dir: Path, seconds: float) -> None:
    """Print the result of a training or an adoption."""
    for note in outcome.notes:
        say(f"note: {note}", err=True)
    scalars: Mapping[str, float] = getattr(outcome.metrics, "means", outcome.metrics.scalars())  # of several targets, their means
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in scalars.items())
    if not outcome.comparison.compared:
        say(f"not compared: {outcome.comparison.why}", err=True)
    if outcome.entry is None:
        say(f"metrics: {numbers}; report: {outcome.report}", err=True)
        # The reasons come last: the status of a RayJob that failed shows the last line of its log.
        say(f"refused, nothing was published: {'; '.join(outcome.verdict.reasons)}", err=True)
        return
    if not outcome.verdict.accepted:
        say(f"published by force although {'; '.join(outcome.verdict.reasons)}", err=True)
    onnx, native = outcome.manifest.onnx, outcome.manifest.native
    kind = "ONNX Runtime" if onnx is not None and onnx.available else "scikit-learn" if native is None else native.library
    measured = f": {numbers}" if numbers else ""
    say(f"version {outcome.entry.version} ({outcome.entry.digest[:12]}) is served from {model_dir} through {kind}{measured}")
    say(f"done in {seconds:.1f} s", err=True)
