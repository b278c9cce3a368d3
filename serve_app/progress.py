"""What is being done, told while it is done: steps with their seconds, and a bar for what has a known length."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import typer
from tqdm import tqdm


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is being done, and how long it took; a terminal sees it while it lasts."""
    live = sys.stderr.isatty()
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


def bar(total: int, what: str, unit: str, *, scaled: bool = False) -> tqdm[Any]:
    """Drawn at ease where nobody watches: a log keeps every line."""
    return tqdm(
        total=total,
        desc=f"         {what}",
        unit=unit,
        unit_scale=scaled,
        leave=False,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )
