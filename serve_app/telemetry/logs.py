"""Log formats of the application: JSON lines for machines, one readable line for a terminal."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from serve_app.printable import printable
from serve_app.telemetry.log_file import LogFile

ROOT = "iris_api"
"""The parent of all loggers of the application."""
LIBRARY = "opentelemetry"
"""The logger of the tracing library, whose lines about lost spans get the application's format."""
STANDARD = frozenset({"message", "asctime", "taskName"})
"""Attributes that formatters and newer Python versions add to a record; they are not fields of the caller."""


class TextFormatter(logging.Formatter):
    """`12:00:01 INFO model swapped model_version=7 …`: the message, then every field that the caller passed as `extra`.

    A field with the value None is left out. Message and fields stay on one line, whatever text they contain. The lines of a
    traceback begin with a bar, so that no text can forge a log line.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        # The current record factory may add attributes, as Ray's does.
        self._standard = STANDARD | vars(logging.makeLogRecord({})).keys()

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the standard library's name
        """Return the line without a traceback."""
        extras = {name: value for name, value in vars(record).items() if name not in self._standard and value is not None}
        return printable(" ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in extras.items())]))

    def formatException(self, ei: Any) -> str:  # noqa: N802, the standard library's name
        """Return the traceback with a bar before each line."""
        return "\n".join(f"| {printable(line)}" for line in super().formatException(ei).split("\n"))


def configure(*, level: str, json: bool, file: Path | None = None) -> None:
    """Send the log lines of the application to `file`, or to standard error; a second call replaces the first.

    If the file cannot be opened, the function logs one warning, and the lines go to standard error.
    """
    failure: OSError | None = None
    stream: TextIO | LogFile = sys.stderr
    if file is not None:
        try:
            stream = LogFile(file)
        except OSError as error:
            failure = error
    handler = logging.StreamHandler(stream)
    if json:
        formatter: logging.Formatter = JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    else:
        formatter = TextFormatter()
    handler.setFormatter(formatter)
    for name in (ROOT, LIBRARY):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    logging.getLogger(ROOT).setLevel(level)
    if failure is not None:
        logging.getLogger(ROOT).warning(
            "IRIS_LOG_FILE cannot be opened: log lines go to standard error", extra={"error": str(failure)}
        )
