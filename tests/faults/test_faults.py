"""Faults in a running application, two replicas behind HAProxy: each under load, each judged by the checker.

The load has one key for each test, so that the limit on rate, which is on, counts them apart. MLflow is configured and hangs.
The store is a small volume where that is possible, so that it can be filled.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from serve_app.artifacts.store import CURRENT, Store
from serve_app.errors import StoreError
from serve_app.http.auth import change_file, make_key
from tests.support import processes
from tests.support.experiment import RATE, checked, constant_load, served, wait_for_responses
from tests.support.faulty_server import MODES, FaultyServer, faulty_server
from tests.support.figures import note
from tests.support.keys import add_key
from tests.support.load import closed_loop
from tests.support.models import A_FLOWER, forest, logistic, publish_iris
from tests.support.server import KEY, Server, serving
from tests.support.volume import fill, mount, unmount
from tests.support.waiting import until

KILLS = int(os.environ.get("IRIS_TEST_KILLS", "2"))
LIMIT = 3000
SLOW = 1000
NAMES = ("kill", "freeze", "haproxy", "pointer", "slow", "bodies", "full", "rotation", "revoked", "limit")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A key for each test, and their file."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    made = {"file": str(file)}
    for name in NAMES:
        made[name] = add_key(file, name)
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("models")
    mounted = mount(folder, "size=32m")
    store = Store(folder, keep=100)
    publish_iris(store, logistic(), onnx=True)
    yield store
    if mounted:
        unmount(folder)


@pytest.fixture(scope="module")
def mlflow() -> Iterator[FaultyServer]:
    with faulty_server() as server:
        yield server


@pytest.fixture(scope="module")
def server(store: Store, keys: dict[str, str], mlflow: FaultyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "IRIS_API_KEYS_FILE": keys["file"],
        "IRIS_RATE_LIMIT_PER_KEY": f"{LIMIT}/hour",
        "MLFLOW_TRACKING_URI": mlflow.url,
        "IRIS_REGISTRY_POLL_SECONDS": "1",
        "RAY_DEDUP_LOGS": "0",
    }
    with serving(store.root, tmp_path_factory.mktemp("server"), replicas=2, **settings) as server:
        until(lambda: "iris-api: ready after" in server.output.read_text(), seconds=150, what="the end of the start")
        yield server


@pytest.fixture(autouse=True)
def whole(server: Server) -> Iterator[None]:
    """Before and after each test two replicas have their model, or the next one would be blamed."""
    until(lambda: len(loaded(server)) == 2, seconds=150, what="two replicas with a model")
    yield
    until(lambda: len(loaded(server)) == 2, seconds=150, what="two replicas with a model")


def loaded(server: Server) -> set[int]:
    """The living replicas that have said that they loaded a model."""
    said = [line for line in server.output.read_text(errors="replace").splitlines() if "model swapped" in line]
    return {pid for pid in processes.replicas(server.process.pid) if any(f"pid={pid})" in line for line in said)}


def test_a_killed_replica_costs_no_request_after_one_retry(
    server: Server, store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    back = []
    with constant_load(server, store, tmp_path, keys["kill"]) as load:
        for _ in range(KILLS):
            victim = min(loaded(server))
            started = time.monotonic()
            processes.kill(victim)
            until(lambda: len(loaded(server)) == 2, seconds=150, what="another replica with a model")
            back.append(time.monotonic() - started)
            wait_for_responses(load, RATE)
    report = checked(load, store, f"replica killed {KILLS} times, another after {max(back):.1f} s at worst")
    assert report.failed_after_retry == 0


def test_a_frozen_replica_is_replaced_and_costs_few_requests_after_one_retry(
    server: Server, store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    pids = processes.replicas(server.process.pid)
    with constant_load(server, store, tmp_path, keys["freeze"]) as load:
        processes.freeze(pids[0])
        started = time.monotonic()
        try:
            until(lambda: pids[0] not in processes.replicas(server.process.pid), seconds=200, what="the end of the frozen replica")
            gone = time.monotonic() - started
        finally:
            processes.thaw(pids[0])
    report = checked(load, store, f"replica frozen, removed after {gone:.1f} s")
    assert report.failed_after_retry <= report.requests // 100


@pytest.mark.parametrize("fault", [processes.kill, processes.freeze])
def test_a_haproxy_that_is_killed_or_frozen_is_replaced_within_five_seconds(
    fault: Callable[[int], None], server: Server, store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    with constant_load(server, store, tmp_path, keys["haproxy"]) as load:
        before = serving_haproxy(server)
        fault(before)
        wait_for_responses(load, RATE)
    report = checked(load, store, f"HAProxy got {fault.__name__}")
    assert report.longest_silence < 5
    assert serving_haproxy(server) != before


def test_a_haproxy_that_is_killed_together_with_a_replica_knows_the_new_replica(
    server: Server, store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    """Serve changes HAProxy's configuration while there is no HAProxy. The new replica answers alone at the end."""
    with constant_load(server, store, tmp_path, keys["haproxy"]) as load:
        first, second = sorted(loaded(server))
        processes.kill(first)
        processes.kill(serving_haproxy(server))
        until(lambda: len(loaded(server)) == 2, seconds=150, what="another replica with a model")
        wait_for_responses(load, RATE)
        alone = time.monotonic()
        processes.kill(second)
        wait_for_responses(load, RATE)
    checked(load, store, "HAProxy and a replica killed together, then the other replica")
    late = {attempt.id: attempt for attempt in load.history if attempt.sent > alone}
    assert all(attempt.status == 200 for attempt in late.values())


