"""The command `adopt`: passes a model that was fitted elsewhere through the gate, in a process with limits on memory and time."""

from __future__ import annotations

import inspect
import os
import pickle
import select
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperCommand

from serve_app.artifacts.memory_limit import memory_limit
from serve_app.command_line import INTERRUPTED, option_parameters, say
from serve_app.errors import UsageError
from serve_app.secret_variables import environment_for_model
from training.adopt_options import GATE, AdoptOptions, AdoptOrder
from training.train_options import TrainOptions

MEMORY_SHARE = 0.75
"""Default share of the machine's or container's memory for the process."""


def adopt(options: AdoptOptions, gate: TrainOptions) -> None:
    """Adopt a model that was fitted elsewhere: examine it with a sample, judge it, and publish it when it is accepted."""
    code = run_limited(options, gate)
    if code:
        raise typer.Exit(code)


def run_limited(options: AdoptOptions, gate: TrainOptions) -> int:
    """Run the process that adopts, and return its exit code; raises UsageError when it dies or takes too long."""
    memory = int(memory_limit() * MEMORY_SHARE) if options.memory is None else int(options.memory * 2**30)
    reading, writing = os.pipe()
    order = AdoptOrder(options, gate, memory, writing)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "training.adopt_process"],
        stdin=subprocess.PIPE,
        pass_fds=[writing],
        env={**_environment(options, gate), "PYTHONPATH": os.pathsep.join(os.path.abspath(folder) for folder in sys.path)},
    )
    os.close(writing)
    overdue = False
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(pickle.dumps(order))
        overdue = not select.select([reading], [], [], options.seconds)[0]
        if overdue:
            process.kill()
        status = process.wait()
    except KeyboardInterrupt:
        process.kill()
        process.wait()
        say("error: stopped; nothing was published", err=True)
        return INTERRUPTED
    finally:
        os.close(reading)
    if overdue:
        raise UsageError(f"loading and examining the model took more than {options.seconds} seconds: allow more with --seconds")
    if status < 0:
        name = signal.Signals(-status).name
        raise UsageError(f"the process that examined the model died ({name}); it could use {memory / 2**30:.1f} GiB of memory")
    return status


def _environment(options: AdoptOptions, gate: TrainOptions) -> dict[str, str]:
    """The environment of the process, with the logins of MLflow and of buckets only if it uses them."""
    from training.mlflow_model import is_address

    asks_mlflow = is_address(options.model) or not (gate.no_tracking or options.dry_run)
    return environment_for_model(mlflow=asks_mlflow, buckets=asks_mlflow or "://" in (options.sample or ""))


def register(app: typer.Typer, command_class: type[TyperCommand]) -> None:
    """Add `adopt` to the commands; `command_class` parses `--tag KEY VALUE`."""
    app.command(cls=command_class)(_command())


def _command() -> Any:
    """The function that typer turns into the command: the flags of AdoptOptions, then those of the gate."""
    own, gate = option_parameters(AdoptOptions), option_parameters(TrainOptions, GATE)

    def command(**values: Any) -> None:
        rest = {name: values.pop(name) for name in GATE}
        adopt(AdoptOptions(**values), TrainOptions(**rest))

    parameters = [*own, *gate]
    command.__name__, command.__doc__, command.__module__ = adopt.__name__, adopt.__doc__, adopt.__module__
    command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command
