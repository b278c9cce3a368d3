from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring import operator_rules
from tests.monitoring.tools import run
from tests.support.monitoring import BASE, ROOT, RULES, rules

TESTS = sorted((ROOT / "monitoring" / "tests").glob("*.test.yaml"))
ALERTS = rules("alert")
NAMES = [rule["alert"] for rule in ALERTS]
WITHOUT_VALUE = {
    "IrisApiDown",
    "RayHeadDown",
    "ScrapeTargetMissing",
    "TrainingJobFailed",
    "TrainingRefused",
    "PodCrashLooping",
    "ConfigurationNotLoaded",
}
"""Alerts about what is there or not: their value is always 1, or always 0."""
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_alerts_fire_when_they_should_and_only_then(file: Path) -> None:
    run("promtool", "test", "rules", str(file))


@pytest.mark.parametrize("alert", NAMES)
def test_each_alert_is_shown_firing_silent_and_with_a_series_that_flaps_or_is_missing(alert: str) -> None:
    cases = {test["name"]: test for file in TESTS for test in yaml.safe_load(file.read_text())["tests"]}
    mine = {name: test for name, test in cases.items() if re.match(rf"{alert}\b", name)}

    def expected(test: dict[str, Any]) -> list[list[Any]]:
        return [case["exp_alerts"] for case in test["alert_rule_test"] if case["alertname"] == alert]

    assert any(any(found) for test in mine.values() for found in [expected(test)]), "no case fires"
    if alert == "Watchdog":
        return  # it is never silent
    assert any(" is silent " in name and not any(expected(test)) for name, test in mine.items()), "no case is silent"
    assert any(name.startswith(f"{alert}, ") for name in mine), "no case for a flapping or missing series"


def test_every_recorded_series_is_behind_an_alert_or_a_value_of_a_case() -> None:
    records = {rule["record"]: rule["expr"] for rule in rules("record")}
    cases = [test for file in TESTS for test in yaml.safe_load(file.read_text())["tests"]]
    shown = " ".join(
        [rule["expr"] for rule in ALERTS] + [one["expr"] for test in cases for one in test.get("promql_expr_test", [])]
    )
    proven: set[str] = set()
    while found := {name for name in records if re.search(rf"{name}(?![\w:])", shown)} - proven:
        proven |= found
        shown = " ".join(records[name] for name in found)
    assert proven == set(records)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_it_is_what_happened_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "none"}
    assert rule["labels"]["component"] in {"serving", "model", "training", "ray", "kubernetes", "monitoring"}
    summary = rule["annotations"]["summary"]
    assert summary.endswith((".", ")."))
    valued = "$value" in summary
    assert valued != (rule["alert"] in WITHOUT_VALUE), "a summary holds the value, unless there is nothing to say with it"
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.parametrize("alert", NAMES)
def test_each_alert_has_a_section_in_the_runbook(alert: str) -> None:
    section = re.search(rf"^## {alert}\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section is not None, f"docs/runbook.md has no section {alert}"
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
    seen = set()
    for monitor in yaml.safe_load_all(file.read_text()):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            (job,) = [rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job"]
            plain = [{_snake(key): value for key, value in rule.items()} for rule in endpoint["metricRelabelings"]]
            assert plain == scraped[job]["metric_relabel_configs"]
            assert endpoint["relabelings"][-1]["targetLabel"] == "ray_cluster"
            seen.add(job)
    assert seen == {"ray-head", "ray-worker", "ray-autoscaler", "ray-dashboard", "haproxy"}


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda found: f"_{found.group().lower()}", name)
