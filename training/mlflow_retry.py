"""Time limits and retries for MLflow, and its errors in one line: by default, it waits for minutes and does not retry on a lock."""

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
"""Seconds for one request during the connection."""

BUSY_SECONDS = 60.0
"""Seconds during which a call is repeated while the SQLite file is locked or another run writes the same row."""


def retry_when_locked(call: Callable[[], T]) -> T:
    """Call `call`, and repeat it for up to BUSY_SECONDS while a SQLite file is locked or two runs claim the same number."""
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
    """Let one process at a time create the tables of a SQLite file, because MLflow fails when two processes do so."""
    path = uri.removeprefix("sqlite:///")
    if path == uri or path.startswith((":", "?")):
        yield
        return
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def fail_fast() -> Iterator[None]:
    """Report a server that does not answer within CONNECT_SECONDS; by default, MLflow retries for minutes."""
    settings = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(CONNECT_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
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
    """Raise BackendUnavailable in place of any error; `what` completes the sentence `MLflow could not ...`."""
    try:
        yield
    except BackendUnavailable:
        raise
    except Exception as error:
        raise BackendUnavailable(f"MLflow could not {what} ({cause(error)})") from error


def redact(uri: str) -> str:
    """The address without the user name and the password."""
    parts = urlsplit(uri)
    return uri if "@" not in parts.netloc else uri.replace(parts.netloc, parts.netloc.rpartition("@")[2])


def cause(error: BaseException) -> str:
    """The innermost error, on one line of at most 200 characters."""
    innermost: BaseException = error
    while (inner := innermost.__cause__ or innermost.__context__) is not None:
        innermost = inner
    text = " ".join(str(innermost).split())
    return (f"{type(innermost).__name__}: {text}" if text else type(innermost).__name__)[:200]
