"""The command line `iris-api`. It loads a command that needs the training libraries only when you call the command."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from serve_app import __version__
from serve_app.command_line import FAILED, WRONG_USAGE, run_command
from serve_app.errors import IrisApiError, UsageError

PROGRAM = "iris-api"

COMPOSITION_ROOT = "serve_app.deployment"
"""The name of the application's module: only a Ray worker imports it, with Ray Serve and FastAPI."""

ROOT_OPTIONS = ("--help", "-h", "--version", "--install-completion", "--show-completion")
"""Options of `iris-api` itself; all other options belong to a command."""


def _of_training(name: str) -> Callable[[], TyperCommand]:
    """A loader for one command of `training`; it imports by name, because this package does not depend on training."""

    def load() -> TyperCommand:
        group: Any = typer.main.get_command(importlib.import_module("training.commands").app)
        command: TyperCommand = group.commands[name]
        return command

    return load


def _score() -> TyperCommand:
    from serve_app.batch.command import register

    app = typer.Typer()
    register(app)
    command: Any = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)
    return command


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command with its line in the list of commands; `load` imports the command."""

    help: str
    load: Callable[[], TyperCommand]


LAZY_COMMANDS: Mapping[str, LazyCommand] = {
    "train": LazyCommand("Train a model, evaluate it, and publish it when it is accepted.", _of_training("train")),
    "adopt": LazyCommand("Adopt a model that was fitted elsewhere, and publish it when it is accepted.", _of_training("adopt")),
    "models": LazyCommand("List the models in the store, and show which one is served.", _of_training("models")),
    "promote": LazyCommand("Serve the given version from now on.", _of_training("promote")),
    "rollback": LazyCommand("Serve the newest undamaged version that is older than the served one.", _of_training("rollback")),
    "backup": LazyCommand("Write models, MLflow and data into one archive.", _of_training("backup")),
    "restore": LazyCommand("Restore models, MLflow and data from an archive.", _of_training("restore")),
    "score": LazyCommand("Predict every row of a table of any size.", _score),
}


class _Deferred(TyperCommand):
    """The entry for a LazyCommand in the list of commands; it loads the command when it parses arguments."""

    def __init__(self, name: str, lazy: LazyCommand) -> None:
        super().__init__(name, help=lazy.help, short_help=lazy.help)
        self._load = lazy.load

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self._load().make_context(info_name, args, parent=parent, **extra)


class _Commands(TyperGroup):
    """The commands defined in this module, then the deferred ones."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, lazy in LAZY_COMMANDS.items():
            self.add_command(_Deferred(name, lazy))


app = typer.Typer(
    name=PROGRAM,
    cls=_Commands,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, publish and serve scikit-learn models, and score tables. `iris-api COMMAND --help` lists the flags of a command.",
)
keys = typer.Typer(help="Make and revoke API keys; the key file holds only hashes.")
app.add_typer(keys, name="keys")

KeyName = Annotated[str, typer.Option("--name", help="Name of the client that owns the key.")]
KeyDays = Annotated[float | None, typer.Option("--days", help="Days until the key expires. (default: never)")]


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[str | None, typer.Option(help="Port. (default: PORT, else AIP_HTTP_PORT, else 8000)")] = None,
    replicas: Annotated[int | None, typer.Option(help="Replicas. (default: IRIS_REPLICAS, else 1)")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port for calls over gRPC. (default: IRIS_GRPC_PORT, else no gRPC)")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the settings and the port, then exit.")] = False,
    dashboard: Annotated[
        bool,
        typer.Option(
            "--dashboard", help="Start all Ray processes, with the dashboard on 127.0.0.1, port 8265 or the next free port."
        ),
    ] = False,
) -> None:
    """Serve the application on this machine, in the foreground, until Ctrl-C."""
    from serve_app.rayserve.flags import set_one_machine_flags
    from serve_app.rayserve.isolation import check_port, isolated_environment
    from serve_app.settings import load_settings

    if replicas is not None:
        os.environ["IRIS_REPLICAS"] = str(replicas)
    if grpc_port is not None:
        os.environ["IRIS_GRPC_PORT"] = str(grpc_port)
    try:
        settings = load_settings()
        number = read_port(port)
        check_port(host, number)
        if settings.iris_grpc_port is not None:
            check_port(host, settings.iris_grpc_port, variable="IRIS_GRPC_PORT")
        if check:
            return
        set_one_machine_flags()
        with isolated_environment(number):
            # After the flags, because Ray reads them at its import.
            from serve_app.rayserve.launcher import serve_until_stopped

            serve_until_stopped(settings, module=COMPOSITION_ROOT, host=host, port=number, dashboard=dashboard)
    except IrisApiError as error:
        raise UsageError(str(error)) from error