def serving_haproxy(server: Server) -> int:
    """The only HAProxy of the application, when those that Serve has replaced have ended."""
    until(lambda: len(processes.haproxies(server.process.pid)) == 1, seconds=150, what="the end of all HAProxies but one")
    return processes.haproxies(server.process.pid)[0]


def test_a_corrupt_pointer_changes_no_answer_and_a_good_one_is_followed(
    server: Server, store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    with constant_load(server, store, tmp_path, keys["pointer"]) as load:
        right = store.pointer()
        assert right is not None
        for target in ("bundles/nothing", "../elsewhere", right[:-1] + "x", "bundles/9-" + "0" * 64):
            point(store, target)
            wait_for_responses(load, RATE)
        (store.root / CURRENT).unlink()
        wait_for_responses(load, RATE)
        point(store, right)
        first = served(store)
        second = publish_iris(store, forest(), onnx=True)
        load.now_served(str(second.version))
        until(lambda: server.versions() == {str(second.version)}, seconds=60)
    checked(load, store, "corrupt pointer, then a new model", first)


def point(store: Store, target: str) -> None:
    link = store.root / "by-hand"
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    os.replace(link, store.root / CURRENT)


def test_a_thousand_clients_that_send_slowly_disturb_nobody_and_are_cut_off(
    server: Server, store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    """Half of them stop in the middle of the headers, half send a byte of the body now and then."""
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {keys['slow']}\r\nContent-Type: application/json\r\n".encode()
    before = max(processes.resident(pid) for pid in processes.replicas(server.process.pid))
    with contextlib.ExitStack() as stack, constant_load(server, store, tmp_path, keys["slow"]) as load:
        started = time.monotonic()
        slow = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(SLOW)]
        for number, connection in enumerate(slow):
            connection.sendall(head[:40] if number % 2 else head + b"Content-Length: 1000\r\n\r\n{")
        said: dict[int, bytes] = {}
        until(lambda: trickle(slow, said) == SLOW, seconds=60, every=1, what="the end of all slow clients")
        cut = time.monotonic() - started
        wait_for_responses(load, RATE)
    answers = Counter(answer[9:12].decode() for answer in said.values())
    report = checked(load, store, f"{SLOW} clients that send slowly, all cut off after {cut:.0f} s with {dict(answers)}")
    assert (report.failed_first, report.refused) == (0, 0)
    assert set(answers) <= {"408", "400"}  # 400: a HAProxy that is being replaced just then
    assert answers["408"] >= SLOW / 2  # the replica's, for the bodies
    grown = max(processes.resident(pid) for pid in processes.replicas(server.process.pid)) - before
    note(f"memory of a replica grew by {grown / 1e6:.1f} MB")
    assert grown < 50e6


def trickle(slow: list[socket.socket], said: dict[int, bytes]) -> int:
    """One byte more of each body; how many clients have got their answer."""
    for number, connection in enumerate(slow):
        if number not in said:
            with contextlib.suppress(BlockingIOError):
                said[number] = connection.recv(20, socket.MSG_DONTWAIT)
                continue
            if number % 2 == 0:
                connection.sendall(b" ")
    return len(said)


def test_bodies_without_end_and_giant_headers_are_cut_off(
    server: Server, store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    key = keys["bodies"]
    before = max(processes.resident(pid) for pid in processes.replicas(server.process.pid))
    with constant_load(server, store, tmp_path, key) as load:
        chunked = f"POST /predict HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(3):
            assert status_of(address, chunked, piece, 2000) == 413
        giant = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: "
        assert status_of(address, giant, b"x" * 65536, 160) in (400, 414, 431)
        many = b"GET /health HTTP/1.1\r\nHost: x\r\n"
        assert status_of(address, many, b"X-A: b\r\n" * 1000, 20) in (400, 431)
        wait_for_responses(load, RATE * 3)
    report = checked(load, store, "bodies without end, giant headers")
    assert report.failed_first == 0
    grown = max(processes.resident(pid) for pid in processes.replicas(server.process.pid)) - before
    note(f"memory of a replica grew by {grown / 1e6:.1f} MB")
    assert grown < 100e6


def status_of(address: tuple[str, int], head: bytes, piece: bytes, times: int) -> int:
    """The status that comes back while pieces are being sent, 0 when the connection is just closed."""
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(times):
                connection.sendall(piece)
        answer = http.client.HTTPResponse(connection)
        try:
            answer.begin()
        except (http.client.HTTPException, OSError):
            return 0
        return answer.status


def test_a_full_volume_costs_no_answer_and_a_publisher_says_so(
    server: Server, store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    if not os.path.ismount(store.root):
        pytest.skip("a small volume can be mounted by root only")
    with constant_load(server, store, tmp_path, keys["full"]) as load:
        first = served(store)
        ballast = fill(store.root)
        with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC)):
            publish_iris(store, forest(), onnx=True)
        wait_for_responses(load, RATE * 2)
        assert server.versions() == {str(first.version)}
        ballast.unlink()
        second = publish_iris(store, forest(), onnx=True)
        load.now_served(str(second.version))
        until(lambda: server.versions() == {str(second.version)}, seconds=60)
    report = checked(load, store, "volume full while it serves and while somebody publishes", first)
    assert report.failed_first == 0


def ask(server: Server, key: str) -> int:
    return httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers={"X-API-Key": key}, timeout=30).status_code


