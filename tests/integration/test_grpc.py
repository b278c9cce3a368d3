"""The Open Inference Protocol over gRPC on real Ray Serve, behind HAProxy and behind Serve's proxy in Python."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx2
import numpy as np
import pytest

from serve_app.protocols.grpc import health_pb2
from tests.support.calls import HEALTH, INFERENCE, MODEL, Client, Reply, infer, values_of
from tests.support.models import logistic_store
from tests.support.oip import tensor
from tests.support.processes import kill, replicas
from tests.support.server import HEADERS, KEY, ROOT, Server, free_port, serving

PYTHON = Path(os.environ.get("CLIENTS_PYTHON") or ROOT / ".venv/clients/bin/python").absolute()
"""The environment of the clients; `make test-integration` makes it. They need an older protobuf than Ray."""
PROGRAM = ROOT / "tests/support/grpc_clients.py"
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.8, 2.8, 4.8, 1.4], [7.7, 2.6, 6.9, 2.3]]
NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
LABELS = [["setosa"], ["versicolor"], ["virginica"]]
BODY_BYTES = 4 * 1024 * 1024
needs_clients = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"there are no clients in {PYTHON}; make test-integration installs them"
)


@dataclass(frozen=True, slots=True)
class Front:
    """A running application, and the port for its calls."""

    server: Server
    port: int
    has_haproxy: bool

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture(scope="module", params=["1", "0"], ids=["HAProxy", "Python proxy"])
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    store, port = logistic_store(tmp_path_factory.mktemp("models")), free_port()
    settings: dict[str, Any] = {"IRIS_GRPC_PORT": str(port), "IRIS_MAX_BODY_BYTES": str(BODY_BYTES), "IRIS_ACCESS_LOG_EVERY": "1"}
    folder = tmp_path_factory.mktemp("server")
    with serving(store.root, folder, RAY_SERVE_ENABLE_HA_PROXY=request.param, **settings) as server:
        yield Front(server, port, request.param == "1")


@pytest.fixture
async def client(front: Front) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(front.address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield Client(channel, KEY)


@pytest.fixture(scope="module")
def shares(front: Front) -> list[list[float]]:
    """The probabilities of ROWS as the native protocol answers them."""
    body = {"instances": [dict(zip(NAMES, row, strict=True)) for row in ROWS]}
    reply = httpx2.post(f"{front.server.url}/predict/batch", json=body, headers=HEADERS)
    return [list(each["probabilities"].values()) for each in reply.json()["predictions"]]


def said(front: Front, client: str) -> dict[str, Any]:
    """What a client says of its calls."""
    command = [str(PYTHON), str(PROGRAM), client, front.address, KEY]
    environment = {"PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@needs_clients
def test_the_client_of_triton(front: Front, shares: list[list[float]]) -> None:
    result = said(front, "triton")
    assert result["live"] is result["ready"] is result["model ready"] is True
    assert result["inputs"] == list(NAMES)
    assert "model_repository" in result["extensions"]
    assert [(each["name"], each["version"], each["state"]) for each in result["index"]] == [(MODEL, "1", "READY")]
    for call in ("raw", "raw, version", "typed", "columns", "gzip"):
        assert result[call] == {"predict": LABELS, "predict_proba": shares}, call
    assert result["float32"]["predict"] == LABELS
    assert [[text.split(":")[2] for text in row][:1] for row in result["ranked"]["predict_proba"]] == LABELS
    assert result["rows"] == 60_000
    statuses = {
        "another version": "NOT_FOUND",
        "bad value": "INVALID_ARGUMENT",
        "bad shape": "INVALID_ARGUMENT",
        "no key": "UNAUTHENTICATED",
        "wrong key": "PERMISSION_DENIED",
        "another model": "NOT_FOUND",
        "too large": "RESOURCE_EXHAUSTED",
        "load": "UNIMPLEMENTED",
        "unload": "UNIMPLEMENTED",
        "stream": "UNIMPLEMENTED",
    }
    assert {call: result[call].split()[0] for call in statuses} == {
        call: f"StatusCode.{status}" for call, status in statuses.items()
    }
    assert "sepal_length[0]" in result["bad value"]
    assert "[rows, 4]" in result["bad shape"]


@needs_clients
def test_the_asynchronous_client_of_triton(front: Front, shares: list[list[float]]) -> None:
    result = said(front, "triton-aio")
    assert result["live"] is result["ready"] is True
    assert result["answers"] == [{"predict": LABELS, "predict_proba": shares}] * 50


@needs_clients
def test_the_client_of_kserve(front: Front, shares: list[list[float]]) -> None:
    result = said(front, "kserve")
    assert result["live"] is result["ready"] is result["model ready"] is True
    assert result["raw"] == result["typed"] == {"predict": LABELS, "predict_proba": shares}
    assert "INVALID_ARGUMENT" in result["bad value"]
    assert "sepal_length[0]" in result["bad value"]
    assert "PERMISSION_DENIED" in result["wrong key"]


async def test_the_port_listens_on_this_machine_alone(front: Front) -> None:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.connect(("8.8.8.8", 9))  # sends nothing: it only chooses the address of this machine
        address = probe.getsockname()[0]
        if address != "127.0.0.1":
            with socket.socket() as other:
                other.settimeout(2)
                assert other.connect_ex((address, front.port)) != 0


async def test_probes_answer_without_a_key(client: Client) -> None:
    for service in ("", INFERENCE):
        reply = await client.call("Check", health_pb2.HealthCheckRequest(service=service), service=HEALTH, key=None)
        assert reply.message.status == health_pb2.HealthCheckResponse.SERVING
    assert (await client.call("ServerReady", key=None)).message.ready


async def test_a_call_needs_no_name_of_an_application(client: Client) -> None:
    row = infer(tensor(ROWS[:1]), raw=True)
    reply = await client.call("ModelInfer", row, x_request_id="mine-1", multiplexed_model_id="x")
    assert (reply.code, reply.metadata["x-request-id"], reply.metadata["x-model-version"]) == ("OK", "mine-1", "1")


async def test_broken_messages_and_methods_say_nothing_of_the_server(client: Client) -> None:
    replies = [
        await client.call("ModelInfer", b"\xff\xff"),
        await client.call("ModelInfer", b"\0" * (BODY_BYTES + 1)),
        await client.call("answer_call", b""),
        await client.call("check_health", b""),
        await client.call("Anything", b"", service="iris-api"),
        await client.call("ServerReflectionInfo", b"\0"),
    ]
    codes = [reply.code for reply in replies]
    assert codes == ["INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", *["UNIMPLEMENTED"] * 4]
    for reply in replies:
        assert not {"Traceback", "answer_call", "check_health", "IrisApi", "pid="} & set(reply.details.split())


async def test_calls_are_in_the_metrics_and_the_log_of_the_application(client: Client, front: Front) -> None:
    route = f"/{INFERENCE}/ModelInfer"
    before = front.server.output.read_text().count("from-the-test")
    for at in range(3):
        await client.call("ModelInfer", infer(tensor(ROWS)), x_request_id=f"from-the-test-{at}")
    await client.call("ModelInfer", infer(tensor(ROWS)), key=None)
    text = httpx2.get(f"{front.server.url}/metrics", headers=HEADERS).text
    counted = [line for line in text.splitlines() if f'route="{route}"' in line and line.split("{")[0].endswith("_count")]
    assert any('status_class="2xx"' in line and float(line.split()[-1]) >= 3 for line in counted), counted
    assert any('status_class="4xx"' in line for line in counted), counted
    assert not any('status_class="5xx"' in line for line in counted), counted
    async with asyncio.timeout(10):
        while front.server.output.read_text().count("from-the-test") < before + 3:
            await asyncio.sleep(0.1)


async def test_reflection_lists_services_and_describes_messages_in_development(front: Front) -> None:
    from grpc_reflection.v1alpha import reflection_pb2

    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=HEALTH),
    ]
    async with grpc.aio.insecure_channel(front.address) as channel:
        ask = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        replies = [reply async for reply in ask(iter(requests))]
    assert {INFERENCE, HEALTH} <= {each.name for each in replies[0].list_services_response.service}
    assert all(reply.file_descriptor_response.file_descriptor_proto for reply in replies[1:])


async def test_a_hundred_thousand_rows_in_one_call(client: Client) -> None:
    reply = await client.call("ModelInfer", infer(tensor(np.tile(ROWS, (33_000, 1))), raw=True))
    assert reply.code == "OK", reply.details
    assert values_of(reply.message)["predict"][:3].tolist() == LABELS


async def test_a_killed_replica_says_nothing_and_is_replaced(front: Front, client: Client) -> None:
    """Last: it takes the replica away."""
    row = infer(tensor(ROWS[:1]), raw=True)
    pids = replicas(front.server.process.pid)
    assert pids
    for pid in pids:
        kill(pid)
    replies: list[Reply] = []
    async with asyncio.timeout(60):
        while not replies or replies[-1].code != "OK":
            replies.append(await client.call("ModelInfer", row))
            await asyncio.sleep(0.05)
    assert {reply.code for reply in replies} <= {"OK", "UNAVAILABLE", "INTERNAL", "CANCELLED"}
    for reply in replies:
        assert not {"Traceback", "ActorDiedError", "pid="} & set(reply.details.replace(":", " ").split()), reply.details
