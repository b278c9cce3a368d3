"""Several nodes and none: the overlay for nodes with its store, priorities and pools, and the night in which no pod runs.

They use a namespace and a port of their own, so they run beside an installation. The cluster may have one node: two nodes are
tried with Ray alone in tests/faults/test_nodes.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import cluster
from tests.support.cluster import ROW, kubectl, make, request
from tests.support.figures import note
from tests.support.waiting import until

NAMESPACE = os.environ.get("K8S_NS", "nodes")
SERVING, JOBS = "app=iris-api", "app=iris-train"
POOL = "iris-api/pool"
STORE = Path("/var/tmp") / f"iris-api-{NAMESPACE}"
SLOT = "example.com/slot"
"""A resource of which the node gets one, so that two pods cannot have it."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Every object of these tests is in it, but for the two PriorityClasses, which stay."""
    yield
    result = make("k8s-clean", K8S_NS=NAMESPACE)
    assert result.code == 0, result.output


def overlay(folder: Path, resource: str, *components: str, patches: Sequence[Mapping[str, Any]] = ()) -> str:
    """A user's overlay over kuberay/RESOURCE; the API gets any free port of the node."""
    folder.mkdir(exist_ok=True)
    service = {"type": "NodePort", "ports": [{"name": "serve", "port": 8000, "targetPort": 8000}]}
    port = {
        "target": {"kind": "RayService"},
        "patch": json.dumps([{"op": "replace", "path": "/spec/serveService/spec", "value": service}]),
    }
    document = {
        "resources": [os.path.relpath(cluster.ROOT / "kuberay" / resource, folder)],
        "components": [os.path.relpath(cluster.ROOT / "kuberay" / "components" / name, folder) for name in components],
        "patches": [port, *patches],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(document))
    return str(folder)


def replaced(kind: str, name: str, **values: Any) -> dict[str, Any]:
    """A patch of an object's fields; `__` in a name is a `/` of the path."""
    changes = [{"op": "add", "path": "/" + path.replace("__", "/"), "value": value} for path, value in values.items()]
    return {"target": {"kind": kind, "name": name}, "patch": json.dumps(changes)}


def deploy(folder: str, secret: Path) -> str:
    """The key of the API, which answers."""
    result = make("k8s-deploy", OVERLAY=folder, K8S_NS=NAMESPACE, K8S_SECRET=str(secret))
    assert result.code == 0, result.output
    return cluster.api_key(NAMESPACE)


def port() -> int:
    (found,) = cluster.get("service", "iris-api-service", NAMESPACE)["spec"]["ports"]
    return int(found["nodePort"])


def predicts(key: str) -> None:
    reply = request("/predict", key=key, row=ROW, port=port())
    assert (reply.status, json.loads(reply.body)["prediction"]) == (200, "setosa")


class Client:
    """One that asks for a prediction again and again; it keeps what it gets, and when."""

    def __init__(self, key: str, number: int) -> None:
        self._key, self._port = key, number
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: list[tuple[float, str, str]] = []
        """Moment, status or kind of error, Retry-After."""

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.1):
            started = time.monotonic()
            try:
                reply = request("/predict", key=self._key, row=ROW, port=self._port, timeout=20)
                answer = (str(reply.status), reply.headers.get("retry-after", ""))
            except OSError as error:
                answer = (type(error).__name__, "")
            self.answers.append((started, *answer))

    def between(self, start: float, end: float) -> Counter[str]:
        return Counter(answer for moment, answer, _ in self.answers if start <= moment < end)

    def since(self, start: float, answer: str) -> float | None:
        """Seconds from `start` to the first such answer."""
        return next((moment - start for moment, got, _ in self.answers if moment >= start and got == answer), None)


def test_no_pod_runs_at_night_requests_get_503_and_the_morning_brings_everything_back(secret_file: Path, tmp_path: Path) -> None:
    key = deploy(overlay(tmp_path / "night", "overlays/night"), secret_file)
    assert make("k8s-train", K8S_NS=NAMESPACE).code == 0
    predicts(key)
    with Client(key, port()) as client:
        until(lambda: client.answers, what="an answer")
        evening = time.monotonic()
        kubectl("-n", NAMESPACE, "create", "job", "evening", "--from=cronjob/iris-api-suspend")
        # Pods that are being deleted finish the requests that they have, and answer new ones until then.
        until(
            lambda: not cluster.pods(SERVING, NAMESPACE, ending=True), seconds=180, every=0.5, what="the end of all pods of the API"
        )
        asleep = time.monotonic()
        until(lambda: client.since(asleep, "503") is not None, what="an honest answer")
        time.sleep(10)  # a while of the night, in which every request is looked at
        morning = time.monotonic()
        kubectl("-n", NAMESPACE, "create", "job", "morning", "--from=cronjob/iris-api-resume")
        until(lambda: client.since(morning, "200") is not None, seconds=300, every=0.5, what="a prediction")
        until(lambda: cluster.get("job", "evening", NAMESPACE)["status"].get("succeeded"), seconds=60, every=1, what="its end")
        awake = time.monotonic()
    back = client.since(morning, "200")
    assert back is not None
    night, falling = client.between(asleep + 2, morning), client.between(evening, asleep + 2)
    waking, after = client.between(morning, morning + back), client.between(morning + back, awake)
    note(f"suspended after {asleep - evening:.0f} s (answers {dict(falling)}); at night {dict(night)}")
    note(f"resumed: first prediction after {back:.0f} s (before it {dict(waking)}, after it {dict(after)})")
    assert set(night) == {"503"}
    assert all(wait for moment, status, wait in client.answers if status == "503" and asleep + 2 <= moment < morning)
    assert set(falling) | set(waking) | set(after) <= {"200", "503"}
    slices = kubectl("-n", NAMESPACE, "get", "endpointslices", "-o", "name")
    assert "iris-api-night" not in slices


