"""How the application logs: JSON lines for machines, one readable line for a terminal."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

ROOT = "iris_api"
LIBRARY = "opentelemetry"
"""Its lines about spans that were lost look like ours."""
_EXTRAS = (
    "request_id",
    "trace_id",
    "model_version",
    "route",
    "status",
    "candidate",
    "reason",
    "why",
    "serving",
    "predictor",
    "seconds",
)


class _TextFormatter(logging.Formatter):
    """`12:00:01 INFO model swapped model_version=7 …`"""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the standard library's name
        fields = " ".join(f"{name}={value}" for name in _EXTRAS if (value := getattr(record, name, None)) is not None)
        line = super().formatMessage(record)
        return f"{line} {fields}" if fields else line


def configure(*, level: str, json: bool) -> None:
    """Send what the application logs to standard error; safe to call again."""
    handler = logging.StreamHandler(sys.stderr)
    if json:
        formatter: logging.Formatter = JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    else:
        formatter = _TextFormatter()
    handler.setFormatter(formatter)
    for name in (ROOT, LIBRARY):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    logging.getLogger(ROOT).setLevel(level)
