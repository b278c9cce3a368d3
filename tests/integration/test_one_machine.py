"""What an application on one machine starts of Ray, and what its user still gets without the rest."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx2

from serve_app.artifacts.store import Store
from tests.support.models import A_FLOWER, publish_iris
from tests.support.processes import of_session
from tests.support.server import HEADERS, PYTHON, environment, free_port, serving
from tests.support.waiting import until

LEFT_OUT = {"monitor.py", "log_monitor.py", "dashboard.py"}
"""The autoscaler's monitor, the process of the log monitor, and the dashboard's server."""


def programs(session: int) -> set[str]:
    """Python files that the processes of a session run."""
    return {name for command in of_session(session).values() for name in re.findall(r"/(\w+\.py)\b", command)}


def test_ray_starts_without_what_one_machine_does_not_use(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    publish_iris(store, onnx=True)
    with serving(store.root, tmp_path) as server:
        assert httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers=HEADERS).status_code == 200
        until(lambda: b"ready after" in server.output.read_bytes(), seconds=60, what="the end of the start")
        assert programs(server.process.pid) & LEFT_OUT == set()
        # Serve's first task has ended, and every worker that Ray started ahead is used.
        until(lambda: not any("IDLE" in command or "_deploy" in command for command in of_session(server.process.pid).values()))
        # The log monitor runs in the process that the user started.
        publish_iris(store)
        until(lambda: server.versions() == {"2"}, seconds=60, what="the second version")
        until(lambda: server.output.read_bytes().count(b'"model swapped"') == 2, seconds=20, what="the line of the replica")


def test_a_user_gets_the_dashboard_on_request(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    publish_iris(store, onnx=True)
    with serving(store.root, tmp_path, options=("--dashboard",)) as server:
        assert programs(server.process.pid) >= LEFT_OUT


def test_an_application_that_cannot_start_ends_with_one_sentence(tmp_path: Path) -> None:
    command = [PYTHON, "-m", "serve_app", "--port", str(free_port())]
    variables = environment(tmp_path, RAY_SERVE_HAPROXY_BINARY_PATH="/bin/false")
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the application did not start")
