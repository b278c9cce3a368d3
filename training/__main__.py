"""The command line: train (the default), score, list, promote, rollback.

Exit codes: 0 done; 1 something failed (store, MLflow, disk); 2 a mistake of the caller; 3 the model was refused.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from serve_app.artifacts.store import KEEP, Entry, Store
from serve_app.batch.command import score
from serve_app.errors import BackendUnavailable, IrisApiError, UsageError
from serve_app.progress import step
from training import listing

if TYPE_CHECKING:
    from training.pipeline import Outcome

FAILED, MISTAKEN, REFUSED = 1, 2, 3
COMMANDS = ("train", "score", "list", "models", "promote", "rollback")

app = typer.Typer(
    name="training",
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a model and publish it to the store, or look after the models that are there. "
    "Without a command, trains: `python -m training --help` lists the commands, `python -m training train --help` the flags.",
)

ModelDir = Annotated[Path, typer.Option(envvar="MODEL_DIR", help="The store: folder of published models.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(envvar="MLFLOW_TRACKING_URI", help="MLflow server, or a bucket for its files. (default: sqlite:///mlflow.db)"),
]
Store_ = Path("models")


class Task(StrEnum):
    auto = "auto"
    classification = "classification"
    regression = "regression"


@app.command()
def train(
    data: Annotated[Path | None, typer.Option(help="CSV or Parquet table. (default: the iris flowers)")] = None,
    target: Annotated[str | None, typer.Option(help="Column to predict.")] = None,
    task: Annotated[Task, typer.Option(help="What to predict: a class or a number; auto looks at the target.")] = Task.auto,
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Leave a column out; repeatable.")] = None,
    bounds: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=LOW:HIGH", help="Requests outside are refused; either side may be empty.")
    ] = None,
    estimator: Annotated[
        str, typer.Option(help="random-forest, logistic-regression, hist-gradient-boosting or package.module:factory.")
    ] = "random-forest",
    n_estimators: Annotated[str | None, typer.Option(metavar="N", help="Trees. (default: 200)")] = None,
    max_depth: Annotated[str | None, typer.Option(metavar="N|None", help="Depth of a tree; None: no limit. (default: 10)")] = None,
    test_size: Annotated[float, typer.Option(help="Share of the rows held out.")] = 0.2,
    random_state: Annotated[str, typer.Option(metavar="N|None", help="Seed; None: another one each time.")] = "42",
    search: Annotated[int, typer.Option(metavar="N", help="Compare N candidates by cross-validation, as Ray tasks.")] = 0,
    floor: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="Refuse a model below (mae, rmse: above) this; repeatable."),
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Same as --floor accuracy=VALUE.")] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, help="How much worse than the served model is allowed: accuracy lost, or share by which rmse grows."),
    ] = 0.0,
    force: Annotated[bool, typer.Option("--force", help="Publish even a refused model; its metadata say so.")] = False,
    report: Annotated[Path | None, typer.Option(help="Where the verdict is written. (default: MODEL_DIR/verdict.json)")] = None,
    keep: Annotated[int, typer.Option(min=1, help="Models that the store keeps.")] = KEEP,
    signing_key: Annotated[
        Path | None, typer.Option(envvar="IRIS_SIGNING_KEY", help="Sign the bundle with this Ed25519 private key (PEM).")
    ] = None,
    no_tracking: Annotated[bool, typer.Option("--no-tracking", help="Publish without MLflow; the metadata say so.")] = False,
    experiment_name: Annotated[str, typer.Option(help="MLflow experiment.")] = "iris-classification",
    run_name: Annotated[str | None, typer.Option(help="Name of the MLflow run.")] = None,
    model_name: Annotated[str, typer.Option(help="Name of the registered model.")] = "IrisClassifier",
    tag: Annotated[list[str] | None, typer.Option(metavar="KEY VALUE", help="Tag of the run; repeatable.")] = None,
    model_dir: ModelDir = Store_,
    tracking_uri: TrackingUri = None,
) -> None:
    """Train, judge, and publish what is good enough."""
    params: dict[str, Any] = {}
    if n_estimators is not None:
        params["n_estimators"] = _whole("--n-estimators", n_estimators)
        if params["n_estimators"] is None:
            raise UsageError("--n-estimators must be a whole number of at least 1")
    if max_depth is not None:
        params["max_depth"] = _whole("--max-depth", max_depth)
    limits = dict(_limit(text) for text in floor or [])
    if min_accuracy is not None:
        limits["accuracy"] = min_accuracy
    seed = _whole("--random-state", random_state)
    if seed is not None and not 0 <= seed < 2**32:
        raise UsageError(f"--random-state {seed} must be between 0 and {2**32 - 1}, or None")
    if search < 0:
        raise UsageError(f"--search {search} must be the number of candidates")
    limited = dict(_bound(text) for text in bounds or [])

    started = time.monotonic()
    with step("load the libraries"):
        from training import pipeline
    if not no_tracking:
        _tell_where(tracking_uri)
    outcome = pipeline.train(
        pipeline.Options(
            data=data,
            target=target,
            task=task.value,
            drop=tuple(drop or ()),
            bounds=limited,
            estimator=estimator,
            params=params,
            test_size=test_size,
            random_state=seed,
            search=search,
            limits=limits,
            tolerance=tolerance,
            force=force,
            model_dir=model_dir,
            keep=keep,
            signing_key=signing_key,
            report=report,
            tracking=not no_tracking,
            tracking_uri=tracking_uri,
            experiment=experiment_name,
            run_name=run_name,
            model_name=model_name,
            tags=dict(_tag(text) for text in tag or []),
        ),
        step,
    )
    _summary(outcome, model_dir, time.monotonic() - started)
    if outcome.entry is None:
        raise typer.Exit(REFUSED)


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    model_dir: ModelDir = Store_,
) -> None:
    """Show the models in the store, and which one is served."""
    rows = [listing.row(entry) for entry in Store(model_dir).entries()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif not rows:
        typer.echo(f"{model_dir} holds no published model")
    else:
        for line in listing.table(rows):
            typer.echo(line)


app.command("models", hidden=True)(list_models)
app.command()(score)


@app.command()
def promote(
    version: Annotated[int, typer.Argument(help="A version that `list` shows.")],
    model_dir: ModelDir = Store_,
    tracking_uri: TrackingUri = None,
) -> None:
    """Serve this version from now on."""
    _moved(lambda store: store.promote(version), model_dir, tracking_uri)


@app.command()
def rollback(model_dir: ModelDir = Store_, tracking_uri: TrackingUri = None) -> None:
    """Serve the version before the served one again."""
    _moved(Store.roll_back, model_dir, tracking_uri)


def _moved(move: Callable[[Store], Entry], model_dir: Path, tracking_uri: str | None) -> None:
    """The store first: it decides. MLflow's alias follows when it can."""
    store = Store(model_dir)
    entry = move(store)
    typer.echo(f"version {entry.version} ({entry.digest[:12]}) is served from now on")
    if (
        entry.manifest is None
        or not entry.manifest.mlflow_model_version
        or (tracking_uri is None and not Path("mlflow.db").exists())
    ):
        return
    from training import tracking

    try:
        tracking.follow(tracking_uri, store)
    except (UsageError, BackendUnavailable) as error:
        typer.echo(f"note: {error}", err=True)


