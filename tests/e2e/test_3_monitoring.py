"""Monitoring on a real cluster: everything is scraped, every query has data, and faults arrive as alerts and resolve.

Without Grafana, whose image a closed cluster may not have: its dashboards' queries are put to Prometheus.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
import yaml

from kuberay.ctl.api_client import port_forward
from kuberay.ctl.kube import Cluster
from monitoring.operator_rules import runbook_base_url
from tests.support import cluster
from tests.support.cluster import get, kubectl, load, make, request
from tests.support.figures import note
from tests.support.monitoring import Prometheus, queries, rules
from tests.support.probe import Pod, pod
from tests.support.waiting import until

JOBS = {
    "ray-head",
    "ray-worker",
    "ray-autoscaler",
    "ray-dashboard",
    "haproxy",
    "kube-state-metrics",
    "kubelet",
    "kubelet-containers",
    "kuberay-operator",
    "prometheus",
    "alertmanager",
}
NOT_EVERYWHERE = {"Training jobs"}
"""Panels that need the KubeRay operator's own metrics, which its manager tells only when it is asked to."""

ROWS = [
    {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2},
    {"sepal_length": 6.0, "sepal_width": 2.9, "petal_length": 4.5, "petal_width": 1.5},
    {"sepal_length": 6.5, "sepal_width": 3.0, "petal_length": 5.8, "petal_width": 2.2},
    {"sepal_length": 19.0, "sepal_width": 3.0, "petal_length": 5.8, "petal_width": 2.2},
]


@pytest.fixture(scope="module")
def prometheus(trained: str) -> Iterator[Prometheus]:
    """The stack beside the trained system; its Prometheus through a port-forward."""
    result = make("k8s-monitoring-deploy", MONITORING="no-grafana")
    assert result.code == 0, result.output
    try:
        with port_forward(Cluster.from_environment(), "prometheus", 9090) as address:
            yield Prometheus(address)
    finally:
        make("k8s-monitoring-delete", MONITORING="no-grafana")


@contextmanager
def mixed_load(key: str) -> Iterator[None]:
    """Some twenty requests a second: right ones, odd ones, wrong ones, single and in batches."""
    stopped = threading.Event()

    def ask() -> None:
        chance = random.Random(0)
        while not stopped.wait(0.1):
            kind = chance.random()
            row: dict[str, Any] = chance.choice(ROWS)
            with suppress(OSError):
                if kind < 0.1:
                    request("/predict/batch", key=key, row={"instances": ROWS})
                elif kind < 0.2:
                    request("/predict", key=key, row={"sepal_length": "long"})
                else:
                    request("/predict", key="wrong" if kind < 0.3 else key, row=row)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join(30)


def test_everything_is_scraped(prometheus: Prometheus) -> None:
    def missing() -> list[str]:
        targets = prometheus.targets()
        down = [f"{target['scrapeUrl']}: {target['lastError']}" for target in targets if target["health"] != "up"]
        return down + sorted(JOBS - {target["labels"]["job"] for target in targets})

    until(lambda: not missing() or None, seconds=180, every=2, what=f"all targets ({missing()})")
    assert "IrisApiWatchdog" in prometheus.alerts()
    (watchdog,) = [a for a in prometheus.get("/api/v1/alerts")["data"]["alerts"] if a["labels"]["alertname"] == "IrisApiWatchdog"]
    assert watchdog["annotations"]["runbook_url"] == f"{runbook_base_url()}#irisapiwatchdog"
    status = make("k8s-monitoring-status")
    assert status.code == 0, status.output


def _reaches_nothing(source: Pod, pairs: set[tuple[str, int]]) -> bool:
    return source.reaches(pairs) == set()


def test_prometheus_and_its_neighbours_answer_nobody_else(prometheus: Prometheus) -> None:
    ports = {"prometheus": 9090, "alertmanager": 9093, "kube-state-metrics": 8080, "alert-log": 8080}
    pairs = {(cluster.pods(f"app={app}")[0]["status"]["podIP"], port) for app, port in ports.items()}
    (replica,) = cluster.pods("app=iris-api,component=worker")[:1]
    (mlflow,) = cluster.pods("app=mlflow-server")
    with pod("unlabelled", {}) as stranger, pod("grafana-probe", {"app": "grafana"}) as grafana:
        sources = (stranger, Pod(replica["metadata"]["name"], "ray-worker"), Pod(mlflow["metadata"]["name"], "mlflow"))
        for source in sources:
            until(partial(_reaches_nothing, source, pairs), seconds=30, every=1, what=f"closed doors for {source.name}")
        prometheus_port = {pair for pair in pairs if pair[1] == 9090}
        until(lambda: grafana.reaches(pairs) == prometheus_port, seconds=30, every=1, what="Prometheus for Grafana, and no other")


