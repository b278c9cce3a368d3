"""`make bench`: our application against the plain one beside it, interleaved, answers checked before anything is timed."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from serve_app.artifacts.store import Store
from serve_app.inference.booster_estimators import BoosterClassifier
from tests.benchmarks import calls, mixed, report
from tests.benchmarks.batches import batches
from tests.benchmarks.disturbance import disturbances
from tests.benchmarks.process import cpu_seconds, flush, life
from tests.benchmarks.wrk import Run, wrk
from tests.support.models import bundle_files, bundle_manifest, dumped, iris
from tests.support.server import HEADERS, PYTHON, ROOT, environment, free_port, serving
from tests.support.waiting import until

TREES = 200


def boosters() -> dict[str, Any]:
    """XGBoost and LightGBM, where they are installed."""
    found = {}
    if find_spec("xgboost"):
        from xgboost import XGBClassifier

        found[f"XGBoost, {TREES} trees"] = BoosterClassifier(XGBClassifier(n_estimators=TREES))
    if find_spec("lightgbm"):
        from lightgbm import LGBMClassifier

        found[f"LightGBM, {TREES} trees"] = BoosterClassifier(LGBMClassifier(n_estimators=TREES, verbosity=-1))
    return found


MODELS: Mapping[str, Any] = {
    "logistic regression": LogisticRegression(max_iter=500),
    "random forest, 200 trees": RandomForestClassifier(200, max_depth=10, random_state=42),
    "k-nearest neighbours": KNeighborsClassifier(),
    **boosters(),
    **mixed.MODELS,
}
LOADS = {
    "32 connections": ("/predict", 32, 1),
    "1 connection": ("/predict", 1, 1),
    "1,000 rows a call": ("/predict/batch", 4, 1000),
}
BESIDE = ("life", "replicas", "disturbance", "minute", "calls")
ON_REQUEST = ("batches",)
"""Parts that are measured only when `--only` names them."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--seconds", type=int, default=6, help="length of one run of the load generator")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each kind; medians are shown")
    parser.add_argument("--only", choices=(*MODELS, *BESIDE, *ON_REQUEST), action="append", help="only this part; may be repeated")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="where to leave benchmarks.json, benchmarks.md and the charts")
    parser.add_argument("--fill", type=Path, metavar="FILE", help="a page whose table of batches gets the figures")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="a benchmarks.json whose charted parts get the figures")
    chosen = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.stderr.write("error: wrk is not installed; on Debian and Ubuntu: apt-get install wrk\n")
        return 2
    parts = chosen.only or (*MODELS, *BESIDE)
    found: dict[str, Any] = {"machine": machine(), "seconds": chosen.seconds, "repeat": chosen.repeat}
    with tempfile.TemporaryDirectory(prefix="iris-api-bench-") as name:
        folder = Path(name)
        models = [part for part in MODELS if part in parts]
        found["models"] = [measure(model, folder, seconds=chosen.seconds, repeat=chosen.repeat) for model in models]
        if "life" in parts:
            found["life"] = lives(folder, repeat=chosen.repeat)
        if "replicas" in parts:
            found["replicas"] = replicas(folder, seconds=chosen.seconds, repeat=chosen.repeat)
        if "disturbance" in parts:
            found["disturbance"] = disturbed(folder, seconds=chosen.seconds, repeat=chosen.repeat)
        if "batches" in parts:
            found["batches"] = many_rows(folder, seconds=chosen.seconds, repeat=chosen.repeat)
        if "minute" in parts:
            with ours(folder, "minute") as (url, row, _):
                found["minute"] = wrk(f"{url}/predict", row, 32, 60, folder)
        if "calls" in parts and calls.can_run():
            store, estimator = published(folder, "calls", "logistic regression"), MODELS["logistic regression"]
            found["calls"] = calls.compare(store, estimator, folder, seconds=chosen.seconds, repeat=chosen.repeat)
    sys.stdout.write(report.text(found))
    if chosen.write is not None:
        report.write(found, chosen.write)
    if chosen.keep is not None:
        report.keep(found, chosen.keep)
    if chosen.fill is not None:
        report.fill(found, chosen.fill)
    return 0


# --- against the plain application


def measure(name: str, folder: Path, *, seconds: int, repeat: int) -> dict[str, Any]:
    estimator = mixed.on_frame(name) if name in mixed.MODELS else MODELS[name]
    with ours(folder, name) as (url, _, _), plain(estimator, folder, table=name in mixed.MODELS) as base:
        rows = samples(name)
        check(base, url, rows)
        runs: dict[str, list[tuple[Run, Run]]] = {load: [] for load in LOADS}
        for _ in range(repeat):
            for load, (path, connections, count) in LOADS.items():
                body = json.dumps(rows[7] if count == 1 else {"instances": repeated(rows, count)})
                pair = [wrk(where + path, body, connections, seconds, folder) for where in (base, url)]
                runs[load].append((pair[0], pair[1]))
        kind = httpx2.get(f"{url}/model", headers=HEADERS).json()["predictor"]
    return {"model": name, "predictor": kind, "loads": {load: summary(pairs, LOADS[load][2]) for load, pairs in runs.items()}}