def test_the_overlay_for_nodes_serves_and_trains_from_one_store_with_serving_first(secret_file: Path, tmp_path: Path) -> None:
    """The store is a folder of the node, which stands for a file system that every node mounts."""
    name = f"iris-{NAMESPACE}"
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "iris-api"}},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "storageClassName": name,
            "claimRef": {"namespace": NAMESPACE, "name": "models-pvc"},
            "hostPath": {"path": str(STORE), "type": "Directory"},
        },
    }
    STORE.mkdir(exist_ok=True)
    shutil.chown(STORE, 10001, 10001)
    (node,) = (one["metadata"]["name"] for one in json.loads(kubectl("get", "nodes", "-o", "json"))["items"][:1])
    try:
        kubectl("apply", "-f", "-", text=json.dumps(volume))
        kubectl("label", "node", node, f"{POOL}=serving", "--overwrite")
        claim = replaced("PersistentVolumeClaim", "models-pvc", spec__storageClassName=name)
        key = deploy(overlay(tmp_path / "nodes", "overlays/nodes", "node-pools", patches=[claim]), secret_file)
        serving = cluster.pods(SERVING, NAMESPACE)
        assert {pod["spec"]["priorityClassName"] for pod in serving} == {"iris-api-serving"}
        assert {pod["spec"]["priority"] for pod in serving} == {1000}
        assert cluster.get("pvc", "models-pvc", NAMESPACE)["status"]["accessModes"] == ["ReadWriteMany"]
        jobs = overlay(tmp_path / "jobs", "overlays/nodes/train", "node-pools")
        with training(jobs) as process:
            until(lambda: unschedulable(), seconds=120, every=0.5, what="a training that no node takes")
            kubectl("label", "node", node, f"{POOL}=training", "--overwrite")
            with Client(key, port()) as client:
                assert process.wait(600) == 0
            started, ended = client.answers[0][0], time.monotonic()
        assert {pod["spec"]["priority"] for pod in cluster.pods(JOBS, NAMESPACE)} <= {-1}
        predicts(key)
        assert (STORE / "current").exists()
        answers = client.between(started, ended)
        note(f"search beside the API on one node, {ended - started:.0f} s: {dict(answers)}")
        assert set(answers) <= {"200", "503"}  # 503: until the first model is there
    finally:
        kubectl("label", "node", node, f"{POOL}-", check=False)
        make("k8s-clean", K8S_NS=NAMESPACE)
        kubectl("delete", "pv", name, "--ignore-not-found", "--wait=false")
        shutil.rmtree(STORE, ignore_errors=True)


@contextlib.contextmanager
def training(folder: str) -> Iterator[subprocess.Popen[bytes]]:
    command = ["make", "--no-print-directory", "k8s-train", f"TRAIN={folder}", f"K8S_NS={NAMESPACE}"]
    with subprocess.Popen(command, cwd=cluster.ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def unschedulable() -> bool:
    return any(
        condition.get("reason") == "Unschedulable"
        for pod in cluster.pods(JOBS, NAMESPACE)
        for condition in pod["status"].get("conditions", [])
    )


def test_a_pod_that_serves_takes_the_place_of_a_training_and_not_the_other_way_round(tmp_path: Path) -> None:
    (node,) = (one["metadata"]["name"] for one in json.loads(kubectl("get", "nodes", "-o", "json"))["items"][:1])
    classes = kubectl("kustomize", overlay(tmp_path / "priority", "overlays/api", "priority"))
    wanted = [one for one in yaml.safe_load_all(classes) if one["kind"] == "PriorityClass"]
    kubectl("apply", "-f", "-", text=yaml.safe_dump_all(wanted))
    kubectl("create", "namespace", NAMESPACE, check=False)
    give(node, 1)
    try:
        start("training", "iris-api-training")
        until(lambda: phase("training") == "Running", seconds=60, every=0.5, what="the training")
        started = time.monotonic()
        start("serving", "iris-api-serving")
        until(lambda: phase("serving") == "Running", seconds=60, every=0.2, what="the pod that serves")
        note(f"a pod that serves ran {time.monotonic() - started:.1f} s after it was created, in place of a training")
        assert phase("training") in ("", "Failed")
        start("another-training", "iris-api-training")
        until(lambda: "Insufficient" in message("another-training"), seconds=30, every=0.5, what="a training that waits")
        assert phase("serving") == "Running"
    finally:
        kubectl("-n", NAMESPACE, "delete", "pods", "--all", "--grace-period=0", "--force", check=False)
        kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)
        give(node, None)


def give(node: str, count: int | None) -> None:
    """An extended resource of the node: room that other pods of the cluster do not need."""
    change = [{"op": "add" if count else "remove", "path": f"/status/capacity/{SLOT.replace('/', '~1')}", "value": str(count)}]
    kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(change))


def start(name: str, priority: str) -> None:
    container = {
        "name": "wait",
        "image": "registry.k8s.io/pause:3.10",
        "resources": {"requests": {SLOT: "1"}, "limits": {SLOT: "1"}},
    }
    spec = {"priorityClassName": priority, "terminationGracePeriodSeconds": 1, "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}
    kubectl("apply", "-f", "-", text=json.dumps(pod))


def phase(name: str) -> str:
    pod = cluster.get("pod", name, NAMESPACE)
    return "" if "deletionTimestamp" in pod.get("metadata", {}) else str(pod.get("status", {}).get("phase", ""))


def message(name: str) -> str:
    return json.dumps(cluster.get("pod", name, NAMESPACE).get("status", {}).get("conditions", []))
