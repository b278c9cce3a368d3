"""Starts a Prometheus on this machine beside `make serve`, with the rules of the cluster.

python -m monitoring.local_prometheus --port 9090 --api 8000
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
from pathlib import Path

import yaml

from monitoring.operator_rules import runbook_base_url
from serve_app.rayserve.scrape_targets import targets_file

BASE = Path(__file__).resolve().parent / "base"


def configuration(api: int, port: int) -> str:
    """The configuration of the cluster as YAML, with the scrape targets of this machine.

    `api` is the port of the application, `port` that of Prometheus. The metric relabelling is that of the
    cluster.
    """
    cluster = yaml.safe_load((BASE / "prometheus" / "prometheus.yaml").read_text())
    relabelling = {
        job["job_name"]: job["metric_relabel_configs"] for job in cluster["scrape_configs"] if "metric_relabel_configs" in job
    }
    ray, haproxy = ([{"files": [str(targets_file(api, source))], "refresh_interval": "5s"}] for source in ("metrics", "haproxy"))
    # On one machine Serve's processes and the replicas run on one Ray node, the head.
    jobs = [
        {"job_name": "ray-head", "file_sd_configs": ray, "metric_relabel_configs": relabelling["ray-head"]},
        {"job_name": "haproxy", "file_sd_configs": haproxy, "metric_relabel_configs": relabelling["haproxy"]},
        {"job_name": "prometheus", "static_configs": _static_target(port)},
    ]
    document = {
        "global": {
            "scrape_interval": "5s",
            "evaluation_interval": "5s",
            "external_labels": {"runbook_base_url": os.environ.get("RUNBOOK_BASE_URL") or runbook_base_url()},
        },
        "rule_files": [str(BASE / "rules" / "*.yaml")],
        "scrape_configs": jobs,
    }
    return yaml.safe_dump(document, sort_keys=False)


def _static_target(port: int) -> list[dict[str, list[str]]]:
    return [{"targets": [f"127.0.0.1:{port}"]}]


def main() -> None:
    """Write the configuration and replace this process by Prometheus."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.local_prometheus", description=__doc__)
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--api", type=int, default=8000)
    parser.add_argument("--data", type=Path, default=Path("build") / "prometheus")
    arguments = parser.parse_args()
    program = shutil.which(os.environ.get("PROMETHEUS", "prometheus"))
    if program is None:
        sys.exit(
            "error: prometheus is not in PATH: run `apt install prometheus` or `brew install prometheus`, "
            "or set PROMETHEUS to the program from https://prometheus.io/download"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", arguments.port))
        except OSError as error:
            sys.exit(f"error: port {arguments.port} cannot be used ({error.strerror}): set PROMETHEUS_PORT={arguments.port + 1}")
    arguments.data.mkdir(parents=True, exist_ok=True)
    file = arguments.data / "prometheus.yaml"
    file.write_text(configuration(arguments.api, arguments.port))
    sys.stdout.write(
        f"iris-api: Prometheus on http://127.0.0.1:{arguments.port} (targets: /targets, alerts: /alerts, stop: Ctrl-C)\n"
    )
    sys.stdout.flush()
    os.execv(  # noqa: S606, Prometheus takes over the terminal
        program,
        [
            program,
            f"--config.file={file}",
            f"--storage.tsdb.path={arguments.data / 'data'}",
            "--storage.tsdb.retention.time=2d",
            f"--web.listen-address=127.0.0.1:{arguments.port}",
            "--log.level=warn",
        ],
    )


if __name__ == "__main__":
    main()
