"""The shipped rules and dashboards as the tests read them, and a client for a running Prometheus."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serve_app.loopback import direct_opener

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "monitoring" / "base"
DASHBOARDS = sorted((BASE / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((BASE / "rules").glob("*.yaml"))


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel, as Prometheus gets it."""

    dashboard: str
    panel: str
    expression: str

    def __str__(self) -> str:
        return f"{self.dashboard} / {self.panel}"


def rules(kind: str) -> list[dict[str, Any]]:
    """Rules of the kind `alert` or `record`, from all files."""
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels, the titles of rows left out."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(**values_of: str) -> Iterator[Query]:
    """Every query of every panel and every mark, with the variables replaced: `values_of` by name, else everything."""
    values = {"__rate_interval": "2m", "namespace": ".*", "pod": ".*", "feature": "petal_length", **values_of}
    for file in DASHBOARDS:
        document = json.loads(file.read_text())
        for panel in panels(document):
            for target in panel["targets"]:
                yield Query(document["title"], panel["title"], substitute(target["expr"], values))
        for mark in document["annotations"]["list"]:
            yield Query(document["title"], mark["name"], substitute(mark["expr"], values))


def substitute(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"${name}", value)
    return text


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running Prometheus (or Alertmanager) at an address."""

    address: str

    def get(self, path: str, **parameters: str) -> Any:
        text = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        with direct_opener().open(f"{self.address}{path}{text}", timeout=30) as reply:
            return json.load(reply)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The newest samples of an expression."""
        samples: list[dict[str, Any]] = self.get("/api/v1/query", query=expression)["data"]["result"]
        return samples

    def targets(self) -> list[dict[str, Any]]:
        targets: list[dict[str, Any]] = self.get("/api/v1/targets", state="active")["data"]["activeTargets"]
        return targets

    def alerts(self) -> dict[str, str]:
        """State of each alert that is pending or firing: the worst, by name."""
        states: dict[str, str] = {}
        for alert in self.get("/api/v1/alerts")["data"]["alerts"]:
            name = alert["labels"]["alertname"]
            if states.get(name) != "firing":
                states[name] = alert["state"]
        return states