def test_watching_stays_cheap(prometheus: Prometheus) -> None:
    ours = '{__name__=~"(model|http|api|training|iris_api)_.+", replica!=""}'
    per_replica = [int(float(series["value"][1])) for series in prometheus.query(f"count by (replica) ({ours})")]
    scraped = by_job(prometheus, "sum by (job) (scrape_samples_post_metric_relabeling)")
    seconds = by_job(prometheus, "max by (job) (scrape_duration_seconds)")
    head = value(prometheus, "prometheus_tsdb_head_series")
    resident = value(prometheus, 'process_resident_memory_bytes{job="prometheus"}') / 2**20
    worker = Pod(cluster.pods("app=iris-api,component=worker")[0]["metadata"]["name"], "ray-worker")
    size = int(worker.run("import urllib.request; print(len(urllib.request.urlopen('http://localhost:8080/metrics').read()))"))
    note(
        f"series of ours per replica {sorted(per_replica)}, of the cluster {head:.0f}; Prometheus {resident:.0f} MiB; "
        f"a worker's scrape {size / 1024:.0f} KiB; samples by job { {job: int(count) for job, count in scraped.items()} }; "
        f"seconds by job { {job: round(took, 3) for job, took in seconds.items()} }"
    )
    assert 50 < min(per_replica) <= max(per_replica) < 500
    assert head < 20_000
    assert resident < 512
    assert max(seconds.values()) < 10


def by_job(prometheus: Prometheus, expression: str) -> dict[str, float]:
    return {series["metric"]["job"]: float(series["value"][1]) for series in prometheus.query(expression)}


def value(prometheus: Prometheus, expression: str) -> float:
    (series,) = prometheus.query(expression)
    return float(series["value"][1])


def test_every_query_of_every_panel_and_every_rule_has_data_under_load(prometheus: Prometheus, key: str) -> None:
    with mixed_load(key):
        result = make("k8s-train")  # a second version: swaps, training pods, MLflow at work
        assert result.code == 0, result.output

        def empty() -> list[str]:
            now = time.time()
            missing = []
            for query in queries():
                window = {"query": query.expression, "start": str(now - 900), "end": str(now), "step": "15"}
                if query.panel not in NOT_EVERYWHERE and not prometheus.get("/api/v1/query_range", **window)["data"]["result"]:
                    missing.append(str(query))
            return missing + [rule["record"] for rule in rules("record") if not prometheus.query(rule["record"])]

        last: list[str] = ["not asked yet"]

        def all_have_data() -> bool:
            last[:] = empty()
            return not last

        try:
            until(all_have_data, seconds=300, every=10, what="data for every query")
        except AssertionError:
            pytest.fail(f"no data for {last}")
    unwell = [
        f"{rule['name']}: {rule.get('lastError')}"
        for group in prometheus.get("/api/v1/rules")["data"]["groups"]
        for rule in group["rules"]
        if rule["health"] != "ok"
    ]
    assert unwell == []

    def in_use() -> set[str]:
        return {series["metric"]["version"] for series in prometheus.query("model_info == 1")}

    until(lambda: in_use() == {"2"}, seconds=120, every=2, what="the second version, and it alone")


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_three_faults_arrive_at_the_receiver_and_resolve(prometheus: Prometheus, key: str) -> None:
    arrived: dict[str, float] = {}
    killing, stop = None, threading.Event()
    try:
        began = {
            "IrisApiModelRefused": store("corrupt"),
            "IrisApiMLflowDown": time.time(),
            "IrisApiReplicaCrashLooping": time.time(),
        }
        kubectl("-n", "mlops", "scale", "deployment/mlflow-server", "--replicas=0")
        killing = threading.Thread(target=kill_replicas, args=(stop,), daemon=True)
        killing.start()
        for alert in ("IrisApiModelRefused", "IrisApiMLflowDown", "IrisApiReplicaCrashLooping"):
            until(partial(received, alert, "firing"), seconds=600, every=1, what=f"{alert} at the receiver")
            arrived[alert] = time.time() - began[alert]
        assert request("/predict", key=key, row=ROWS[0]).status == 200
    finally:
        stop.set()
        if killing is not None:
            killing.join(60)
        store("repair")
        kubectl("-n", "mlops", "scale", "deployment/mlflow-server", "--replicas=1")
    repaired = time.monotonic()
    resolved = {}
    for alert in ("IrisApiModelRefused", "IrisApiMLflowDown", "IrisApiReplicaCrashLooping"):
        until(partial(received, alert, "resolved"), seconds=1200, every=2, what=f"the end of {alert} at the receiver")
        resolved[alert] = time.monotonic() - repaired
    note(
        "seconds from the fault to the receiver, and from the repair to the end: "
        + ", ".join(f"{alert} {arrived[alert]:.0f} and {resolved[alert]:.0f}" for alert in arrived)
    )
    severities = {line["alert"]: (line["receiver"], line["severity"]) for line in notifications()}
    assert severities["IrisApiModelRefused"] == ("tickets", "warning")
    assert severities["IrisApiWatchdog"] == ("watchdog", "none")


