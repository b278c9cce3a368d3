"""Several machines on this one: network namespaces with addresses of their own, a Ray node in each, a cable that can be pulled.

Two Ray nodes in one namespace are not enough: their replicas and HAProxies would share ports (SO_REUSEPORT) without an error. A
namespace needs root, so a test that uses it is skipped without.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serve_app.rayserve.isolation import FILES
from tests.support.processes import alive
from tests.support.server import ROOT
from tests.support.waiting import until

RAY, SERVE = (str(Path(sys.executable).parent / name) for name in ("ray", "serve"))
GCS, HTTP = 6379, 8000
START_SECONDS = 240.0
TOKEN = secrets.token_hex(32)
"""Ray's processes ask each other for it, as those of a cluster that KubeRay made."""


@dataclass(slots=True)
class Machine:
    """One namespace: its address, and the environment of what runs in it."""

    namespace: str
    cable: str
    """The end of its cable at the switch, in the namespace `switch`."""
    switch: str
    address: str
    environment: Mapping[str, str]
    folder: Path
    """Output of what runs in it."""
    haproxy: Path
    """Ray gives each node a folder below that of the head."""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.address}:{HTTP}"

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs `arguments` in this machine."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """A process in this machine; its output goes to the file NAME.log of the machine's folder."""
        with (self.folder / f"{name}.log").open("wb") as output:
            process = subprocess.Popen(
                self.command(*arguments),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.environment, **environment},
                cwd=self.folder,
            )
        self.started.append(process)
        return process

    def run(self, *arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """The finished process, with its output."""
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def processes(self) -> dict[int, str]:
        """Every process of this machine and its command line."""
        pids = map(int, _ip("netns", "pids", self.namespace).split())
        found = {}
        for pid in pids:
            with contextlib.suppress(OSError):
                found[pid] = (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return {pid: command for pid, command in found.items() if command}

    def running(self, start: str) -> list[int]:
        """The processes whose command line begins so."""
        return sorted(pid for pid, command in self.processes().items() if command.startswith(start))

    def haproxies(self) -> list[int]:
        return sorted(pid for pid, command in self.processes().items() if "haproxy" in command.partition(" ")[0])

    def kill(self) -> None:
        """The end of every process at once, as when the machine loses its power; the others get a reset."""
        pids = self.processes()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
        self.started.clear()
        until(lambda: not alive(pids), what=f"the end of {self.namespace}")

    def unplug(self) -> None:
        """No packet reaches the machine or comes from it; nobody gets a reset."""
        _ip("-n", self.switch, "link", "set", self.cable, "down")

    def plug(self) -> None:
        """The end of `unplug`."""
        _ip("-n", self.switch, "link", "set", self.cable, "up")


@contextlib.contextmanager
def machines(folder: Path, cpus: Sequence[int], **environment: str) -> Iterator[list[Machine]]:
    """A Ray cluster with one machine for each number of CPUs; the first one is the head. Everything is gone at the end."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: network namespaces need root")
    names = [f"iris-{os.getpid()}-{number}" for number in range(len(cpus))]
    with contextlib.ExitStack() as stack:
        switch, network = stack.enter_context(_switch())
        cluster = []
        for number, name in enumerate(names):
            aside = folder / f"machine-{number}"
            aside.mkdir(parents=True)
            address, cable = f"{network}.{number + 11}", f"cable{number}"
            stack.enter_context(_plugged(name, switch, cable, address))
            haproxy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iris-", dir="/tmp")))  # a socket's path is short
            machine = Machine(name, cable, switch, address, _environment(haproxy, environment), aside, haproxy)
            stack.callback(machine.kill)
            cluster.append(machine)
        for number, machine in enumerate(cluster):
            start_ray(machine, cluster[0], cpus[number])
        try:
            yield cluster
        finally:
            shutil.rmtree(f"/tmp/{names[0]}", ignore_errors=True)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def _switch() -> Iterator[tuple[str, str]]:
    """A namespace with a bridge, which this process reaches; gives its name and the first three numbers of the addresses."""
    name, cable = f"iris-{os.getpid()}", f"iris{os.getpid()}"
    network = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 256}"
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "add", "switch", "type", "bridge")
        _ip("-n", name, "link", "set", "switch", "up")
        _ip("link", "add", cable, "type", "veth", "peer", "name", "here", "netns", name)
        _ip("-n", name, "link", "set", "here", "master", "switch", "up")
        _ip("address", "add", f"{network}.1/24", "dev", cable)
        _ip("link", "set", cable, "up")
        yield name, network
    finally:
        _ip("netns", "delete", name)  # with the bridge, and with both ends of the cable


@contextlib.contextmanager
def _plugged(name: str, switch: str, cable: str, address: str) -> Iterator[None]:
    """A namespace with `address` on its end of a cable to the switch."""
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("-n", switch, "link", "set", cable, "master", "switch", "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        yield
    finally:
        _ip("netns", "delete", name)


def _environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The flags of `serve.env`, files of HAProxy that are this machine's own, and no variable that names another Ray."""
    lines = (ROOT / "serve_app" / "rayserve" / "serve.env").read_text().splitlines()
    flags = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "IRIS_TEST"))}
    return {
        **kept,
        **{name: value.strip('"') for name, value in flags.items()},
        **{name: str(folder / file) for name, file in FILES.items()},
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "no_proxy": "*",
        **more,
    }


def start_ray(machine: Machine, head: Machine, cpus: int) -> None:
    """Start a node of Ray and wait for it, also on a machine that was killed; a busy machine gets three attempts."""
    arguments = [RAY, "start", "--block", "--node-ip-address", machine.address, "--num-cpus", str(cpus)]
    arguments += ["--object-store-memory", str(100 << 20), "--min-worker-port", "0", "--max-worker-port", "0"]
    arguments += ["--include-log-monitor", "false"]
    if machine is head:
        arguments += ["--head", "--port", str(GCS), "--include-dashboard", "false", "--temp-dir", f"/tmp/{machine.namespace}"]
    else:
        arguments += ["--address", f"{head.address}:{GCS}"]
    for attempts_left in (2, 1, 0):
        process = machine.start("ray", *arguments)
        until(lambda: process.poll() is not None or _has_started(machine), seconds=START_SECONDS, what="a node of Ray")  # noqa: B023
        if process.poll() is None:
            return
        machine.kill()  # Ray gives a node 30 s to start, and leaves processes behind
        assert attempts_left, _output(machine)


def _has_started(machine: Machine) -> bool:
    return "Ray runtime started" in _output(machine)


def _output(machine: Machine) -> str:
    return (machine.folder / "ray.log").read_text(errors="replace")


def alive_nodes(head: Machine) -> list[str]:
    """Addresses of the nodes that Ray takes for alive; a killed machine is among them until Ray has missed its heartbeats."""
    code = f"import ray; ray.init('{head.address}:{GCS}', logging_level='ERROR'); "
    code += "print(*(node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']))"
    result = head.run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stdout + result.stderr
    return sorted(result.stdout.split("\n")[-2].split())


def deploy(head: Machine, config: str) -> None:
    """Give Serve a config in its declarative form, as the KubeRay operator does."""
    file = head.folder / "serve.yaml"
    file.write_text(config)
    result = head.run(SERVE, "run", "--non-blocking", "--address", f"{head.address}:{GCS}", str(file), timeout=START_SECONDS)
    assert result.returncode == 0, result.stdout + result.stderr
