"""The load generator: wrk, one thread, on this machine. A run counts only when every answer was right."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.server import KEY

Run = Mapping[str, float]
"""Requests per second and in all, and latencies in milliseconds."""

JSON = {"Content-Type": "application/json"}


def wrk(url: str, body: str | bytes, connections: int, seconds: float, folder: Path, *, headers: Mapping[str, str] = JSON) -> Run:
    """POST `body` over so many connections; raises AssertionError when an answer was not 2xx or a connection failed."""
    script, content = folder / "post.lua", folder / "post.body"
    content.write_bytes(body.encode() if isinstance(body, str) else body)
    named = "".join(f"wrk.headers['{name}'] = '{value}'\n" for name, value in {**headers, "X-API-Key": KEY}.items())
    script.write_text(
        f"wrk.method = 'POST'\nlocal file = io.open('{content}', 'rb')\nwrk.body = file:read('*a')\nfile:close()\n{named}"
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if bad or "Socket errors" in text:
        raise AssertionError(f"not every answer was right:\n{text}")
    return {
        "rate": float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0]),
        "requests": float(re.findall(r"(\d+) requests in", text)[0]),
        "p50": _milliseconds(*re.findall(r"50%\s+([\d.]+)(us|ms|s)", text)[0]),
        "p99": _milliseconds(*re.findall(r"99%\s+([\d.]+)(us|ms|s)", text)[0]),
        "max": _milliseconds(*re.findall(r"Latency\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)", text)[0]),
    }


def _milliseconds(number: str, unit: str) -> float:
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]
