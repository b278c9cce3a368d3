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


def text() -> str:
    """The PrometheusRule as YAML."""
    groups = [group for name in RULES for group in yaml.safe_load((HERE / "base" / "rules" / name).read_text())["groups"]]
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "iris-api", "namespace": "mlops", "labels": {"app.kubernetes.io/part-of": "iris-api-monitoring"}},
        "spec": {"groups": [group for group in groups if group["name"] not in STACK_ONLY]},
    }
    return HEAD + yaml.safe_dump(document, sort_keys=False, width=120)


if __name__ == "__main__":
    FILE.write_text(text())