@app.command("settings")
def print_settings(
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table to this file.")] = None,
) -> None:
    """Print every setting with its default as a Markdown table."""
    from serve_app.settings import table

    text = f"# Settings\n\nRead from the environment by each replica. `make docs-settings` writes this page.\n\n{table()}"
    if write is None:
        typer.echo(text, nl=False)
    else:
        write.write_text(text)


@keys.command("make")
def make(
    name: KeyName,
    days: KeyDays = None,
    file: Annotated[Path | None, typer.Option(help="Key file (IRIS_API_KEYS_FILE) to which the command adds the hash.")] = None,
    scope: Annotated[
        Literal["predict", "manage"],
        typer.Option(help="What the key allows: predictions, or also to promote and roll back in the console (`manage`)."),
    ] = "predict",
) -> None:
    """Make an API key and print it once. The key file keeps only its hash."""
    from serve_app.http.auth import KeysError, change_file, make_key

    try:
        key, entry = make_key(name, days=days, scopes=(scope,))
        if file is not None:
            change_file(file, add=entry)
    except KeysError as error:
        raise UsageError(str(error)) from error
    if file is not None:
        typer.echo(f"the hash of the key is in {file}; the key itself is shown only once:", err=True)
    else:
        typer.echo(f"add this entry to the list in your key file: {json.dumps(entry)}", err=True)
    typer.echo(key)


@keys.command("revoke")
def revoke(name: KeyName, file: Annotated[Path, typer.Option(help="Key file (IRIS_API_KEYS_FILE).")]) -> None:
    """Remove every key with this name from the key file. The exit code is 1 when the file has no such key."""
    from serve_app.http.auth import KeysError, change_file

    try:
        removed = change_file(file, remove=name)
    except KeysError as error:
        raise UsageError(str(error)) from error
    typer.echo(f"{removed} key(s) of {name} removed from {file}", err=True)
    if not removed:
        raise typer.Exit(FAILED)


@app.command("key", hidden=True)
def make_or_revoke(
    name: KeyName,
    days: KeyDays = None,
    file: Annotated[Path | None, typer.Option(help="Key file (IRIS_API_KEYS_FILE).")] = None,
    revoke_: Annotated[bool, typer.Option("--revoke", help="Remove every key with this name from the key file.")] = False,
) -> None:
    """Do the same as `keys make` or, with --revoke, as `keys revoke`; kept for scripts that use this name."""
    if not revoke_:
        make(name, days, file)
    elif file is None:
        raise UsageError("--revoke needs --file")
    else:
        revoke(name, file)


def read_port(option: str | None) -> int:
    """Return the port from `--port`, else from PORT, else from AIP_HTTP_PORT (Vertex AI), else 8000.

    Raises UsageError when it is not a number from 1 to 65535.
    """
    named = {"--port": option, **{name: os.environ.get(name, "").strip() for name in ("PORT", "AIP_HTTP_PORT")}}
    source = next((name for name, value in named.items() if value), "")
    text = (named.get(source) or "8000").strip()
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise UsageError(f"{source}: '{text[:20]}' is not a port; give a number from 1 to 65535")
    return int(text)


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """Run one command and return its exit code (see `command_line`); print every expected error as one line on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        return run_command(app, arguments, program)
    except ModuleNotFoundError as error:
        if arguments[0] not in LAZY_COMMANDS:
            raise
        typer.echo(
            f"error: `{program} {arguments[0]}` needs `{error.name}`, which the serving environment does not have; "
            "use the training environment (`make train`) or the training image",
            err=True,
        )
        return WRONG_USAGE


if __name__ == "__main__":
    sys.exit(main())
