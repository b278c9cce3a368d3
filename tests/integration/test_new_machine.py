"""A new user's machine: any Python that is supported, a proxy in the environment, a service below a path.

CI runs this file on each Python: `make check-python`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx2

from tests.support.mlflow_server import mlflow_server
from tests.support.models import A_FLOWER
from tests.support.server import HEADERS, KEY, serving
from tests.support.training import SMALL, train
from tests.support.waiting import until

DEAD = "http://127.0.0.1:9"
PROXIES: dict[str, Any] = {
    **dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy"), DEAD),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), ""),
}
"""Proxies that answer nobody, and no exception for this machine."""
PREFIX = "/team/iris"


def test_it_trains_and_serves_below_a_path_on_a_machine_with_a_proxy(tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "mlflow") as tracking:
        done = train(tmp_path, *SMALL, MLFLOW_TRACKING_URI=f"{tracking}\n", **PROXIES)
    assert "version 1" in done.stdout + done.stderr
    more = {**PROXIES, "API_KEY": f"{KEY}\n", "IRIS_ROOT_PATH": PREFIX, "CORS_ORIGINS": "http://page.example\n"}
    with serving(tmp_path / "models", tmp_path, **more) as server:
        until(lambda: b"ready after" in server.output.read_bytes(), seconds=60, what="the launcher's own look at the application")
        for base in (server.url, server.url + PREFIX):
            answer = httpx2.post(f"{base}/predict", json=A_FLOWER, headers={**HEADERS, "Origin": "http://page.example"})
            assert (answer.status_code, answer.json()["prediction"]) == (200, "setosa")
            assert answer.headers["access-control-allow-origin"] == "http://page.example"
            for asset in re.findall(r'src="([^"]+)"', httpx2.get(f"{base}/docs").text):
                assert httpx2.get(urljoin(f"{base}/docs", asset)).status_code == 200
            for path in ("/health", "/livez", "/readyz", "/metrics", "/", "/docs", "/openapi.json"):
                head = httpx2.head(base + path)
                assert (head.status_code, head.content, int(head.headers["content-length"]) > 0) == (200, b"", True), path
        assert "iris-api: try it: curl --noproxy" in server.output.read_text()
