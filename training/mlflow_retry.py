"""How long to wait for MLflow, and what to say when it was in vain: it waits for minutes, breaks on locks, and tells at length."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

from serve_app.errors import BackendUnavailable

T = TypeVar("T")

CONNECT_SECONDS = 10
BUSY_SECONDS = 60.0
"""How long a locked SQLite file, or a row that another run is writing, is tried again."""


def retry_when_locked(call: Callable[[], T]) -> T:
    """Call again while a SQLite file is locked, or two runs want the same next number."""
    deadline = time.monotonic() + BUSY_SECONDS
    pause = 0.05
    while True:
        try:
            return call()
        except Exception as error:
            text = str(error).lower()
            busy = "database is locked" in text or "unique constraint" in text or "database table is locked" in text
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(pause * (0.5 + random.random()))  # noqa: S311
        pause = min(pause * 2, 1.0)


@contextlib.contextmanager
def first_use(uri: str) -> Iterator[None]:
    """One process at a time makes the tables of a SQLite file: MLflow itself does not mind two, and breaks."""
    path = uri.removeprefix("sqlite:///")
    if path == uri or path.startswith((":", "?")):
        yield
        return
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def fail_fast() -> Iterator[None]:
    """MLflow waits for minutes by default; a server that is down must be known in seconds."""
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(CONNECT_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def translate_errors(what: str) -> Iterator[None]:
    try:
        yield
    except BackendUnavailable:
        raise
    except Exception as error:
        raise BackendUnavailable(f"MLflow could not {what} ({cause(error)})") from error


def shown(uri: str) -> str:
    parts = urlsplit(uri)
    return uri if "@" not in parts.netloc else uri.replace(parts.netloc, parts.netloc.rpartition("@")[2])


def cause(error: BaseException) -> str:
    """The innermost reason, on one line."""
    seen: BaseException = error
    while (deeper := seen.__cause__ or seen.__context__) is not None:
        seen = deeper
    text = " ".join(str(seen).split())
    return (f"{type(seen).__name__}: {text}" if text else type(seen).__name__)[:200]