def test_keys_come_and_go_within_ten_seconds_without_a_refusal_for_the_others(
    server: Server, store: Store, keys: dict[str, str], tmp_path: Path
) -> None:
    file = Path(keys["file"])
    new, entry = make_key("new")
    with constant_load(server, store, tmp_path, keys["rotation"]) as load:
        assert ask(server, new) == 403
        change_file(file, add=entry)
        started = time.monotonic()
        until(lambda: {ask(server, new) for _ in range(6)} == {200}, seconds=30, what="the new key")
        known = time.monotonic() - started
        change_file(file, remove="revoked")
        started = time.monotonic()
        until(lambda: {ask(server, keys["revoked"]) for _ in range(6)} == {403}, seconds=30, what="the end of the revoked key")
        dead = time.monotonic() - started
        file.write_text("[broken")
        wait_for_responses(load, RATE * 3)
        assert ask(server, new) == 200
    report = checked(load, store, f"new key known after {known:.1f} s, revoked one dead after {dead:.1f} s")
    assert (report.failed_first, set(report.statuses)) == (0, {200})
    assert ask(server, KEY) == 200


def test_the_limit_of_a_key_holds_over_both_replicas_within_five_percent(server: Server, keys: dict[str, str]) -> None:
    with closed_loop(server.url, A_FLOWER, key=keys["limit"], clients=8, requests=LIMIT + 500, timeout=30) as load:
        until(lambda: load.finished == LIMIT + 500, seconds=120, what="the last response")
    admitted = load.statuses[200]
    note(f"limit {LIMIT}, admitted {admitted} of {load.finished} over two replicas: {100 * admitted / LIMIT - 100:+.2f} %")
    assert load.statuses.keys() == {200, 429}
    assert 0.95 * LIMIT <= admitted <= LIMIT


def test_with_an_empty_store_and_mlflow_unwell_replicas_start_refuse_and_pick_the_model_up_later(
    server: Server, store: Store, mlflow: FaultyServer, keys: dict[str, str]
) -> None:
    aside = store.root / "aside"
    aside.mkdir()
    for path in list(store.root.iterdir()):
        if path != aside:
            path.rename(aside / path.name)
    before = set(processes.replicas(server.process.pid))
    started = time.monotonic()
    for pid in before:
        processes.kill(pid)
    until(
        lambda: len(alive := processes.replicas(server.process.pid)) == 2 and not before & set(alive),
        seconds=150,
        what="two other replicas",
    )
    until(lambda: get(server, "/livez")[0] == 200, seconds=150, what="a live replica")
    back = time.monotonic() - started
    slowest = 0.0
    for mode in MODES:
        mlflow.mode = mode
        if mode != "is down":
            count = mlflow.requests[mode]
            until(partial(requested, mlflow, count), seconds=60, what=f"a request to an MLflow that {mode}")
        for _ in range(10):
            asked_at = time.monotonic()
            assert get(server, "/livez")[0] == 200
            assert get(server, "/readyz")[0] == 503
            assert (ask(server, KEY), get(server, "/health")[0]) == (503, 200)
            slowest = max(slowest, (time.monotonic() - asked_at) / 4)
    for path in list(aside.iterdir()):
        path.rename(store.root / path.name)
    aside.rmdir()
    started = time.monotonic()
    until(lambda: {ask(server, KEY) for _ in range(8)} == {200}, seconds=60, what="the model")
    found = time.monotonic() - started
    note(
        f"empty store, MLflow hangs: live again {back:.1f} s after both replicas were killed; while MLflow {', '.join(MODES)}: "
        f"503, answers within {slowest * 1000:.0f} ms; {found:.1f} s after the model came back it was served"
    )
    assert slowest < 1
    assert found < 15


def requested(mlflow: FaultyServer, count: int) -> bool:
    """Whether MLflow got more than so many requests in its present mode."""
    return mlflow.requests[mlflow.mode] > count


def get(server: Server, path: str) -> tuple[int, str]:
    with contextlib.suppress(httpx2.HTTPError):
        answer = httpx2.get(server.url + path, timeout=20)
        return answer.status_code, answer.text
    return 0, ""
