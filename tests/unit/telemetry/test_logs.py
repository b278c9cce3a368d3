"""Log lines in both formats hold every field that the caller passed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from serve_app.telemetry.logs import LIBRARY, ROOT, configure

FIELDS = {"digest": "ab12", "previous": "6", "keys": 3, "model_version": "7"}


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """The loggers are put back after each test."""
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in map(logging.getLogger, (ROOT, LIBRARY))]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def test_a_line_of_text_holds_every_field_of_the_record_and_no_standard_attribute(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="INFO", json=False)
    logging.getLogger("iris_api.slot").info("model swapped", extra=FIELDS)
    line = capsys.readouterr().err
    assert " INFO model swapped " in line
    assert fields(line) == {name: str(value) for name, value in FIELDS.items()}


def test_a_field_without_a_value_is_left_out_of_a_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="INFO", json=False)
    logging.getLogger("iris_api.slot").info("model swapped", extra={"digest": "ab12", "previous": None})
    assert fields(capsys.readouterr().err) == {"digest": "ab12"}


def test_what_the_record_factory_adds_is_no_field(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        record.package = "iris_api"
        return record

    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    configure(level="INFO", json=False)
    logging.getLogger("iris_api.slot").info("model swapped", extra=FIELDS)
    assert set(fields(capsys.readouterr().err)) == set(FIELDS)


def test_a_line_of_json_holds_every_field_of_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="INFO", json=True)
    logging.getLogger("iris_api.slot").info("model swapped", extra=FIELDS)
    assert json.loads(capsys.readouterr().err).items() >= {**FIELDS, "message": "model swapped", "level": "INFO"}.items()


def test_configuring_twice_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (True, False):
        configure(level="INFO", json=as_json)
    logging.getLogger(ROOT).warning("once")
    assert len(capsys.readouterr().err.splitlines()) == 1
