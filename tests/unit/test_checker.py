"""The checker finds what it is there to find: each kind of wrong history is fed to it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.checker import Line, Report, judge, load, read_history
from tests.support.waiting import until

GOLDEN = {"1": '{"prediction":"a"}', "2": '{"prediction":"b"}'}
PUBLISHED = [(0.0, "1"), (100.0, "2")]


def line(number: int, at: float, **changes: Any) -> Line:
    right: dict[str, Any] = {"status": 200, "version": "1", "body": GOLDEN["1"]}
    return Line(f"c-{number}", changes.pop("attempt", 1), at, at, at + 0.01, **{**right, **changes})


def judged(*lines: Line, minimum: int = 1, **options: Any) -> Report:
    right = [line(number, number / 10) for number in range(1000, 1010)]
    moved = [Line(**{**vars_of(one), "due": 1.0, "sent": 1.0, "end": 1.01}) for one in right]
    return judge([*moved, *lines], GOLDEN, PUBLISHED, minimum=minimum, grace=5, **options)


def vars_of(one: Line) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def test_a_right_history_has_no_violation() -> None:
    report = judged(line(1, 2), line(2, 103), line(3, 101, version="2", body=GOLDEN["2"]))
    assert report.violations == ()
    assert report.answers == {"1": 12, "2": 1}
    assert (report.failed_first, report.failed_after_retry) == (0, 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (line(1, 2, body=GOLDEN["2"]), "answered"),
        (line(1, 2, body=""), "answered"),
        (line(1, 2, version=""), "nobody published"),
        (line(1, 2, version="7"), "nobody published"),
        (line(1, 2, version="2", body=GOLDEN["2"]), "not the published one"),
        (line(1, 106), "not the published one"),
        (line(1, 2, status=404), "not documented"),
        (line(1, 2, status=422), "not documented"),
        (line(1, 2, status=401), "not documented"),
        (line(1, 2, status=429, body="{}"), "without Retry-After"),
        (line(1, 2, error="the answer to another request"), "another request"),
    ],
)
def test_each_wrong_answer_is_found(wrong: Line, said: str) -> None:
    (violation,) = judged(wrong).violations
    assert said in violation
    assert "c-1" in violation


def test_an_answer_of_a_refused_model_is_found() -> None:
    assert "was refused" in judged(line(1, 2), refused=frozenset({"1"})).violations[0]


def test_too_few_answers_are_no_run() -> None:
    assert "only 10 right answers" in judged(minimum=11).violations[0]
    assert "only 0 right answers" in judge([], GOLDEN, PUBLISHED, minimum=1).violations[0]


def test_failures_are_counted_with_and_without_the_retry() -> None:
    failed = {"status": 0, "version": "", "body": "", "error": "ConnectionError"}
    report = judged(
        line(1, 2, **failed),
        line(1, 2.3, attempt=2),
        line(2, 3, status=500, version="", body=""),
        line(2, 3.3, attempt=2, **failed),
        line(3, 4, status=503, version="", body="{}", retry_after="5"),
        line(3, 4.3, attempt=2),
    )
    assert report.violations == ()
    assert (report.failed_first, report.failed_after_retry, report.refused) == (3, 1, 1)


def test_the_longest_silence_is_found_also_at_the_end() -> None:
    assert judged(line(1, 2), line(2, 6)).longest_silence == pytest.approx(4)
    assert judged(line(1, 2), line(2, 9, status=500)).longest_silence == pytest.approx(7)


# --- the generator, against a server that answers late, wrongly or not at all


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour = "right"
    asked = 0
    slow = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Handler.asked += 1
        if Handler.behaviour == "slow":
            Handler.slow.wait(60)
        if Handler.behaviour == "gone":
            self.connection.shutdown(socket.SHUT_RDWR)  # close() alone leaves it open as long as the handler's files are
            self.close_connection = True
            return
        body = GOLDEN["1"].encode()
        self.send_response(500 if Handler.behaviour == "broken" else 200)
        self.send_header("X-Request-ID", "other" if Handler.behaviour == "mixed" else self.headers["X-Request-ID"])
        self.send_header("X-Model-Version", "1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    Handler.behaviour = "right"
    Handler.slow.clear()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    Handler.slow.set()
    server.shutdown()
    server.server_close()


def run(server: str, tmp_path: Path, behaviour: str, count: int) -> tuple[list[Line], Report]:
    file = tmp_path / "history.jsonl"
    Handler.behaviour = behaviour
    Handler.asked = 0
    with load(server, {"x": 1}, file, key="k", rate=200, timeout=20) as record:
        record.published.append((0.0, "1"))
        until(lambda: Handler.asked > count, seconds=60, every=0.01)
        Handler.slow.set()
    lines = read_history(file)
    return lines, judge(lines, GOLDEN, record.published, minimum=1)


def test_every_request_is_in_the_history_with_its_answer(server: str, tmp_path: Path) -> None:
    lines, report = run(server, tmp_path, "right", 30)
    assert report.violations == ()
    assert report.requests == len(lines) == report.answers["1"] >= 20
    assert len({one.id for one in lines}) == len(lines)
    assert json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])["status"] == 200


def test_a_slow_server_is_asked_at_the_same_rate(server: str, tmp_path: Path) -> None:
    lines, report = run(server, tmp_path, "slow", 30)
    first = min(one.end for one in lines if one.status == 200)
    assert sum(one.sent < first for one in lines) >= 15
    assert report.violations == ()


def test_a_failing_server_is_asked_once_more(server: str, tmp_path: Path) -> None:
    for behaviour in ("broken", "gone"):
        lines, report = run(server, tmp_path, behaviour, 10)
        assert {one.attempt for one in lines} == {1, 2}
        assert report.failed_after_retry == report.failed_first == report.requests > 0
        assert report.violations == ("only 0 right answers, which is less than the 1 that make a run",)


def test_answers_that_are_mixed_up_are_found(server: str, tmp_path: Path) -> None:
    _, report = run(server, tmp_path, "mixed", 10)
    assert len(report.violations) > report.requests
