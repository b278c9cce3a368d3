from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kuberay.ctl.kube import Cluster
from kuberay.ctl.manifests import build
from monitoring.local_prometheus import configuration
from monitoring.stack import in_namespace
from tests.monitoring.tools import path, run
from tests.support.monitoring import BASE, Prometheus, queries, rules
from tests.support.waiting import until

DOCUMENTS = [
    document
    for file in BASE.glob("*.yaml")
    if file.name != "kustomization.yaml"
    for document in yaml.safe_load_all(file.read_text())
]
DEPLOYMENTS = {document["metadata"]["name"]: document for document in DOCUMENTS if document["kind"] == "Deployment"}
CONFIG = BASE / "prometheus" / "prometheus.yaml"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_pod_meets_the_restricted_standard_with_a_read_only_root_and_a_memory_limit(name: str) -> None:
    pod = DEPLOYMENTS[name]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is (name in {"prometheus", "kube-state-metrics"})
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["imagePullPolicy"] == "IfNotPresent"
        assert container["readinessProbe"]["httpGet"]
        assert container["resources"]["limits"]["memory"]
        assert not container["image"].endswith(":latest") or container["image"] == "iris-api:latest"


def test_nothing_is_exposed_and_every_pod_is_behind_a_network_policy() -> None:
    services = [document for document in DOCUMENTS if document["kind"] == "Service"]
    assert len(services) == len(DEPLOYMENTS)
    assert all(service["spec"].get("type", "ClusterIP") == "ClusterIP" for service in services)
    assert not [document for document in DOCUMENTS if document["kind"] in {"Ingress", "HTTPRoute"}]
    (closed,) = [
        document for document in DOCUMENTS if document["kind"] == "NetworkPolicy" and document["spec"].get("ingress") == []
    ]
    for deployment in DEPLOYMENTS.values():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert closed["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="NOT TESTED: kubectl is not installed")
def test_the_stack_in_another_namespace_names_no_other() -> None:
    documents = in_namespace(build(Cluster(("kubectl",), "team-a"), BASE), "team-a")
    assert "mlops" not in json.dumps(documents)
    names = {document["metadata"]["name"] for document in documents if document["kind"] == "ClusterRole"}
    assert names == {"team-a-prometheus"}


def test_rights_are_few_and_read_only() -> None:
    for document in DOCUMENTS:
        for rule in document.get("rules", []):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert set(rule["verbs"]) <= {"get", "list", "watch"}
            assert "secrets" not in rule["resources"]
    (wide,) = [document for document in DOCUMENTS if document["kind"] == "ClusterRole"]
    assert [resource for rule in wide["rules"] for resource in rule["resources"]] == ["nodes", "nodes/metrics"]


def test_the_config_maps_hold_the_files_that_are_checked() -> None:
    generators = {entry["name"]: entry for entry in yaml.safe_load((BASE / "kustomization.yaml").read_text())["configMapGenerator"]}
    for generator in generators.values():
        assert all((BASE / name).is_file() for name in generator.get("files", []))
    assert {Path(name).name for name in generators["prometheus-rules"]["files"]} == {
        file.name for file in (BASE / "rules").glob("*.yaml")
    }
    manifests = "".join(file.read_text() for file in BASE.glob("*.yaml"))
    used = set(re.findall(r"configMap(?:KeyRef)?: \{name: ([\w-]+)", manifests))
    assert used == set(generators)


@pytest.mark.parametrize("where", ["cluster", "local"])
def test_promtool_finds_nothing_wrong_with_the_configuration(where: str, tmp_path: Path) -> None:
    text = configuration(8000, 9090) if where == "local" else _for_promtool(CONFIG.read_text(), tmp_path)
    file = tmp_path / "prometheus.yaml"
    file.write_text(text)
    run("promtool", "check", "config", "--lint=all", "--lint-fatal", str(file))


def _for_promtool(text: str, folder: Path) -> str:
    """With the paths of this machine; and Debian's Prometheus is built without service discovery for Kubernetes."""
    token = folder / "token"
    token.write_text("token")
    text = text.replace("/var/run/secrets/kubernetes.io/serviceaccount/token", str(token))
    text = text.replace("/etc/prometheus/rules", str(BASE / "rules"))
    return re.sub(r"kubernetes_sd_configs: .*", "static_configs: []", text)


def test_every_job_that_a_rule_asks_for_is_scraped() -> None:
    jobs = {job["job_name"] for job in yaml.safe_load(CONFIG.read_text())["scrape_configs"]}
    assert {"ray-head", "ray-worker", "ray-autoscaler", "ray-dashboard", "haproxy", "kuberay-operator", "kube-state-metrics"} < jobs
    text = " ".join([rule["expr"] for rule in rules("alert") + rules("record")] + [query.expression for query in queries()])
    assert set(re.findall(r'\bjob="([\w-]+)"', text)) <= jobs


def test_a_prometheus_expands_the_setting_into_the_address_of_the_runbook(unused_port: int, tmp_path: Path) -> None:
    settings = yaml.safe_load(CONFIG.read_text())["global"]
    settings.update(scrape_interval="1s", scrape_timeout="1s", evaluation_interval="1s")
    file = tmp_path / "prometheus.yaml"
    file.write_text(yaml.safe_dump({"global": settings, "rule_files": [str(BASE / "rules" / "*.yaml")]}))
    command = [
        path("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{unused_port}",
        "--enable-feature=expand-external-labels",  # the default since Prometheus 3, which the manifests run
    ]
    environment = {**os.environ, "RUNBOOK_BASE_URL": "https://wiki.example.org/runbook"}
    prometheus = Prometheus(f"http://127.0.0.1:{unused_port}")

    def urls() -> set[str]:
        try:
            alerts = prometheus.get("/api/v1/alerts")["data"]["alerts"]
        except OSError:
            return set()
        return {alert["annotations"]["runbook_url"] for alert in alerts if alert["labels"]["alertname"] == "IrisApiWatchdog"}

    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(urls, seconds=60, every=0.2, what="the watchdog")
        assert urls() == {"https://wiki.example.org/runbook#irisapiwatchdog"}
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def alert_log(unused_port: int) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    program = BASE / "alertmanager" / "alert_log.py"
    process = subprocess.Popen([sys.executable, "-I", program, str(unused_port)], stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: post(unused_port, None) == 200, seconds=20, what="the alert log")
        yield unused_port, process
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def post(port: int, body: bytes | None) -> int | None:
    """Status of a POST to /pager (a GET without a body); None when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET" if body is None else "POST", "/pager", body)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def test_the_alert_log_writes_one_line_per_alert_and_refuses_rubbish(alert_log: tuple[int, Any]) -> None:
    port, process = alert_log
    alert = {
        "status": "firing",
        "labels": {"alertname": "IrisApiModelRefused", "severity": "warning"},
        "annotations": {"summary": "a\nb", "description": "c", "runbook_url": "https://example.org/runbook.md#irisapimodelrefused"},
        "startsAt": "2026-03-01T12:00:00Z",
    }
    for rubbish in (b"rubbish", b"[]", b"{}", b'{"alerts": [{}]}'):
        assert post(port, rubbish) == 400
    assert post(port, json.dumps({"alerts": [alert, {**alert, "status": "resolved"}]}).encode()) == 200
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [line["status"] for line in lines] == ["firing", "resolved"]
    assert lines[0] == {
        "receiver": "pager",
        "status": "firing",
        "alert": "IrisApiModelRefused",
        "severity": "warning",
        "summary": "a\nb",
        "description": "c",
        "runbook": "https://example.org/runbook.md#irisapimodelrefused",
        "labels": alert["labels"],
        "since": "2026-03-01T12:00:00Z",
    }
