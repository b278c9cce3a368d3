"""The checker finds what it is there to find: each kind of wrong history is fed to it."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.checker import Report, check_history
from tests.support.load import WRONG_REQUEST, Attempt, Load, closed_loop, matches, open_loop
from tests.support.waiting import until

GOLDEN = {"1": '{"prediction":"a"}', "2": '{"prediction":"b"}'}
PUBLISHED = [(0.0, "1"), (100.0, "2")]


def line(number: int, at: float, **changes: Any) -> Attempt:
    right: dict[str, Any] = {"status": 200, "version": "1", "body": GOLDEN["1"]}
    return Attempt(f"c-{number}", changes.pop("attempt", 1), at, at, at + 0.01, **{**right, **changes})


def judged(*lines: Attempt, minimum: int = 1, **options: Any) -> Report:
    right = [line(number, number / 10) for number in range(1000, 1010)]
    moved = [Attempt(**{**vars_of(one), "due": 1.0, "sent": 1.0, "end": 1.01}) for one in right]
    return check_history([*moved, *lines], GOLDEN, PUBLISHED, minimum=minimum, grace=5, **options)


def vars_of(one: Attempt) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def test_a_right_history_has_no_violation() -> None:
    report = judged(line(1, 2), line(2, 103), line(3, 101, version="2", body=GOLDEN["2"]))
    assert report.violations == ()
    assert report.answers == {"1": 12, "2": 1}
    assert (report.failed_first, report.failed_after_retry) == (0, 0)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (line(1, 2, body=GOLDEN["2"]), "body"),
        (line(1, 2, body=""), "body"),
        (line(1, 2, version=""), "unknown_version"),
        (line(1, 2, version="7"), "unknown_version"),
        (line(1, 2, version="2", body=GOLDEN["2"]), "period"),
        (line(1, 106), "period"),
        (line(1, 2, status=404), "status"),
        (line(1, 2, status=422), "status"),
        (line(1, 2, status=401), "status"),
        (line(1, 2, status=429, body="{}"), "retry_after"),
        (line(1, 2, error=WRONG_REQUEST), "mixed_up"),
    ],
)
def test_each_wrong_response_is_a_violation(wrong: Attempt, code: str) -> None:
    (violation,) = judged(wrong).violations
    assert (violation.code, violation.attempt) == (code, "c-1/1")


def test_a_response_of_a_refused_model_is_a_violation() -> None:
    assert judged(line(1, 2), refused=frozenset({"1"})).violations[0].code == "refused_version"


def test_too_few_responses_are_no_run() -> None:
    assert [violation.code for violation in judged(minimum=11).violations] == ["too_few"]
    assert [violation.code for violation in check_history([], GOLDEN, PUBLISHED, minimum=1).violations] == ["too_few"]


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
        body = b'{"code":"not_finite_result"}' if Handler.behaviour == "not_finite" else GOLDEN["1"].encode()
        self.send_response(500 if Handler.behaviour in ("broken", "not_finite") else 200)
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


def run(server: str, tmp_path: Path, behaviour: str, count: int) -> tuple[list[Attempt], Report]:
    Handler.behaviour = behaviour
    Handler.asked = 0
    with open_loop(server, {"x": 1}, key="k", rate=200, timeout=20, history=tmp_path / "history.jsonl") as load:
        load.published.append((0.0, "1"))
        until(lambda: Handler.asked > count, seconds=60, every=0.01)
        Handler.slow.set()
    return load.history, check_history(load.history, GOLDEN, load.published, minimum=1)


def test_every_request_is_in_the_history_with_its_response(server: str, tmp_path: Path) -> None:
    history, report = run(server, tmp_path, "right", 30)
    assert report.violations == ()
    assert report.requests == len(history) == report.answers["1"] >= 20
    assert len({attempt.id for attempt in history}) == len(history)
    lines = [json.loads(text) for text in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [(text["id"], text["status"]) for text in lines] == [(attempt.id, 200) for attempt in history]


def test_a_slow_server_gets_requests_at_the_same_rate(server: str, tmp_path: Path) -> None:
    history, report = run(server, tmp_path, "slow", 30)
    first = min(attempt.end for attempt in history if attempt.status == 200)
    assert sum(attempt.sent < first for attempt in history) >= 15
    assert report.violations == ()


@pytest.mark.parametrize("behaviour", ["broken", "gone"])
def test_a_failed_request_is_sent_once_more(server: str, tmp_path: Path, behaviour: str) -> None:
    history, report = run(server, tmp_path, behaviour, 10)
    assert {attempt.attempt for attempt in history} == {1, 2}
    assert report.failed_after_retry == report.failed_first == report.requests > 0
    assert [violation.code for violation in report.violations] == ["too_few"]


def test_a_result_that_is_not_finite_is_not_sent_once_more(server: str, tmp_path: Path) -> None:
    history, _ = run(server, tmp_path, "not_finite", 10)
    answered = {attempt.id for attempt in history if attempt.status == 500 and attempt.attempt == 1}
    assert answered
    assert answered.isdisjoint(attempt.id for attempt in history if attempt.attempt == 2)


def test_responses_that_are_mixed_up_are_violations(server: str, tmp_path: Path) -> None:
    _, report = run(server, tmp_path, "mixed", 10)
    assert Counter(violation.code for violation in report.violations) == {"mixed_up": 2 * report.requests, "too_few": 1}


def closed(server: str, behaviour: str, expected: dict[str, str], *, requests: int = 40) -> Load:
    Handler.behaviour = behaviour
    with closed_loop(server, {"x": 1}, key="k", clients=4, requests=requests, check=matches(expected)) as load:
        until(lambda: load.finished == requests, seconds=60, every=0.01, what="the last response")
    assert load.finished == requests
    return load


def test_a_closed_loop_sends_as_many_requests_as_it_shall_and_counts_right_responses_by_version(server: str) -> None:
    load = closed(server, "right", GOLDEN)
    assert (load.versions, load.statuses, load.failures) == ({"1": 40}, {200: 40}, [])
    assert len(load.durations) == 40
    assert min(load.durations) > 0


@pytest.mark.parametrize(("behaviour", "expected"), [("right", {"1": "{}"}), ("right", {}), ("broken", GOLDEN), ("mixed", GOLDEN)])
def test_a_closed_loop_counts_each_wrong_response_as_a_failure(server: str, behaviour: str, expected: dict[str, str]) -> None:
    load = closed(server, behaviour, expected)
    assert (load.answered, load.failed, len(load.failures)) == (0, 40, 40)


def test_a_closed_loop_counts_requests_that_it_had_to_send_on_a_new_connection(server: str) -> None:
    load = closed(server, "gone", GOLDEN)
    assert (load.answered, load.failed, load.reconnects) == (0, 40, 40)
    assert load.statuses == {0: 40}
