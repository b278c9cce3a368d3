"""A real Prometheus on this machine beside `make serve`: the rules of the cluster, its pages on 127.0.0.1.

python -m monitoring.local --port 9090 --api 8000
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
from pathlib import Path

import yaml

from serve_app.rayserve.scrape_targets import note

BASE = Path(__file__).resolve().parent / "base"


def configuration(api: int, port: int) -> str:
    """The cluster's configuration with the targets of this machine; what is kept and renamed stays the same."""
    cluster = yaml.safe_load((BASE / "prometheus" / "prometheus.yaml").read_text())
    kept = {job["job_name"]: job["metric_relabel_configs"] for job in cluster["scrape_configs"] if "metric_relabel_configs" in job}
    found, haproxy = ([{"files": [str(note(api, what))], "refresh_interval": "5s"}] for what in ("metrics", "haproxy"))
    # Serve's own processes and the replicas are on one Ray node here, the head.
    jobs = [
        {"job_name": "ray-head", "file_sd_configs": found, "metric_relabel_configs": kept["ray-head"]},
        {"job_name": "haproxy", "file_sd_configs": haproxy, "metric_relabel_configs": kept["haproxy"]},
        {"job_name": "prometheus", "static_configs": _at(port)},
    ]
    document = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": [str(BASE / "rules" / "*.yaml")],
        "scrape_configs": jobs,
    }
    return yaml.safe_dump(document, sort_keys=False)


def _at(port: int) -> list[dict[str, list[str]]]:
    return [{"targets": [f"127.0.0.1:{port}"]}]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m monitoring.local", description=__doc__)
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--api", type=int, default=8000)
    parser.add_argument("--data", type=Path, default=Path("build") / "prometheus")
    chosen = parser.parse_args()
    program = shutil.which(os.environ.get("PROMETHEUS", "prometheus"))
    if program is None:
        sys.exit(
            "error: there is no prometheus in PATH: apt install prometheus, brew install prometheus, "
            "or set PROMETHEUS to the program from https://prometheus.io/download"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", chosen.port))
        except OSError as error:
            sys.exit(f"error: port {chosen.port} cannot be used ({error.strerror}): PROMETHEUS_PORT={chosen.port + 1}")
    chosen.data.mkdir(parents=True, exist_ok=True)
    file = chosen.data / "prometheus.yaml"
    file.write_text(configuration(chosen.api, chosen.port))
    sys.stdout.write(f"iris-api: Prometheus on http://127.0.0.1:{chosen.port} (targets: /targets, alerts: /alerts, stop: Ctrl-C)\n")
    sys.stdout.flush()
    os.execv(  # noqa: S606, the terminal is Prometheus' own from here on
        program,
        [
            program,
            f"--config.file={file}",
            f"--storage.tsdb.path={chosen.data / 'data'}",
            "--storage.tsdb.retention.time=2d",
            f"--web.listen-address=127.0.0.1:{chosen.port}",
            "--log.level=warn",
        ],
    )


if __name__ == "__main__":
    main()
