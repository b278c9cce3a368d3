"""What each flag of `serve.env` is worth: one at a time is set back to Ray Serve's default, and the same load is repeated.

python -m tests.benchmarks.flags --seconds 5
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.__main__ import published, samples
from tests.benchmarks.process import cpu_seconds, flush, pss_megabytes
from tests.benchmarks.wrk import wrk
from tests.support.server import serving

VARIANTS: dict[str, dict[str, str]] = {
    "as shipped": {},
    "HTTP_PROXY_CALLBACK_IMPORT_PATH unset: through Serve's request wrapper": {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": ""},
    "ENABLE_HA_PROXY=0: Serve's proxy in Python": {"RAY_SERVE_ENABLE_HA_PROXY": "0"},
    "RUN_USER_CODE_IN_SEPARATE_THREAD=1": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "1"},
    "HAPROXY_METRICS_ENABLED=1": {"RAY_SERVE_HAPROXY_METRICS_ENABLED": "1"},
    "HAPROXY_NBTHREAD=4": {"RAY_SERVE_HAPROXY_NBTHREAD": "4"},
    "HAPROXY_LOG_TARGET: each request, not one of 1,000": {"RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514"},
    "CONTROL_LOOP_INTERVAL_S=0.1, METRICS_EXPORT_INTERVAL_MS=100": {
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.1",
        "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "100",
    },
    "MALLOC_ARENA_MAX unset": {"MALLOC_ARENA_MAX": "0"},
    "HAPROXY_TUNE_BUFSIZE=65536 (rejected)": {"RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "65536"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="length of one run of the load generator")
    seconds = parser.parse_args().seconds
    rows = [
        "| changed | 32 connections | p99 ms | 1 connection | CPU of a request, µs | memory, MB |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    with tempfile.TemporaryDirectory(prefix="iris-api-flags-") as name:
        folder = Path(name)
        store = published(folder, "flags", "logistic regression")
        body = json.dumps(samples()[7])
        for variant, flags in VARIANTS.items():
            with serving(store.root, folder, replicas=1, IRIS_ACCESS_LOG_EVERY="0", **flags) as server:
                url, session = f"{server.url}/predict", server.process.pid
                flush(session)
                wrk(url, body, 32, 1, folder)
                before = sum(cpu_seconds(session).values())
                many = wrk(url, body, 32, seconds, folder)
                used = (sum(cpu_seconds(session).values()) - before) / (many["rate"] * seconds) * 1e6
                one = wrk(url, body, 1, seconds, folder)
                memory = pss_megabytes(session)
            rows.append(
                f"| {variant} | {many['rate']:,.0f}/s | {many['p99']:.1f} | {one['rate']:,.0f}/s | {used:.0f} | {memory:.0f} |"
            )
    sys.stdout.write("\n".join(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
