"""`make bench`: our application against the plain one beside it, interleaved, answers checked before anything is timed."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from serve_app.core.store import Store
from tests.support.models import bundle_files, bundle_metadata, dumped, iris
from tests.support.server import HEADERS, KEY, Server, free_port, serving
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
MODELS: Mapping[str, tuple[Any, bool]] = {
    "logistic regression": (LogisticRegression(max_iter=500), False),
    "random forest, 200 trees": (RandomForestClassifier(200, max_depth=10, random_state=42), True),
    "k-nearest neighbours": (KNeighborsClassifier(), False),
}
LOADS = {
    "32 connections": ("/predict", 32, 1),
    "1 connection": ("/predict", 1, 1),
    "1,000 rows a call": ("/predict/batch", 4, 1000),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--seconds", type=int, default=6, help="length of one run of the load generator")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind; medians are shown")
    parser.add_argument("--only", choices=tuple(MODELS), action="append", help="only this model; may be repeated")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="where to leave benchmarks.json and benchmarks.md")
    chosen = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.stderr.write("error: wrk is not installed; on Debian and Ubuntu: apt-get install wrk\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="iris-api-bench-") as folder:
        results = [measure(name, Path(folder), seconds=chosen.seconds, repeat=chosen.repeat) for name in chosen.only or MODELS]
    report = {"machine": machine(), "seconds": chosen.seconds, "repeat": chosen.repeat, "results": results}
    text = table(report)
    sys.stdout.write(text)
    if chosen.write is not None:
        chosen.write.mkdir(parents=True, exist_ok=True)
        (chosen.write / "benchmarks.json").write_text(json.dumps(report, indent=2) + "\n")
        (chosen.write / "benchmarks.md").write_text(text)
    return 0


def measure(name: str, folder: Path, *, seconds: int, repeat: int) -> dict[str, Any]:
    estimator, rounded = MODELS[name]
    estimator.fit(*iris())
    store = Store(folder / name.replace(" ", "-") / "models")
    onnx = not isinstance(estimator, KNeighborsClassifier)
    store.publish(bundle_files(estimator, onnx=onnx), bundle_metadata(onnx={"rounded": rounded}))
    started = time.monotonic()
    with plain(estimator, folder) as base, serving(store.root, folder, replicas=1, IRIS_ACCESS_LOG_EVERY="0") as ours:
        ready = time.monotonic() - started
        rows = [dict(zip(row_names(), map(float, row), strict=True)) for row in iris()[0]]
        check(base, ours.url, rows)
        runs: dict[str, list[tuple[Run, Run]]] = {load: [] for load in LOADS}
        for _ in range(repeat):
            for load, (path, connections, count) in LOADS.items():
                body = json.dumps(rows[7] if count == 1 else {"instances": (rows * (count // len(rows) + 1))[:count]})
                pair = [wrk(url + path, body, connections, seconds, folder) for url in (base, ours.url)]
                runs[load].append((pair[0], pair[1]))
        memory = pss_megabytes(ours)
        kind = httpx2.get(f"{ours.url}/model", headers=HEADERS).json()["predictor"]
    return {
        "model": name,
        "predictor": kind,
        "seconds_to_first_answer": round(ready, 1),
        "pss_megabytes": round(memory),
        "loads": {load: summary(pairs, LOADS[load][2]) for load, pairs in runs.items()},
    }


Run = Mapping[str, float]


def wrk(url: str, body: str, connections: int, seconds: int, folder: Path) -> Run:
    script = folder / "post.lua"
    script.write_text(
        "wrk.method = 'POST'\n"
        f"wrk.body = [==[{body}]==]\n"
        "wrk.headers['Content-Type'] = 'application/json'\n"
        f"wrk.headers['X-API-Key'] = '{KEY}'\n"
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if bad or "Socket errors" in text:
        raise AssertionError(f"not every answer was right:\n{text}")
    return {
        "rate": float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0]),
        "p50": latency(text, "50%"),
        "p99": latency(text, "99%"),
    }


def latency(text: str, percentile: str) -> float:
    """Milliseconds."""
    number, unit = re.findall(rf"{percentile}\s+([\d.]+)(us|ms|s)", text)[0]
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def check(base: str, ours: str, rows: list[dict[str, float]]) -> None:
    """Both must give the same classes and, within 1e-5, the same probabilities before one of them is timed."""
    for path, body in (("/predict/batch", {"instances": rows}), *(("/predict", row) for row in rows[::30])):
        one, other = (
            httpx2.post(url + path, json=body, headers=HEADERS, timeout=60).raise_for_status().json() for url in (base, ours)
        )
        for left, right in zip(one.get("predictions", [one]), other.get("predictions", [other]), strict=True):
            same = left["prediction"] == right["prediction"]
            gap = np.abs(np.array(list(left["probabilities"].values())) - np.array(list(right["probabilities"].values()))).max()
            if not same or gap > 1e-5:
                raise AssertionError(f"different answers: {left} {right}")


@contextlib.contextmanager
def plain(estimator: Any, folder: Path) -> Iterator[str]:
    file = folder / "plain.joblib"
    file.write_bytes(dumped(estimator))
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "tests.benchmarks.plain:app", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "PLAIN_MODEL": str(file), "PYTHONPATH": str(ROOT)}
    with (
        (folder / "plain.log").open("wb") as log,
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: answers(f"{url}/docs"), seconds=60)
            yield url
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def summary(pairs: list[tuple[Run, Run]], rows: int) -> dict[str, float]:
    def median(number: Callable[[tuple[Run, Run]], float]) -> float:
        return statistics.median(number(pair) for pair in pairs)

    ratios = [ours["rate"] / base["rate"] for base, ours in pairs]
    return {
        "plain_rate": median(lambda pair: pair[0]["rate"]) * rows,
        "rate": median(lambda pair: pair[1]["rate"]) * rows,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "plain_p99_ms": median(lambda pair: pair[0]["p99"]),
        "p50_ms": median(lambda pair: pair[1]["p50"]),
        "p99_ms": median(lambda pair: pair[1]["p99"]),
    }


def pss_megabytes(server: Server) -> float:
    """Memory of every process of this application, shared pages counted once."""
    total = 0
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(folder.name)) == server.process.pid:
                total += int(re.findall(r"^Pss:\s+(\d+)", (folder / "smaps_rollup").read_text(), re.MULTILINE)[0])
    return total / 1024


def row_names() -> tuple[str, ...]:
    return ("sepal_length", "sepal_width", "petal_length", "petal_width")


def machine() -> dict[str, str]:
    import fastapi
    import ray
    import sklearn

    return {
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
        "ray": ray.__version__,
        "fastapi": fastapi.__version__,
        "scikit-learn": sklearn.__version__,
    }


def table(report: dict[str, Any]) -> str:
    lines = [
        "| model (predictor) | load | plain FastAPI | iris-api | ratio (lowest to highest) | p50 / p99 ms |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for result in report["results"]:
        for load, row in result["loads"].items():
            cells = (
                f"{result['model']} ({result['predictor']})",
                load,
                f"{row['plain_rate']:,.0f}/s",
                f"{row['rate']:,.0f}/s",
                f"**{row['ratio']:.2f}** ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
                f"{row['p50_ms']:.2f} / {row['p99_ms']:.2f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines.extend(
        f"{one['model']}: {one['pss_megabytes']} MB PSS, {one['seconds_to_first_answer']} s to start." for one in report["results"]
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
