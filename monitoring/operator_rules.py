"""Writes the PrometheusRule of components/operator from base/rules: `python -m monitoring.operator_rules`.

Clusters with the Prometheus operator load the same rules from this object. A test compares the file with `text()`.
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
FILE = HERE / "components" / "operator" / "prometheus-rule.yaml"
RULES = ("recording.yaml", "alerts.yaml")
STACK_ONLY = {"iris-monitoring-alerts"}
"""Groups about this stack itself, which does not run beside the operator."""

HEAD = "# Generated from monitoring/base/rules by `make dashboards`; do not edit.\n"


BASE_URL = "{{ $externalLabels.runbook_base_url }}"
"""The template in base/rules: the Prometheus of the operator does not have this external label."""


def runbook_base_url() -> str:
    """The default of the setting RUNBOOK_BASE_URL, from base/kustomization.yaml."""
    generators = yaml.safe_load((HERE / "base" / "kustomization.yaml").read_text())["configMapGenerator"]
    literals = next(generator["literals"] for generator in generators if generator["name"] == "monitoring-settings")
    return str(dict(literal.split("=", 1) for literal in literals)["RUNBOOK_BASE_URL"])


def text() -> str:
    """The PrometheusRule as YAML, with absolute addresses of the runbook."""
    groups = [group for name in RULES for group in yaml.safe_load((HERE / "base" / "rules" / name).read_text())["groups"]]
    base_url = runbook_base_url()
    for rule in (rule for group in groups for rule in group["rules"] if "alert" in rule):
        rule["annotations"]["runbook_url"] = rule["annotations"]["runbook_url"].replace(BASE_URL, base_url)
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "iris-api", "namespace": "mlops", "labels": {"app.kubernetes.io/part-of": "iris-api-monitoring"}},
        "spec": {"groups": [group for group in groups if group["name"] not in STACK_ONLY]},
    }
    return HEAD + yaml.safe_dump(document, sort_keys=False, width=120)


if __name__ == "__main__":
    FILE.write_text(text())