def _tell_where(uri: str | None) -> None:
    from training.tracking_uri import resolve

    tracking, root = resolve(uri)
    if root is not None:
        typer.echo(f"note: {uri} is a place for files, no tracking server: runs go to {tracking}, files to {root}", err=True)


def _summary(outcome: Outcome, model_dir: Path, seconds: float) -> None:
    for note in outcome.notes:
        typer.echo(f"note: {note}", err=True)
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items() if isinstance(value, float))
    comparison = outcome.verdict.comparison
    if not comparison["compared"]:
        typer.echo(f"not compared: {comparison['why']}", err=True)
    if not outcome.verdict.accepted:
        word = "published by force although" if outcome.entry else "refused, nothing was published:"
        typer.echo(f"{word} {'; '.join(outcome.verdict.reasons)}", err=True)
    if outcome.entry is None:
        typer.echo(f"metrics: {numbers}; report: {outcome.report}", err=True)
        return
    conversion = outcome.manifest.onnx
    kind = "ONNX Runtime" if conversion is not None and conversion.available else "scikit-learn"
    typer.echo(
        f"version {outcome.entry.version} ({outcome.entry.digest[:12]}) is served from {model_dir} through {kind}: {numbers}"
    )
    typer.echo(f"done in {seconds:.1f} s", err=True)


def _whole(flag: str, text: str) -> int | None:
    if text.strip().lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{flag} '{text}' is no whole number") from None


def _limit(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    with contextlib.suppress(ValueError):
        return name.strip(), float(value)
    raise UsageError(f"--floor '{text}' must look like accuracy=0.9")


def _bound(text: str) -> tuple[str, tuple[float | None, float | None]]:
    name, _, span = text.rpartition("=")
    low, separator, high = span.partition(":")
    with contextlib.suppress(ValueError):
        if name and separator:
            ends = (float(low) if low else None, float(high) if high else None)
            if ends[0] is None or ends[1] is None or ends[0] <= ends[1]:
                return name, ends
    raise UsageError(f"--bounds '{text}' must look like age=0:120")


def _tag(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise UsageError(f"--tag '{text}' needs a value: --tag {text or 'team'} VALUE")
    return key, value


def _joined_tags(arguments: Sequence[str]) -> list[str]:
    """`--tag KEY VALUE` as one value, KEY=VALUE: the parser knows no list of pairs."""
    rest, joined = list(arguments), []
    while rest:
        argument = rest.pop(0)
        if argument == "--tag" and len(rest) > 1 and "=" not in rest[0] and not rest[1].startswith("--"):
            joined += [argument, f"{rest.pop(0)}={rest.pop(0)}"]
        else:
            joined.append(argument)
    return joined


def main() -> NoReturn:
    arguments = _joined_tags(sys.argv[1:])
    if arguments[:1] == ["-h"]:
        arguments = ["--help"]
    if not arguments or arguments[0] not in {*COMMANDS, "--help"}:
        arguments.insert(0, "train")
    try:
        code = app(arguments, standalone_mode=False, prog_name="python -m training")
    except (typer.TyperException, UsageError) as error:
        message = _parser_message(error, arguments) if isinstance(error, typer.TyperException) else str(error)
        code = _fail(message, MISTAKEN)
    except IrisApiError as error:
        code = _fail(str(error), FAILED)
    except OSError as error:
        code = _fail(f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}", FAILED)
    except MemoryError:
        code = _fail("the memory of this machine is too small for this table and estimator", FAILED)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("stopped; nothing was published", 130)
    sys.stdout.flush()
    sys.exit(code or 0)


def _parser_message(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """What the parser says, and where to look."""
    if arguments[0] == "train" and len(sys.argv) > 1 and not sys.argv[1].startswith("-") and sys.argv[1] not in COMMANDS:
        return f"there is no command '{sys.argv[1]}': use train, score, list, promote or rollback"
    return f"{error.format_message().rstrip('.')}: see `python -m training {arguments[0]} --help`"


def _fail(message: str, code: int) -> int:
    typer.echo(f"error: {message.rstrip()}", err=True)
    return code


if __name__ == "__main__":
    main()
