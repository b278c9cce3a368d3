"""`serve run`, as a user of Ray types it: alone, and on a Ray that runs already without the flags of Ray Serve."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from serve_app.artifacts.store import Store
from tests.support import server
from tests.support.models import A_FLOWER, publish_iris
from tests.support.processes import haproxies, kill_session
from tests.support.server import HEADERS, PYTHON, ROOT, START_SECONDS, Server, free_port, stop
from tests.support.waiting import until

WARNING = "iris_api.flags"
PORT = 8000
"""Where `serve run` listens when it gets an import path; Ray has no option for another port."""
RAY = """
import contextlib
import sys
import ray
for _ in range(3):  # Ray gives its node 30 s to start, which is too short on a busy machine
    with contextlib.suppress(Exception):
        print("address", ray.init(address="local", num_cpus=2).address_info["gcs_address"], flush=True)
        sys.stdin.read()
        break
    ray.shutdown()
"""


def environment(model_dir: Path, **more: str) -> dict[str, str]:
    """The environment of Ray and of `serve run`, which find each other without a token."""
    return server.environment(model_dir, RAY_AUTH_MODE="disabled", **more)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "models")
    publish_iris(store, onnx=True)
    return store


@contextlib.contextmanager
def serve_run(folder: Path, env: dict[str, str], *arguments: str, port: int) -> Iterator[Server]:
    """`serve run` until Ctrl-C, once it answers predictions."""
    output = folder / "serve-run.log"
    command = [str(Path(PYTHON).with_name("serve")), "run", *arguments]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True)
    running = Server(f"http://127.0.0.1:{port}", process, output)
    try:
        until(lambda: predicts(running), seconds=START_SECONDS, what="a prediction")
        yield running
    except BaseException:
        sys.stderr.write(output.read_text(errors="replace")[-8000:])
        raise
    finally:
        stop(process)
        kill_session(process.pid)


def predicts(running: Server) -> bool:
    assert running.process.poll() is None, running.output.read_text()
    with contextlib.suppress(httpx2.HTTPError):
        return httpx2.post(f"{running.url}/predict", json=A_FLOWER, headers=HEADERS, timeout=5).status_code == 200
    return False


@pytest.fixture
def running_ray(store: Store, tmp_path: Path) -> Iterator[tuple[str, dict[str, str], int]]:
    """The address of a Ray that was started without flags, its environment, and the session of its processes."""
    env = environment(store.root)
    with subprocess.Popen(
        [PYTHON, "-c", RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=tmp_path, start_new_session=True, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address = next((line.split()[1] for line in process.stdout if line.startswith("address ")), None)
            assert address is not None, "Ray did not start"
            yield address, env, process.pid
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            kill_session(process.pid)


def test_the_import_path_alone_brings_the_flags(store: Store, tmp_path: Path) -> None:
    env = environment(store.root)
    with serve_run(tmp_path, env, "--address", "local", "serve_app.deployment:app", port=PORT) as running:
        assert haproxies(running.process.pid)
        assert WARNING not in running.output.read_text()


def test_on_a_ray_without_flags_the_application_warns_once_and_names_the_command(
    running_ray: tuple[str, dict[str, str], int], tmp_path: Path
) -> None:
    address, env, session = running_ray
    with serve_run(tmp_path, env, "--address", address, "serve_app.deployment:app", port=PORT) as running:
        for _ in range(5):
            assert predicts(running)
        assert not haproxies(session)
        until(lambda: WARNING in running.output.read_text(), what="the warning")
        (line,) = [line for line in running.output.read_text().splitlines() if WARNING in line]
        assert "serve run serve_app/rayserve/serve.yaml" in line


def test_the_config_file_brings_the_flags_to_a_ray_without_them(
    running_ray: tuple[str, dict[str, str], int], tmp_path: Path
) -> None:
    address, env, session = running_ray
    port = free_port()
    file = tmp_path / "serve.yaml"
    text = (ROOT / "serve_app" / "rayserve" / "serve.yaml").read_text()
    assert "port: 8000" in text
    file.write_text(text.replace("port: 8000", f"port: {port}"))
    with serve_run(tmp_path, env, "--address", address, str(file), port=port) as running:
        assert haproxies(session)
        assert WARNING not in running.output.read_text()
