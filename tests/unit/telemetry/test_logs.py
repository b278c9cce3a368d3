"""Log lines in both formats hold every field that the caller passed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
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


def test_lines_go_to_the_file_of_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    file.write_text("before\n")
    configure(level="INFO", json=True, file=file)
    logging.getLogger(ROOT).info("one")
    logging.getLogger(ROOT).info("two")
    before, one, two = file.read_text().splitlines()
    assert (before, json.loads(one)["message"], json.loads(two)["message"]) == ("before", "one", "two")
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_opened_costs_a_warning_and_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="INFO", json=True, file=tmp_path / "nowhere" / "log")
    logging.getLogger(ROOT).info("one")
    warning, one = map(json.loads, capsys.readouterr().err.splitlines())
    assert "IRIS_LOG_FILE" in warning["message"]
    assert one["message"] == "one"


def test_a_pipe_that_nobody_empties_makes_no_line_wait(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    try:
        configure(level="INFO", json=True, file=Path(f"/proc/self/fd/{writer}"))
        for number in range(2000):
            logging.getLogger(ROOT).info("line", extra={"number": number})
        os.set_blocking(reader, False)
        taken = os.read(reader, 1 << 20).decode()
        logging.getLogger(ROOT).info("line", extra={"number": 2000})
        last = os.read(reader, 1 << 20).decode()
    finally:
        os.close(reader)
        os.close(writer)
    numbers = [json.loads(line)["number"] for text in (taken, capsys.readouterr().err, last) for line in text.splitlines() if line]
    assert sorted(numbers) == list(range(2001))


def test_a_long_line_that_the_pipe_takes_half_of_is_whole_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    try:
        configure(level="INFO", json=True, file=Path(f"/proc/self/fd/{writer}"))
        logging.getLogger(ROOT).info("x" * 100_000)
        os.read(reader, 1 << 20)
        logging.getLogger(ROOT).info("next")
        (_, line) = os.read(reader, 1 << 20).decode().split("\n", 1)
    finally:
        os.close(reader)
        os.close(writer)
    assert json.loads(line)["message"] == "next"
    assert json.loads(capsys.readouterr().err)["message"] == "x" * 100_000
