"""The process that loads and examines a model: `python -m training.adopt_process`, started by `adopt_command`.

Its limits and its environment without secrets protect against mistakes. It is not a sandbox: code of the model runs as the user.

It reads its order from standard input, limits its memory, adopts the model, and ends with the exit code of the command. After the
examination, it writes one byte to the pipe of the order; from then on, its time is not limited.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from serve_app.artifacts.manifest import sha256
from serve_app.artifacts.signature import Kind
from serve_app.command_line import run_command, say
from serve_app.errors import IrisApiError, UsageError
from serve_app.progress import note, step
from training.adopt_options import AdoptOptions, AdoptOrder
from training.train_options import TrainOptions

if TYPE_CHECKING:
    from training.adoption import Adoption, Given, Sample
    from training.model_file import ModelFile

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Adopt one model, and exit with the exit code of the command."""
    order = pickle.loads(sys.stdin.buffer.read())  # noqa: S301, written by the command, not by a model
    assert isinstance(order, AdoptOrder)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for kind, limit in ((resource.RLIMIT_DATA, order.memory_bytes), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (limit, limit))
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command()
    def adopt() -> None:
        run(order)

    code = run_command(app, [], "iris-api adopt")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips exit handlers that the model may have registered


def run(order: AdoptOrder) -> None:
    """Inspect the file, load and examine the model, print the report, and pass the model through the gate."""
    started = time.monotonic()
    with step("load the libraries"):
        from training import model_file
    with _located(order.options.model, order.gate.tracking_uri) as source:
        packages = model_file.pack([*order.options.package, *source.code])
        with model_file.imported(packages):
            adoption = _examine(order, source, packages)
            os.write(order.examined, b"1")
            os.close(order.examined)
            _pass_gate(order, adoption, started)


@dataclass(frozen=True, slots=True)
class _Source:
    """The location of the model's file; `code` are folders of modules beside it, `example` holds rows that were logged with it."""

    path: Path
    file_format: str | None = None
    code: tuple[Path, ...] = ()
    example: Any = None


@contextmanager
def _located(model: str, tracking_uri: str | None) -> Iterator[_Source]:
    """Find the file of a model that is given as a path, a folder from MLflow, or an address in MLflow. Raises UsageError."""
    from training import mlflow_model

    if mlflow_model.is_address(model):
        with tempfile.TemporaryDirectory() as folder:
            with step("fetch the model from MLflow"):
                fetched = mlflow_model.fetch(model, Path(folder) / "model", tracking_uri=tracking_uri)
            note(f"{fetched.address}: {fetched.flavor}, {fetched.model_file.name}")
            yield _Source(fetched.model_file, fetched.file_format, fetched.code_paths, fetched.example)
    elif (Path(model) / "MLmodel").is_file():
        described = mlflow_model.described_folder(Path(model))
        yield _Source(described.model_file, described.file_format, described.code_paths, described.example)
    else:
        yield _Source(Path(model))


def _examine(order: AdoptOrder, source: _Source, packages: Mapping[str, bytes]) -> Adoption:
    """Load and examine the model, and print the report. Raises UsageError."""
    from training import adopt_report, model_file
    from training.adoption import adopt
    from training.derived_signature import Declared

    options = order.options
    declared = Declared(category=options.category, number=options.number, date=options.dates, nullable=options.nullable)
    try:
        with step("inspect the file without running it"):
            file = model_file.read(source.path, source.file_format)
        note(f"loading it runs {file.executed}")
        with step("load the model"):
            model = model_file.load(file)
        adoption = adopt(_given(file, model, packages), _sample(options, order.gate, model, source.example), declared, step)
    except IrisApiError:
        raise
    except MemoryError:
        raise UsageError(
            f"the model needs more memory than the allowed {order.memory_bytes / 2**30:.1f} GiB: allow more with --memory"
        ) from None
    except Exception as error:  # the model and its code are foreign, so any error may occur
        message = " ".join(str(error).split())[:200]
        raise UsageError(f"the model cannot be examined ({type(error).__name__}: {message})") from error
    for line in adopt_report.report(adoption, file.executed).lines:
        say(line)
    return adoption


def _pass_gate(order: AdoptOrder, adoption: Adoption, started: float) -> None:
    if order.options.dry_run:
        say("dry run: nothing was recorded or published", err=True)
        return
    from training import adopt_gate
    from training.commands import print_outcome, print_tracking_location

    if not order.gate.no_tracking:
        print_tracking_location(order.gate.tracking_uri)
    outcome = adopt_gate.pass_gate(adoption, order.gate, step)
    print_outcome(outcome, order.gate.model_dir, time.monotonic() - started)
    if outcome.entry is None:
        raise typer.Exit(order.gate.exit_refused)


def _given(file: ModelFile, model: object, packages: Mapping[str, bytes]) -> Given:
    from training.adoption import Given

    return Given(
        model=model,
        name=file.path.name,
        file_format=file.file_format,
        sha256=file.sha256,
        contents=file.contents,
        packages=packages,
        with_cloudpickle=file.contents is not None and file.contents.holds_code,
    )


def _sample(options: AdoptOptions, gate: TrainOptions, model: object, example: Any) -> Sample:
    """The rows of the sample with the types of the file, and texts in columns whose encoder in the model has texts."""
    from serve_app.tables.dialect import DialectFlags
    from serve_app.tables.fetch import fetched
    from serve_app.tables.frame import read_table
    from serve_app.tables.location import Location
    from serve_app.tables.scratch import ScratchSpace
    from training.adoption import Sample
    from training.model_columns import text_columns

    if options.sample is None and example is not None:
        raw = example.to_csv(index=False).encode()
        targets = _targets(options.target, [str(name) for name in example.columns])
        return Sample(frame=example, name="the input example in MLflow", sha256=sha256(raw), targets=targets)
    if options.sample is None:
        raise UsageError("adopt needs --sample: give a table with rows like those of the fit")
    kinds: dict[str, Kind] = dict.fromkeys([*text_columns(model), *options.category], "category")
    kinds |= dict.fromkeys(options.number, "number")
    location = Location(options.sample, allow_http=gate.allow_http)
    space = ScratchSpace(gate.scratch_dir, gate.scratch_bytes)
    with fetched(location, space, step) as source, step("read the sample"):
        table = read_table(
            source,
            flags=DialectFlags(options.separator, options.decimal, options.encoding),
            missing=options.na or None,
            kinds=kinds,
        )
    note(table.description)
    return Sample(
        frame=table.frame,
        name=location.name,
        sha256=table.sha256,
        targets=_targets(options.target, [str(name) for name in table.frame.columns]),
        held_out=options.held_out,
        missing=table.missing,
        remarks=table.remarks,
    )


def _targets(text: str | None, columns: list[str]) -> tuple[str, ...]:
    """The columns of `--target`: one, or several, separated by commas."""
    if text is None:
        return ()
    return (text,) if text in columns or "," not in text else tuple(name.strip() for name in text.split(","))


if __name__ == "__main__":
    main()
