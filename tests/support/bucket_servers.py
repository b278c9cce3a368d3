"""Real servers of S3 (moto) and Google Cloud Storage (fake-gcs-server) on this machine, and a proxy that cuts connections."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest

from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class BucketServer:
    """A server with the bucket `tables`: its scheme, its port, and the variables that lead clients to it."""

    scheme: str
    port: int
    put: Callable[[str, bytes], None]

    @property
    def environment(self) -> dict[str, str]:
        return self.through(self.port)

    def through(self, port: int) -> dict[str, str]:
        """The variables for clients that connect to another port."""
        if self.scheme == "gs":
            return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
        keys = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}
        return {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_EC2_METADATA_DISABLED": "true"}

    def uri(self, key: str) -> str:
        return f"{self.scheme}://tables/{key}"


def fake_gcs_program(folder: Path) -> str:
    """fake-gcs-server from PATH or from the test cluster's programs; the test is skipped where there is none."""
    program = shutil.which("fake-gcs-server")
    if program is not None:
        return program
    packed = Path(os.environ.get("E2E_CLUSTER") or ROOT / ".." / "shared" / "cluster") / "bin" / "fake-gcs-server.zst"
    if not packed.is_file():
        pytest.skip("NOT TESTED: no fake-gcs-server in PATH or in the folder bin of E2E_CLUSTER")
    target = folder / "fake-gcs-server"
    with pa.OSFile(str(packed)) as file, pa.CompressedInputStream(file, "zstd") as stream:
        target.write_bytes(stream.read())
    target.chmod(0o755)
    return str(target)


@contextlib.contextmanager
def google(folder: Path) -> Iterator[BucketServer]:
    port = _free_port()
    command = [fake_gcs_program(folder), "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
    url = f"http://127.0.0.1:{port}"
    with _running([*command, f"-external-url={url}", f"-public-host=127.0.0.1:{port}"], port):
        _post(f"{url}/storage/v1/b", b'{"name": "tables"}', "application/json")

        def put(key: str, body: bytes) -> None:
            address = f"{url}/upload/storage/v1/b/tables/o?uploadType=media&name={quote(key, safe='')}"
            _post(address, body, "application/octet-stream")

        yield BucketServer("gs", port, put)


@contextlib.contextmanager
def s3() -> Iterator[BucketServer]:
    from botocore.session import get_session
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = get_session().create_client(
        "s3", "us-east-1", endpoint_url=f"http://{host}:{port}", aws_access_key_id="x", aws_secret_access_key="x"
    )
    try:
        client.create_bucket(Bucket="tables")
        yield BucketServer("s3", port, lambda key, body: client.put_object(Bucket="tables", Key=key, Body=body))
    finally:
        client.close()
        server.stop()


@contextlib.contextmanager
def cutting_proxy(port: int, *, after: int, times: int) -> Iterator[tuple[int, Callable[[], int]]]:
    """A port that leads to another one, and the number of cuts so far: `times` answers are cut after `after` bytes.

    It is a process, because Google's client may wait for data while it holds the lock of this interpreter.
    """
    context = multiprocessing.get_context("spawn")
    cuts, own_port = context.Value("i", 0), context.Value("i", 0)
    process = context.Process(target=_forward, args=(port, after, times, cuts, own_port), daemon=True)
    process.start()
    try:
        until(lambda: own_port.value, what="the proxy")
        yield own_port.value, lambda: int(cuts.value)
    finally:
        process.terminate()
        process.join(10)


def _forward(port: int, after: int, times: int, cuts: Any, own_port: Any) -> None:
    def answer(client: socket.socket, upstream: socket.socket) -> None:
        sent = 0
        with contextlib.suppress(OSError), client, upstream:
            while block := upstream.recv(1 << 16):
                client.sendall(block)
                sent += len(block)
                with cuts.get_lock():
                    if sent > after and cuts.value < times:
                        cuts.value += 1
                        client.shutdown(socket.SHUT_RDWR)
                        return

    def ask(client: socket.socket, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := client.recv(1 << 16):
                upstream.sendall(block)
            upstream.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        own_port.value = listener.getsockname()[1]
        while True:
            client, _ = listener.accept()
            upstream = socket.create_connection(("127.0.0.1", port))
            for run in (answer, ask):
                threading.Thread(target=run, args=(client, upstream), daemon=True).start()


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is not None or _listens(port), what=command[0])
        assert process.poll() is None, f"{command[0]} ended"
        yield
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _post(url: str, body: bytes, kind: str) -> None:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind}, method="POST")
    with urllib.request.urlopen(request, timeout=30) as response:
        response.read()
