from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring import local_prometheus, operator_rules
from tests.monitoring.tools import run
from tests.support.monitoring import BASE, ROOT, RULES, rules

TESTS = sorted((ROOT / "monitoring" / "tests").glob("*.test.yaml"))
ALERTS = rules("alert")
NAMES = [rule["alert"] for rule in ALERTS]
WITHOUT_VALUE = {
    "IrisApiDown",
    "IrisApiRayHeadDown",
    "IrisApiScrapeTargetMissing",
    "IrisApiTrainingJobFailed",
    "IrisApiAdoptingJobFailed",
    "IrisApiTrainingRefused",
    "IrisApiPodCrashLooping",
    "IrisApiConfigurationNotLoaded",
}
"""Alerts whose value is always 1, or always 0: it says nothing."""
RUNBOOK = (ROOT / "docs" / "how-to" / "runbook.md").read_text()
RUNBOOK_URL = operator_rules.runbook_base_url()
STACK_ONLY = {
    rule["alert"]
    for group in yaml.safe_load((BASE / "rules" / "alerts.yaml").read_text())["groups"]
    if group["name"] in operator_rules.STACK_ONLY
    for rule in group["rules"]
}


def anchors(page: str) -> set[str]:
    """The anchors of the headings of a Markdown page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_alerts_fire_when_they_should_and_only_then(file: Path) -> None:
    run("promtool", "test", "rules", str(file))


@pytest.mark.parametrize("alert", NAMES)
def test_each_alert_is_shown_firing_silent_and_with_a_series_that_flaps_or_is_missing(alert: str) -> None:
    cases = {test["name"]: test for file in TESTS for test in yaml.safe_load(file.read_text())["tests"]}
    own = {name: test for name, test in cases.items() if re.match(rf"{alert}\b", name)}

    def expected(test: dict[str, Any]) -> list[list[Any]]:
        return [case["exp_alerts"] for case in test["alert_rule_test"] if case["alertname"] == alert]

    assert any(any(expected(test)) for test in own.values()), "no case fires"
    if alert == "IrisApiWatchdog":
        return  # it is never silent
    assert any(" is silent " in name and not any(expected(test)) for name, test in own.items()), "no case is silent"
    assert any(name.startswith(f"{alert}, ") for name in own), "no case for a flapping or missing series"


def test_every_recorded_series_is_behind_an_alert_or_a_value_of_a_case() -> None:
    records = {rule["record"]: rule["expr"] for rule in rules("record")}
    cases = [test for file in TESTS for test in yaml.safe_load(file.read_text())["tests"]]
    shown = " ".join(
        [rule["expr"] for rule in ALERTS] + [one["expr"] for test in cases for one in test.get("promql_expr_test", [])]
    )
    proven: set[str] = set()
    while used := {name for name in records if re.search(rf"{name}(?![\w:])", shown)} - proven:
        proven |= used
        shown = " ".join(records[name] for name in used)
    assert proven == set(records)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_has_the_prefix_of_the_product_a_severity_two_texts_and_an_address(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("IrisApi")
    assert rule["labels"]["severity"] in {"critical", "warning", "none"}
    assert rule["labels"]["component"] in {"serving", "model", "training", "ray", "kubernetes", "monitoring"}
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    for text in (annotations["summary"], annotations["description"]):
        assert text[0].isupper() or text.startswith("{{")
        assert text.endswith(".")
    assert ("$value" in annotations["summary"] + annotations["description"]) != (rule["alert"] in WITHOUT_VALUE)
    assert annotations["runbook_url"] == f"{operator_rules.BASE_URL}#{rule['alert'].lower()}"


def test_the_address_of_the_runbook_is_absolute_and_every_alert_leads_to_a_section_of_the_page() -> None:
    assert re.fullmatch(r"https://[\w.-]+/[\w./-]+/docs/how-to/runbook\.md", RUNBOOK_URL)
    assert {rule["annotations"]["runbook_url"].rpartition("#")[2] for rule in ALERTS} <= anchors(RUNBOOK)


def test_each_alert_that_fires_in_a_case_shows_an_absolute_address() -> None:
    """promtool has expanded these annotations, because the cases pass."""
    for file in TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                for alert in case["exp_alerts"]:
                    assert alert["exp_annotations"]["runbook_url"] == f"{RUNBOOK_URL}#{case['alertname'].lower()}"


def test_prometheus_gets_the_address_of_the_runbook_from_the_setting() -> None:
    prometheus = yaml.safe_load((BASE / "prometheus" / "prometheus.yaml").read_text())
    assert prometheus["global"]["external_labels"] == {"runbook_base_url": "${RUNBOOK_BASE_URL}"}
    (deployment,) = [
        document for document in yaml.safe_load_all((BASE / "prometheus.yaml").read_text()) if document["kind"] == "Deployment"
    ]
    (variable,) = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert variable == {
        "name": "RUNBOOK_BASE_URL",
        "valueFrom": {"configMapKeyRef": {"name": "monitoring-settings", "key": "RUNBOOK_BASE_URL"}},
    }
    local = yaml.safe_load(local_prometheus.configuration(8000, 9090))
    assert local["global"]["external_labels"] == {"runbook_base_url": RUNBOOK_URL}


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_the_rules_of_the_operator_fire_alike_without_an_external_label(file: Path, tmp_path: Path) -> None:
    rule_file = tmp_path / "rules.yaml"
    rule_file.write_text(yaml.safe_dump(yaml.safe_load(operator_rules.FILE.read_text())["spec"]))
    head, *cases = re.split(r"^(?=  - name: )", file.read_text(), flags=re.MULTILINE)  # as text: to YAML 1.1, `0x30` is a number
    cases = [case for case in cases if not any(f"alertname: {alert}" in case for alert in STACK_ONLY)]
    text = re.sub(r"^rule_files: .*$", f"rule_files: [{rule_file}]", head, flags=re.MULTILINE) + "".join(cases)
    copy = tmp_path / file.name
    copy.write_text(re.sub(r"^    external_labels: .*\n", "", text, flags=re.MULTILINE))
    run("promtool", "test", "rules", str(copy))


def built(folder: Path, text: str) -> list[dict[str, Any]]:
    """The documents of a kustomization beside the shipped ones."""
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(text)
    output = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    return list(yaml.safe_load_all(output.stdout))


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="NOT TESTED: kubectl is not installed")
@pytest.mark.parametrize("variant", ["base", "overlays/operator"])
def test_an_overlay_sets_the_address_of_the_runbook_as_the_docs_show(variant: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "how-to" / "monitoring.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "RUNBOOK_BASE_URL" in block and f"../monitoring/{variant}]" in block]
    shutil.copytree(ROOT / "monitoring", tmp_path / "monitoring")
    documents = built(tmp_path / "my-monitoring", block)
    if variant == "base":
        (settings,) = [d for d in documents if d["metadata"]["name"].startswith("monitoring-settings")]
        assert settings["data"] == {"RUNBOOK_BASE_URL": "https://wiki.example.org/iris-api/runbook"}
    else:
        (rule,) = [document for document in documents if document["kind"] == "PrometheusRule"]
        urls = {r["annotations"]["runbook_url"] for group in rule["spec"]["groups"] for r in group["rules"] if "alert" in r}
        assert urls == {f"https://wiki.example.org/iris-api/runbook#{name.lower()}" for name in set(NAMES) - STACK_ONLY}


@pytest.mark.parametrize("alert", NAMES)
def test_each_alert_has_a_section_in_the_runbook(alert: str) -> None:
    section = re.search(rf"^## {alert}\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/how-to/runbook.md has no section {alert}"
    for part in ("Meaning", "Impact", "Check", "Fix", "Silence when"):
        assert f"**{part}" in section.group(1), f"{alert}: nothing is said under {part}"


def test_the_runbook_has_no_section_for_an_alert_that_is_gone() -> None:
    assert set(re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)) == set(NAMES)


def test_the_operator_gets_the_same_rules() -> None:
    assert operator_rules.FILE.read_text() == operator_rules.text(), "run `make dashboards`"


def test_the_pod_monitors_keep_and_rename_as_the_configuration_does() -> None:
    scraped = {
        job["job_name"]: job for job in yaml.safe_load((BASE / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"]
    }
    file = ROOT / "monitoring" / "components" / "operator" / "pod-monitors.yaml"
    jobs = set()
    for monitor in yaml.safe_load_all(file.read_text()):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            (job,) = [rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job"]
            plain = [{_snake(key): value for key, value in rule.items()} for rule in endpoint["metricRelabelings"]]
            assert plain == scraped[job]["metric_relabel_configs"]
            assert endpoint["relabelings"][-1]["targetLabel"] == "ray_cluster"
            jobs.add(job)
    assert jobs == {"ray-head", "ray-worker", "ray-autoscaler", "ray-dashboard", "haproxy"}


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: f"_{match.group().lower()}", name)
