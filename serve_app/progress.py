"""The progress of a command on stderr: steps with their durations, and a bar for long work."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import typer
from tqdm import tqdm

from serve_app.printable import printable

Progress = Callable[[str], AbstractContextManager[None]]
"""A function like `step`: it takes the name of a step, and the step runs inside the returned context."""


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Print the name of a step and its duration in seconds at its end; on a terminal, also while it runs."""
    live = sys.stderr.isatty()
    text = printable(text)
    started = time.monotonic()
    if live:
        typer.echo(f"  ...    {text}", err=True, nl=False)
    done = False
    try:
        yield
        done = True
    finally:
        mark = f"{time.monotonic() - started:5.1f} s" if done else " failed"
        typer.echo(("\r\033[K" if live else "") + f"{mark}  {text}", err=True)


def note(text: str) -> None:
    """Print a line that belongs to the last step."""
    typer.echo(f"         {printable(text)}", err=True)


def bar(total: int | None, text: str, unit: str, *, scaled: bool = False, delay: float = 0.0) -> tqdm[Any]:
    """A progress bar, shown after `delay` seconds; `total` is None while it is not known.

    The bar is redrawn rarely when stderr is not a terminal, because a log keeps every line.
    """
    return tqdm(
        total=total,
        desc=f"         {text}",
        unit=unit,
        unit_scale=scaled,
        leave=False,
        delay=delay,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )
