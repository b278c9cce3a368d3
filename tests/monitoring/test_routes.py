from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.tools import run, version
from tests.support.monitoring import BASE, rules

FILE = BASE / "alertmanager" / "alertmanager.yaml"
CONFIG = yaml.safe_load(FILE.read_text())
RECEIVERS = {"critical": "pager", "warning": "tickets", "none": "watchdog"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped file; for an Alertmanager before 0.26, which reads no addresses from files, with addresses in it."""
    text = FILE.read_text()
    if version("amtool") < (0, 26):
        text = text.replace("url_file: /", "url: http://example.org/")
    file = tmp_path_factory.mktemp("alertmanager") / "alertmanager.yaml"
    file.write_text(text)
    return file


def test_amtool_finds_nothing_wrong_with_the_configuration(config: Path) -> None:
    assert "SUCCESS" in run("amtool", "check-config", str(config))


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])
def test_each_alert_reaches_the_receiver_meant_for_it(rule: dict[str, Any], config: Path) -> None:
    labels = {"alertname": rule["alert"], "namespace": "mlops", **rule["labels"]}
    routes = run(
        "amtool", "config", "routes", "test", f"--config.file={config}", *(f"{name}={value}" for name, value in labels.items())
    )
    assert routes.split()[-1] == RECEIVERS[rule["labels"]["severity"]]


def test_an_alert_with_an_unknown_severity_becomes_a_ticket(config: Path) -> None:
    assert (
        run("amtool", "config", "routes", "test", f"--config.file={config}", "alertname=Other", "severity=odd").split()[-1]
        == "tickets"
    )


def test_no_receiver_leads_back_to_alertmanager_and_no_address_is_in_the_file() -> None:
    hooks = [hook for receiver in CONFIG["receivers"] for hook in receiver["webhook_configs"]]
    assert all(set(hook) == {"url_file", "send_resolved"} for hook in hooks)
    literals = yaml.safe_load((BASE / "kustomization.yaml").read_text())["secretGenerator"][0]["literals"]
    addresses = dict(literal.split("=", 1) for literal in literals)
    assert {Path(hook["url_file"]).name for hook in hooks} == set(addresses)
    assert not any("alertmanager" in address for address in addresses.values())


def test_inhibitions_name_alerts_and_labels_that_exist() -> None:
    alerts = {rule["alert"] for rule in rules("alert")}
    components = {rule["labels"]["component"] for rule in rules("alert")}
    for rule in CONFIG["inhibit_rules"]:
        for matcher in [*rule["source_matchers"], *rule["target_matchers"]]:
            name, _, value = matcher.partition(" ")
            values = set(value.split(" ", 1)[1].strip('"').split("|"))
            if name == "alertname":
                assert values <= alerts
            elif name == "component":
                assert values <= components
