"""Common parts of every command line of the product: shared options, and exit codes for errors.

Exit codes: 0 success; 1 failure (store, MLflow, disk); 2 wrong usage; 3 the model was refused; 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from serve_app.errors import IrisApiError, UsageError
from serve_app.loopback import keep_loopback_direct
from serve_app.printable import printable
from serve_app.secret_variables import strip_variables

FAILED, WRONG_USAGE, REFUSED, INTERRUPTED = 1, 2, 3, 130

MODEL_DIR = Path("models")
"""The default store."""

ModelDir = Annotated[Path, typer.Option(envvar="MODEL_DIR", help="The store: folder of published models.")]

Separator = Annotated[
    str | None, typer.Option(metavar="CHARACTER", help="Separator of the values in a CSV file: ';', '|', tab. (default: detected)")
]
Decimal = Annotated[str | None, typer.Option(metavar=".|,", help="Decimal mark of a CSV file. (default: detected)")]
Encoding = Annotated[str | None, typer.Option(help="Encoding of a CSV file, like cp1252. (default: UTF-8, UTF-16, or detected)")]
# The load policy of the replicas: a command that opens a bundle reads the same environment.
PredictorChoice = Annotated[
    Literal["auto", "onnx", "scikit-learn"],
    typer.Option("--predictor", envvar="IRIS_PREDICTOR", help="Backend that computes, as for a replica."),
]
AllowJoblib = Annotated[
    bool,
    typer.Option(envvar="IRIS_ALLOW_JOBLIB", help="Allow unpickling of a model without an ONNX form and without a booster format."),
]
VerifyKey = Annotated[
    Path | None,
    typer.Option(
        envvar="IRIS_VERIFY_KEY", help="Open only bundles of the store that are signed by these Ed25519 public keys (PEM)."
    ),
]

# Tables in buckets and on web servers.
ScratchDir = Annotated[
    Path | None, typer.Option(envvar="IRIS_SCRATCH_DIR", help="Folder for downloaded tables. (default: for temporary files)")
]
ScratchBytes = Annotated[int, typer.Option(envvar="IRIS_SCRATCH_BYTES", min=1, help="Most bytes for downloaded tables.")]
SCRATCH_BYTES = 4 << 30
AllowHttp = Annotated[
    bool,
    typer.Option("--allow-http", envvar="IRIS_ALLOW_HTTP", help="Allow unencrypted downloads from hosts outside the cluster."),
]

Options = TypeVar("Options")


def options_command(options: type[Options], run: Callable[[Options], None]) -> Callable[..., None]:
    """A function that typer turns into a command, with one flag for each field of the dataclass `options`.

    A field declares its flag with `Annotated[type, typer.Option(...)]`; the default of the field is the default of the flag. The
    command calls `run` with an instance of `options`, and has the name and the help of `run`.
    """
    parameters = option_parameters(options)

    def command(**values: Any) -> None:
        run(options(**values))

    command.__name__, command.__doc__, command.__module__ = run.__name__, run.__doc__, run.__module__
    command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": None}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def option_parameters(options: type[Any], names: Sequence[str] | None = None) -> list[inspect.Parameter]:
    """The parameters of a command for the fields of a dataclass of options: the fields in `names`, or all."""
    hints = get_type_hints(options, include_extras=True)
    return [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=hints[field.name])
        for field in dataclasses.fields(options)
        if names is None or field.name in names
    ]


def run_command(app: typer.Typer, arguments: Sequence[str], prog: str) -> int:
    """Run a command line and return its exit code; an error becomes one line `error: ...` on stderr.

    `prog` is the program name in usage and help, like `iris-api` or `python -m training`.
    """
    strip_variables()
    keep_loopback_direct()
    try:
        code = app(list(arguments), standalone_mode=False, prog_name=prog)
    except typer.TyperException as error:
        code = _fail(_usage_message(error, prog), error.exit_code)
    except UsageError as error:
        code = _fail(str(error), WRONG_USAGE)
    except IrisApiError as error:
        code = _fail(str(error), FAILED)
    except OSError as error:
        code = _fail(f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}", FAILED)
    except MemoryError:
        code = _fail("the memory of this machine is too small for this table and estimator", FAILED)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted", INTERRUPTED)
    sys.stdout.flush()
    return int(code or 0)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _usage_message(error: typer.TyperException, prog: str) -> str:
    """The parser's message, with the command that prints the help."""
    context = getattr(error, "ctx", None)
    return f"{error.format_message().rstrip('.')}: see `{context.command_path if context else prog} --help`"


def say(line: str, *, err: bool = False) -> None:
    """Print one line to stdout, or with `err` to stderr; control characters in it are escaped (see `printable`)."""
    typer.echo(printable(line), err=err)


def _fail(message: str, code: int) -> int:
    say(f"error: {message.rstrip()}", err=True)
    return code
