"""No proxy stands between processes of one machine."""

from __future__ import annotations

import http.server
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.loopback import LOOPBACK, direct_opener, keep_loopback_direct

ROOT = Path(__file__).parents[2]
DEAD = "http://127.0.0.1:9"


@pytest.fixture
def address() -> Iterator[str]:
    """A server of this machine that answers every GET with 204."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every spelling of a proxy that answers nobody, and no exception from it."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, DEAD)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("proxied")
def test_a_direct_opener_asks_no_proxy(address: str) -> None:
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)
    with direct_opener().open(address, timeout=5) as response:
        assert response.status == 204


@pytest.mark.usefixtures("proxied")
def test_clients_of_this_process_and_its_children_reach_loopback(address: str) -> None:
    import httpx2
    import requests

    keep_loopback_direct()
    with urllib.request.urlopen(address, timeout=5) as response:
        assert response.status == 204
    assert requests.get(address, timeout=5).status_code == 204
    assert httpx2.get(address, timeout=5).status_code == 204


@pytest.mark.parametrize(
    ("environment", "no_proxy"),
    [
        ({}, None),
        ({"NO_PROXY": "corp.example"}, "unchanged"),
        ({"http_proxy": ""}, None),
        ({"RAY_SERVE_ENABLE_HA_PROXY": "1"}, None),
        ({"http_proxy": DEAD}, ",".join(LOOPBACK)),
        ({"HTTPS_PROXY": DEAD, "NO_PROXY": "corp.example, localhost"}, "corp.example,localhost,127.0.0.1,::1"),
        ({"all_proxy": DEAD, "no_proxy": "a", "NO_PROXY": "b"}, "a,localhost,127.0.0.1,::1"),
        ({"grpc_proxy": DEAD, "no_proxy": "*"}, "unchanged"),
    ],
    ids=str,
)
def test_the_exceptions_of_the_user_stay(environment: dict[str, str], no_proxy: str | None) -> None:
    changed = dict(environment)
    keep_loopback_direct(changed)
    if no_proxy in (None, "unchanged"):
        assert changed == environment
    else:
        assert changed["no_proxy"] == changed["NO_PROXY"] == no_proxy


def test_no_module_opens_an_address_through_the_proxies_of_the_environment() -> None:
    files = [file for room in ("serve_app", "training", "kuberay", "monitoring") for file in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    assert [
        str(file)
        for file in files
        if re.search(r"urlopen\(|httpx|aiohttp|(?ms:^import requests\b.*\brequests\.(get|post)\()", file.read_text())
    ] == []
