"""A real Kubernetes cluster, driven as a user would: make, kubectl, and requests to the node's port."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROW = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
NODE_PORT = 30080


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code, and output with errors."""

    code: int
    output: str


def make(target: str, *arguments: str, **variables: str) -> CommandResult:
    """One `make` target with its output, errors included."""
    pairs = [f"{name}={value}" for name, value in variables.items()]
    # The tests may have been started by make: its own flags and variables are not for this call.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")}
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


def pods(selector: str, namespace: str = "mlops") -> list[dict[str, Any]]:
    """The pods that are not being deleted."""
    items = json.loads(kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json"))["items"]
    return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]


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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        headers = {"X-API-Key": key, "Content-Type": "application/json", "Connection": "close"}
        connection.request("GET" if row is None else "POST", path, None if row is None else json.dumps(row), headers)
        response = connection.getresponse()
        return Response(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


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


@dataclass(slots=True)
class Load:
    """The outcome of the requests: answers by model version, failures with the second in which they were sent."""

    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    """Right answers that took more than a second."""

    @property
    def sent(self) -> int:
        return self.versions.total() + len(self.failures)

    def __str__(self) -> str:
        return f"{self.sent} requests, {len(self.failures)} failed without retry, {len(self.slow)} took more than a second"


@contextlib.contextmanager
def load(rate: float, *, key: str, threads: int = 16) -> Iterator[Load]:
    """Send `rate` predictions a second until the block ends, whether the earlier ones have been answered or not."""
    record = Load()
    lock, stopped = threading.Lock(), threading.Event()
    started = time.monotonic()
    ticks = iter(range(10**9))

    def send() -> None:
        while not stopped.is_set():
            with lock:
                due = started + next(ticks) / rate
            if stopped.wait(max(0.0, due - time.monotonic())):
                return
            sent = time.monotonic()
            try:
                response = request("/predict", key=key, row=ROW)
                valid = response.status == 200 and b'"prediction"' in response.body
                problem = None if valid else f"{response.status} {response.body[:200]!r}"
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            with lock:
                took = time.monotonic() - sent
                if took > 1:
                    record.slow.append(f"{sent - started:.1f} s: {took:.1f} s")
                if problem is None:
                    record.versions[response.version or ""] += 1
                else:
                    record.failures.append(f"{sent - started:.1f} s: {problem}")

    workers = [threading.Thread(target=send, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield record
    finally:
        stopped.set()
        for worker in workers:
            worker.join(30)


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
