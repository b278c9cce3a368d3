"""The clock of a running application steps by an hour, as it does when a machine's time is set right."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from serve_app.core.keys import change_file, make_key
from serve_app.core.store import Store
from tests.support.experiment import RATE, judged, more, traffic
from tests.support.models import A_FLOWER, logistic, publish_iris
from tests.support.server import Server, serving
from tests.support.waiting import until

LIBRARY = "libfaketimeMT.so.1"


def library() -> Path:
    """libfaketime, from the system or from `build/tools`, where `.ci/run` puts it."""
    root = Path(__file__).parents[2] / "build" / "tools"
    found = [path for folder in (Path("/usr/lib"), root) for path in folder.glob(f"**/faketime/{LIBRARY}")]
    if not found:
        pytest.skip(f"{LIBRARY} is not here: apt-get install libfaketime")
    return found[0]


def test_a_step_of_the_clock_costs_no_answer_and_dates_of_keys_are_kept(tmp_path: Path) -> None:
    step = tmp_path / "step"
    step.write_text("+0")
    file = tmp_path / "keys.json"
    names = ("load", "half an hour")
    keys = {}
    for name in names:
        keys[name], entry = make_key(name.replace(" ", "-"))
        if name == "half an hour":
            entry["not_after"] = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
        change_file(file, add=entry)
    store = Store(tmp_path / "models")
    publish_iris(store, logistic(), onnx=True)
    clock = {
        "LD_PRELOAD": str(library()),
        "FAKETIME_TIMESTAMP_FILE": str(step),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    settings = {"IRIS_API_KEYS_FILE": str(file), "IRIS_RATE_LIMIT_PER_KEY": "20000/hour", **clock}
    with serving(store.root, tmp_path, **settings) as server:
        until(lambda: "iris-api: ready after" in server.output.read_text(), seconds=150, what="the end of the start")
        with traffic(server, store, tmp_path, keys["load"]) as record:
            for seconds, status in ((3600, 403), (0, 200), (-3600, 200), (0, 200)):
                step.write_text(f"{seconds:+d}")
                until(stepped(server, seconds), seconds=30, what=f"a clock that is {seconds:+d} s away")
                until(lambda: ask(server, keys["half an hour"]) == status, seconds=30, what=f"{status} for the key of half an hour")  # noqa: B023
                more(record, RATE * 2)
    report = judged(record, store, "clock stepped by an hour forwards, back, backwards, back")
    assert (report.failed_first, report.refused) == (0, 0)


def stepped(server: Server, seconds: float) -> Callable[[], bool]:
    """Whether the server's clock is so far from this one's: uvicorn dates each answer."""

    def is_so() -> bool:
        date = httpx2.get(f"{server.url}/livez", timeout=20).headers.get("date", "")
        away = datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp() - time.time()
        return abs(away - seconds) < 60

    return is_so


def ask(server: Server, key: str) -> int:
    return httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers={"X-API-Key": key}, timeout=30).status_code