def test_removing_the_monitoring_does_not_touch_serving(prometheus: Prometheus, key: str) -> None:
    with load(20, key=key) as record:
        result = make("k8s-monitoring-delete", MONITORING="no-grafana")
        assert result.code == 0, result.output
        until(lambda: record.finished > 200, seconds=60, what="two hundred requests")
    note(str(record))
    assert record.failures == []
    assert get("deployment", "prometheus") == {}


def notifications() -> list[dict[str, Any]]:
    """What the alert log has received."""
    lines = kubectl("-n", "mlops", "logs", "deployment/alert-log", "--tail=-1").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def received(alert: str, status: str) -> bool:
    return any(line["alert"] == alert and line["status"] == status for line in notifications())


def kill_replicas(stop: threading.Event) -> None:
    """SIGKILL to a replica's process, one after another, until told to stop."""
    program = (
        "import os, pathlib, signal\n"
        "for entry in pathlib.Path('/proc').iterdir():\n"
        "    if entry.name.isdigit() and b'ServeReplica' in (entry / 'cmdline').read_bytes():\n"
        "        os.kill(int(entry.name), signal.SIGKILL)\n"
    )
    while not stop.wait(10):
        for worker in cluster.pods("app=iris-api,ray.io/node-type=worker")[:1]:
            kubectl(
                "-n", "mlops", "exec", worker["metadata"]["name"], "-c", "ray-worker", "--", "python", "-c", program, check=False
            )


def store(action: str) -> float:
    """`corrupt`: point to a copy of the served bundle with another byte; `repair`: point back. Returns the time of the change."""
    program = {
        "corrupt": (
            "import os, pathlib, shutil\n"
            "os.chdir('/app/models'); old = pathlib.Path(os.readlink('current'))\n"
            "new = old.with_name('999-' + old.name.partition('-')[2]); shutil.copytree(old, new)\n"
            "model = next(new.glob('model.*')); data = bytearray(model.read_bytes()); data[-1] ^= 1\n"
            "model.chmod(0o644); model.write_bytes(data)\n"
            "pathlib.Path('before').write_text(str(old)); os.symlink(new, 'aside'); os.replace('aside', 'current')\n"
        ),
        "repair": (
            "import os, pathlib, shutil\n"
            "os.chdir('/app/models'); before = pathlib.Path('before')\n"
            "if before.exists():\n"
            "    bad = pathlib.Path(os.readlink('current'))\n"
            "    os.symlink(before.read_text(), 'aside'); os.replace('aside', 'current'); before.unlink()\n"
            "    shutil.rmtree(bad, ignore_errors=True)\n"
        ),
    }[action]
    text = (cluster.ROOT / "kuberay" / "train" / "store-job.yaml").read_text()
    job = yaml.safe_load(text)
    job["metadata"]["name"] = f"iris-store-{action}"
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["command"], container["args"] = ["python", "-c"], [program + "import time; print(time.time())"]
    kubectl("-n", "mlops", "delete", "job", job["metadata"]["name"], "--ignore-not-found", "--wait=true")
    kubectl("apply", "-f", "-", text=json.dumps(job))
    kubectl("-n", "mlops", "wait", "--for=condition=complete", f"job/{job['metadata']['name']}", "--timeout=120s")
    return float(kubectl("-n", "mlops", "logs", f"job/{job['metadata']['name']}", "--tail=1"))
