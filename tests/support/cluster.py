"""A real Kubernetes cluster, driven as a user would: make, kubectl, and requests to the node's port."""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import os
import random
import re
import socket
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.load import Attempt, Load, open_loop, succeeds
from tests.support.processes import OF_MAKE
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
ROW = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
NODE_PORT = 30080
SOURCE_PORTS = itertools.cycle(random.sample(range(20_000, 30_000), 10_000))
"""Ports from which single requests leave: none of those that the system gives to the connections of a load.

A connection from the node to its own port that is refused, because the Service has no endpoint yet, stays in the kernel's
connection tracking for two minutes. A new connection from the same source port follows that entry, past the Service, and is
refused too.
"""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code, and output with errors."""

    code: int
    output: str


def make(target: str, *arguments: str, **variables: str) -> CommandResult:
    """One `make` target with its output, errors included."""
    pairs = [f"{name}={value}" for name, value in variables.items()]
    environment = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    process = subprocess.run(
        ["make", "--no-print-directory", target, *arguments, *pairs],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    return CommandResult(process.returncode, process.stdout + process.stderr)


def kubectl(*arguments: str, text: str | None = None, check: bool = True) -> str:
    """Output of kubectl, errors and warnings included."""
    process = subprocess.run(
        ["kubectl", *arguments], cwd=ROOT, input=text, capture_output=True, text=True, check=False, timeout=300
    )
    if check and process.returncode:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {process.stderr}")
    return process.stdout + process.stderr


def get(kind: str, name: str, namespace: str = "mlops") -> dict[str, Any]:
    """One object; empty when it is not there."""
    output = kubectl("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
    return dict(json.loads(output)) if output.strip() else {}


def pods(selector: str, namespace: str = "mlops", *, ending: bool = False) -> list[dict[str, Any]]:
    """The pods that are not being deleted; with `ending`, those that are as well."""
    items = json.loads(kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json"))["items"]
    return [pod for pod in items if ending or "deletionTimestamp" not in pod["metadata"]]


def roll_out_operations(mark: str) -> list[dict[str, str]]:
    """Operations on the RayService that give its pods another template, as docs/how-to/upgrade.md says; `mark` is a new text."""
    annotation = "template/metadata/annotations/iris-api~1config-checksum"
    groups = ("headGroupSpec", "workerGroupSpecs/0")
    return [{"op": "replace", "path": f"/spec/rayClusterConfig/{group}/{annotation}", "value": mark} for group in groups]


def api_key(namespace: str = "mlops") -> str:
    return base64.b64decode(get("secret", "iris-api-secrets", namespace)["data"]["API_KEY"]).decode()


@dataclass(frozen=True, slots=True)
class Response:
    """Status, headers with lower-case names, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def version(self) -> str | None:
        return self.headers.get("x-model-version")


def request(
    path: str, *, key: str = "", row: Mapping[str, Any] | None = None, port: int = NODE_PORT, timeout: float = 10
) -> Response:
    """One request on a connection of its own, as a client behind a load balancer makes it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout, source_address=("127.0.0.1", _source_port()))
    try:
        headers = {"X-API-Key": key, "Content-Type": "application/json", "Connection": "close"}
        connection.request("GET" if row is None else "POST", path, None if row is None else json.dumps(row), headers)
        response = connection.getresponse()
        return Response(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def _source_port() -> int:
    """The next of SOURCE_PORTS that is free."""
    return next(port for port in SOURCE_PORTS if _is_free(port))


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def open_port() -> None:
    """Open the port of the nodes, and wait until requests get through: a node needs a moment for a new Service."""
    result = make("k8s-nodeport")
    assert result.code == 0, result.output
    until(_answers, every=0.5, what="an answer on the port of the nodes")


def _answers() -> bool:
    try:
        return request("/health").status == 200
    except (OSError, http.client.HTTPException):
        return False


def load(rate: float, *, key: str) -> AbstractContextManager[Load]:
    """`rate` predictions a second, each on a connection of its own, as from clients behind a load balancer."""
    url = f"http://127.0.0.1:{NODE_PORT}"
    return open_loop(url, ROW, key=key, rate=rate, check=predicts, retry=False, keep_alive=False)


def predicts(attempt: Attempt) -> str | None:
    """Every 200 with a prediction is right, whatever the model."""
    return succeeds(attempt) or (None if '"prediction"' in attempt.body else f"no prediction: {attempt.body[:200]}")


def versions(key: str, count: int = 20) -> set[str | None]:
    """The versions of the model that answer `count` requests in a row."""
    return {request("/model/info", key=key).version for _ in range(count)}


def doctor() -> dict[str, str]:
    """What `make k8s-doctor` reports: cause and fix by the object that it names (all of them when it names one twice)."""
    result = make("k8s-doctor")
    faults: dict[str, str] = {}
    name = ""
    for line in result.output.splitlines():
        match = re.match(r"    (\S.*?): (.*)", line)
        if match and not line.startswith("    fix: "):
            name = match.group(1)
        if line.startswith("    "):
            faults[name] = faults.get(name, "") + line + "\n"
    assert (result.code != 0) == bool(faults), result.output
    return faults


def ready_pods(selector: str) -> dict[str, str]:
    """Name and uid of the pods that are ready and stay."""
    return {
        pod["metadata"]["name"]: pod["metadata"]["uid"]
        for pod in pods(selector)
        if any(item["type"] == "Ready" and item["status"] == "True" for item in pod["status"].get("conditions", []))
    }


def ready(selector: str) -> int:
    return len(ready_pods(selector))


def component(verb: str, name: str) -> None:
    """stop, kill or start a part of the control plane with the program `component` of E2E_CLUSTER; skips where there is none."""
    program = Path(os.environ.get("E2E_CLUSTER", "/nowhere")) / "component"
    if not program.is_file():
        pytest.skip(f"NOT TESTED: no program {program} (E2E_CLUSTER) that can {verb} the {name} of this cluster")
    subprocess.run([str(program), verb, name], check=True, capture_output=True, timeout=120)
