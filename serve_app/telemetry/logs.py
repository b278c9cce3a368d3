"""Log formats of the application: JSON lines for machines, one readable line for a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from serve_app.printable import printable

ROOT = "iris_api"
"""Logger above all loggers of the application."""
LIBRARY = "opentelemetry"
"""Logger of the tracing library: its lines about lost spans have the application's format."""
STANDARD = frozenset({"message", "asctime", "taskName"})
"""Attributes that formatters and newer Python versions add to a record; they are no fields of the caller."""


class TextFormatter(logging.Formatter):
    """`12:00:01 INFO model swapped model_version=7 …`: the message, then every field that the caller passed as `extra`.

    A field whose value is None is left out. Message and fields stay on one line, whatever they quote; the lines of a traceback
    begin with a bar, so that no text can forge a line.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
        # The record factory in use may add attributes of its own: Ray's does.
        self._standard = STANDARD | vars(logging.makeLogRecord({})).keys()

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the standard library's name
        """The line without a traceback."""
        extras = {name: value for name, value in vars(record).items() if name not in self._standard and value is not None}
        return printable(" ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in extras.items())]))

    def formatException(self, ei: Any) -> str:  # noqa: N802, the standard library's name
        """The traceback, each line with a bar before it."""
        return "\n".join(f"| {printable(line)}" for line in super().formatException(ei).split("\n"))


def configure(*, level: str, json: bool) -> None:
    """Send the log lines of the application to standard error; a second call replaces the format of the first."""
    handler = logging.StreamHandler(sys.stderr)
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
