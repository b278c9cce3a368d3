"""What a running application shows: the addresses on which its processes listen, and the secrets in their environments."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import httpx2
import pytest

from serve_app.artifacts.store import Store
from tests.support.figures import note
from tests.support.listeners import commands_with, listeners
from tests.support.models import A_FLOWER, publish_iris
from tests.support.processes import of_session
from tests.support.server import HEADERS, KEY, ROOT, Server, environment, serving
from tests.support.waiting import until

PASSWORD = "the-password-of-mlflow-4711"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = Store(tmp_path_factory.mktemp("models"))
    publish_iris(store, onnx=True)
    secrets = {"MLFLOW_TRACKING_URI": f"http://somebody:{PASSWORD}@127.0.0.1:9", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    with serving(store.root, tmp_path_factory.mktemp("server"), replicas=2, **secrets) as server:
        yield server


def test_nothing_listens_on_an_address_that_other_machines_reach(server: Server) -> None:
    sockets = listeners(server.process.pid)
    commands = " ".join(socket.command for socket in sockets)
    assert all(name in commands for name in ("haproxy", "raylet", "gcs_server", "DashboardAgent", "ServeReplica")), sockets
    exposed = [socket for socket in sockets if not socket.is_loopback]
    note(f"{len(sockets)} listening sockets, {len(exposed)} of them not on loopback")
    assert exposed == []


def test_only_the_process_that_the_user_started_has_a_secret_in_its_environment(server: Server) -> None:
    session = server.process.pid
    started = of_session(session).keys() - {session}
    assert len(commands_with(session, "PYTHONPATH")) > 8  # their environments can be read
    exposed = [command for secret in (KEY, PASSWORD) for command in commands_with(session, secret)]
    note(f"{len(started)} processes of Ray, Serve and HAProxy, {len(exposed)} of them with a secret in the environment")
    assert exposed == []


def test_the_replicas_still_check_the_key(server: Server) -> None:
    for headers, status in ((HEADERS, 200), ({}, 401), ({"X-API-Key": KEY[:-1]}, 403)):
        for _ in range(8):  # on connections of their own, so that both replicas are asked
            assert httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers=headers).status_code == status


def test_the_workers_of_a_local_command_are_closed_too(tmp_path: Path) -> None:
    code = "from serve_app.ray_workers import workers\nwith workers(num_cpus=1):\n    print('up', flush=True)\n    input()\n"
    with Popen(
        [sys.executable, "-c", code],
        stdin=PIPE,
        stdout=PIPE,
        env=environment(tmp_path, RAY_ADDRESS=""),
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == b"up\n"
            until(lambda: len(listeners(process.pid)) > 5, what="Ray's ports")
            assert [socket for socket in listeners(process.pid) if not socket.is_loopback] == []
            assert commands_with(process.pid, "PYTHONPATH")
            assert commands_with(process.pid, KEY) == []
        finally:
            process.stdin.write(b"\n")
            process.stdin.close()
            process.wait(60)
