"""The application on real Ray Serve, two replicas behind HAProxy: replace while serving, refuse, roll back, stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import httpx2
import pytest

from serve_app.artifacts.bundle import read_bundle
from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.store import Entry, Store
from serve_app.inference.predictor import open_predictor
from serve_app.rayserve.isolation import FREE_PORTS, PORT_BLOCKS
from tests.support.load import closed_loop, matches
from tests.support.models import A_FLOWER, bundle_files, bundle_manifest, forest, logistic, publish_iris
from tests.support.native import answer_row
from tests.support.policies import ALLOW_ALL
from tests.support.processes import alive, of_session
from tests.support.server import HEADERS, KEY, ROOT, Server, environment, free_port, serving, stop
from tests.support.waiting import until

SWAPS = 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("models"), keep=100)
    publish_iris(store, forest(), onnx=True)
    return store


@pytest.fixture(scope="module")
def server(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(store.root, tmp_path_factory.mktemp("server"), replicas=2) as server:
        yield server


def expected_body(entry: Entry) -> str:
    return answer_row(open_predictor(read_bundle(entry.folder), ALLOW_ALL), json.dumps(A_FLOWER).encode()).decode()


def visible(server: Server, version: int) -> None:
    until(lambda: server.versions() == {str(version)}, seconds=60)


def test_a_prediction_comes_back_through_the_proxy_with_one_request_id(server: Server) -> None:
    answer = httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers={**HEADERS, "X-Request-ID": "order-7"})
    assert answer.status_code == 200
    assert answer.json()["prediction"] == "setosa"
    assert answer.headers.get_list("x-request-id") == ["order-7"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx2.post(f"{server.url}/predict", json=A_FLOWER).status_code == 401
    assert httpx2.get(f"{server.url}/model", headers=HEADERS).json()["predictor"] == "onnx"


def test_models_are_replaced_under_load_without_a_failed_or_mislabelled_answer(server: Server, store: Store) -> None:
    (first,) = (entry for entry in store.entries() if entry.served)
    visible(server, first.version)
    expected = {str(first.version): expected_body(first)}
    delays = []
    with closed_loop(server.url, A_FLOWER, key=KEY, check=matches(expected)) as load:
        for number in range(SWAPS):
            model = logistic(0.5 + number / 10) if number % 2 else forest(seed=number)
            version = max(entry.version for entry in store.entries()) + 1
            # Published models are immutable, so the right answer can be known before the first replica sees it.
            preview = Store(store.root.parent / f"preview-{number}")
            expected[str(version)] = expected_body(publish_iris(preview, model, onnx=True))
            entry = publish_iris(store, model, onnx=True)
            assert entry.version == version
            started = time.monotonic()
            visible(server, version)
            delays.append(time.monotonic() - started)
    assert (load.failures, load.reconnects) == ([], 0)
    assert len(load.versions) == SWAPS + 1
    assert load.answered > 10 * SWAPS
    delays.sort()
    median, worst = delays[SWAPS // 2], delays[-1]
    print(f"published to visible on both: median {median:.2f} s, worst {worst:.2f} s; {load.answered} answers, 0 failed")


def test_a_damaged_model_is_refused_with_its_reason_while_the_old_one_answers(server: Server, store: Store, tmp_path: Path) -> None:
    (served,) = (entry for entry in store.entries() if entry.served)
    visible(server, served.version)
    # Damaged before a replica can read it: it is made elsewhere and comes into the store without one byte of the right model.
    version = max(entry.version for entry in store.entries()) + 1
    whole = Store(tmp_path).publish(bundle_files(forest(seed=99)), bundle_manifest(), version=version)
    damaged = store.root / "bundles" / whole.folder.name
    shutil.copytree(whole.folder, damaged)
    data = bytearray((damaged / JOBLIB).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / JOBLIB).chmod(0o644)
    (damaged / JOBLIB).write_bytes(bytes(data))
    expected = {str(served.version): expected_body(served)}
    with closed_loop(server.url, A_FLOWER, key=KEY, check=matches(expected)) as load:
        point(store, damaged)
        until(lambda: refusals(server) == {"digest"}, seconds=30, what="the refusal on both replicas")
        answered = load.answered
        until(lambda: load.answered > answered + 50, seconds=30, what="responses of the old model")
    assert (load.failures, load.reconnects) == ([], 0)
    assert 'model_refused{reason="digest"} 1.0' in httpx2.get(f"{server.url}/metrics").text
    store.promote(served.version)
    until(lambda: refusals(server) == {None}, seconds=30, what="the end of the refusal")


def test_rolling_back_needs_only_the_pointer(server: Server, store: Store) -> None:
    before = publish_iris(store, forest(seed=7))
    after = publish_iris(store, logistic(2.0))
    visible(server, after.version)
    store.roll_back()
    visible(server, before.version)


def test_overlong_and_odd_requests_are_refused_through_the_proxy(server: Server) -> None:
    big = json.dumps({**A_FLOWER, "note": "x" * (17 * 1024 * 1024)})
    headers = {**HEADERS, "Content-Type": "application/json"}
    assert httpx2.post(f"{server.url}/predict", content=big, headers=headers, timeout=60).status_code == 413
    assert httpx2.post(f"{server.url}/predict", content=b"\xff", headers=headers).status_code == 400
    assert httpx2.get(f"{server.url}/nowhere").status_code == 404


def test_a_replica_without_a_model_waits_for_one_and_a_signal_ends_every_process(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    with serving(store.root, tmp_path, ready="/livez") as server:
        assert httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers=HEADERS).status_code == 503
        assert httpx2.get(f"{server.url}/readyz").status_code == 503
        publish_iris(store, forest(), onnx=True)
        until(lambda: httpx2.get(f"{server.url}/readyz").status_code == 200, seconds=30)
        family = of_session(server.process.pid)
        assert any("haproxy" in command for command in family.values())
        started = time.monotonic()
        stop(server.process)
        print(f"stopped in {time.monotonic() - started:.1f} s")
        assert server.process.returncode == 0
        until(lambda: not alive(family), seconds=10)


def test_a_second_application_beside_it_chooses_its_own_ports_and_serves_its_own_model(server: Server, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    entry = store.publish(bundle_files(logistic(), onnx=True), bundle_manifest(), version=777)
    unset = dict.fromkeys((*FREE_PORTS, *chain(*PORT_BLOCKS)), "")
    with serving(store.root, tmp_path, replicas=1, **unset) as other:
        before = server.versions()
        assert other.versions() == {str(entry.version)}
        assert server.versions() == before != other.versions()
        for one in (server, other):
            assert httpx2.post(f"{one.url}/predict", json=A_FLOWER, headers=HEADERS).status_code == 200
        other.process.send_signal(signal.SIGTERM)  # what a supervisor sends, where a person presses Ctrl-C
        assert other.process.wait(60) == 0
        until(lambda: not of_session(other.process.pid), seconds=10)
    assert server.versions() == before


def test_a_wrong_setting_or_a_taken_port_is_one_sentence(server: Server, tmp_path: Path) -> None:
    def start(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "serve_app", *arguments]
        return subprocess.run(command, env=environment(tmp_path, **more), cwd=tmp_path, capture_output=True, text=True, timeout=120)

    wrong = start("--port", str(free_port()), ENVIRONMENT="production", API_KEY="short")
    assert wrong.returncode == 2
    (sentence,) = wrong.stderr.splitlines()
    assert sentence.startswith("error: API_KEY: ")
    port = server.url.rpartition(":")[2]
    taken = start("--port", port)
    assert taken.returncode == 2
    (sentence,) = taken.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert f"127.0.0.1:{port} " in sentence


def test_serve_run_works_by_itself(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    publish_iris(store, forest(), onnx=True)
    port = free_port()
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"http_options: {{host: 127.0.0.1, port: {port}}}\n"
        "applications:\n- {name: iris-api, import_path: 'serve_app.deployment:app', route_prefix: /}\n"
    )
    command = [str(Path(sys.executable).with_name("serve")), "run", "--app-dir", str(ROOT), str(config)]
    output = tmp_path / "run.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment(store.root), cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until(lambda: _ready(f"http://127.0.0.1:{port}/readyz"), seconds=150)
        answer = httpx2.post(f"http://127.0.0.1:{port}/predict", json=A_FLOWER, headers=HEADERS)
        assert answer.json()["prediction"] == "setosa"
        assert len(answer.headers.get_list("x-request-id")) == 1
    except BaseException:
        sys.stderr.write(output.read_text(errors="replace")[-8000:])
        raise
    finally:
        stop(process)


def _ready(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def refusals(server: Server) -> set[str | None]:
    """Why the replicas refuse their candidates; each request opens a new connection, so both replicas are asked."""
    models = [httpx2.get(f"{server.url}/model", headers=HEADERS).json() for _ in range(8)]
    return {model["refused"] and model["refused"]["reason"] for model in models}


def point(store: Store, bundle: Path) -> None:
    """Move the pointer by hand, past the checks of a publisher."""
    link = store.root / "hand-made"
    link.symlink_to(f"bundles/{bundle.name}")
    os.replace(link, store.root / "current")