def check(base: str, ours: str, rows: list[dict[str, Any]]) -> None:
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
def plain(estimator: Any, folder: Path, *, table: bool = False) -> Iterator[str]:
    """The plain application; its address."""
    file = folder / "plain.joblib"
    file.write_bytes(dumped(estimator))
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        f"tests.benchmarks.{'plain_table' if table else 'plain'}:app",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    variables = {**os.environ, "PLAIN_MODEL": str(file), "PYTHONPATH": str(ROOT)}
    with (
        (folder / "plain.log").open("wb") as log,
        subprocess.Popen(command, env=variables, cwd=ROOT, stdout=log, stderr=log) as process,
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


def summary(pairs: Sequence[tuple[Run, Run]], rows: int) -> dict[str, float]:
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


# --- ours alone, or beside a bare Ray Serve


def lives(folder: Path, *, repeat: int) -> dict[str, dict[str, float]]:
    """Start, memory and stop of ours and of a bare `serve run` of a hello application, in turn."""
    store = published(folder, "life", "random forest, 200 trees")
    found: dict[str, list[dict[str, float]]] = {"hello": [], "iris-api": []}
    for _ in range(repeat):
        port = free_port()
        config = folder / "hello.yaml"
        http = {"host": "127.0.0.1", "port": port}
        config.write_text(json.dumps({"http_options": http, "applications": [{"import_path": "tests.benchmarks.hello:app"}]}))
        bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"PYTHONPATH": str(ROOT)}
        command = [str(Path(PYTHON).with_name("serve")), "run", "--app-dir", str(ROOT), str(config)]
        found["hello"].append(life(command, f"http://127.0.0.1:{port}/", folder, bare))
        port = free_port()
        command = [PYTHON, "-m", "serve_app", "--port", str(port)]
        found["iris-api"].append(life(command, f"http://127.0.0.1:{port}/readyz", folder, environment(store.root)))
    return {name: {kind: statistics.median(one[kind] for one in runs) for kind in runs[0]} for name, runs in found.items()}


def replicas(folder: Path, *, seconds: int, repeat: int) -> dict[str, Any]:
    """Requests per second of one and of two replicas, and the CPU time of a request by process."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    cpu: dict[int, dict[str, float]] = {}
    for count in rates:
        with ours(folder, f"replicas-{count}", replicas=count) as (url, row, session):
            wrk(f"{url}/predict", row, 32, 1, folder)
            before = cpu_seconds(session)
            rates[count] = [wrk(f"{url}/predict", row, 32, seconds, folder)["rate"] for _ in range(repeat)]
            requests = statistics.mean(rates[count]) * seconds * repeat
            after = cpu_seconds(session)
            cpu[count] = {name: 1e6 * (used - before.get(name, 0.0)) / requests for name, used in after.items()}
    return {
        "rate": {count: statistics.median(found) for count, found in rates.items()},
        "microseconds_of_cpu": {count: {name: used for name, used in one.items() if used >= 1} for count, one in cpu.items()},
    }


def disturbed(folder: Path, *, seconds: int, repeat: int) -> dict[str, Run]:
    many = json.dumps({"instances": repeated(samples(), 100_000)})
    with ours(folder, "disturbance") as (url, row, _):
        return disturbances(url, Store(folder / "disturbance" / "models"), row, many, folder, seconds=seconds, repeat=repeat)


def many_rows(folder: Path, *, seconds: int, repeat: int) -> list[dict[str, Any]]:
    """Many rows a call in each form of request and answer."""
    name = "logistic regression"
    with ours(folder, name) as (url, _, session), plain(MODELS[name], folder) as base:
        return batches(base, url, MODELS[name], session, folder, seconds=seconds, repeat=repeat)


@contextlib.contextmanager
def ours(folder: Path, name: str, *, replicas: int = 1) -> Iterator[tuple[str, str, int]]:
    """Our application with a model of its own: its address, the body of a row, its session."""
    store = published(folder, name, name if name in MODELS else "logistic regression")
    with serving(store.root, folder, replicas=replicas, IRIS_ACCESS_LOG_EVERY="0") as server:
        flush(server.process.pid)
        yield server.url, json.dumps(samples(name)[7]), server.process.pid


def published(folder: Path, name: str, model: str) -> Store:
    if model in mixed.MODELS:
        return mixed.publish(model, folder / name / "models")
    estimator = MODELS[model].fit(*iris())
    store = Store(folder / name / "models")
    onnx = not isinstance(estimator, KNeighborsClassifier)
    store.publish(bundle_files(estimator, onnx=onnx), bundle_manifest())
    return store


def samples(model: str = "") -> list[dict[str, Any]]:
    if model in mixed.MODELS:
        return mixed.samples()
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    return [dict(zip(names, map(float, row), strict=True)) for row in iris()[0]]


def repeated(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return (rows * (count // len(rows) + 1))[:count]


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


if __name__ == "__main__":
    sys.exit(main())
