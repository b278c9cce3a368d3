"""What one machine shows: first answer, stop, replacement while serving, and a single row without HTTP.

    python -m tests.benchmarks.one_machine

Two replicas behind HAProxy. The models published in turn are a logistic regression and a random forest of 200 trees; a client asks
all the time, and each answer must be the one of the version that its header names.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from serve_app.artifacts.bundle import read_bundle
from serve_app.artifacts.store import Entry, Store
from serve_app.inference.predictor import Predictor, open_predictor
from serve_app.inference.slot import Slot
from serve_app.protocols.codec import Buffer
from serve_app.protocols.native import NativeRowCodec
from tests.support.load import closed_loop, matches
from tests.support.models import A_FLOWER, bundle_files, bundle_manifest, iris
from tests.support.native import answer_row, context_of
from tests.support.policies import ALLOW_ALL
from tests.support.processes import of_session, resident
from tests.support.server import HEADERS, KEY, Server, serving, stop
from tests.support.waiting import until

BODY = orjson.dumps(A_FLOWER)


def _serves(server: Server, version: int) -> bool:
    return server.versions() == {str(version)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.one_machine", description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=20, help="models that are published while it serves")
    parser.add_argument("--replicas", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iris-api-bench-") as folder:
        for name, estimator in (("logistic regression", logistic(0)), ("random forest, 200 trees", forest(0))):
            show(f"{name}, one row in process", row_microseconds(opened(estimator, Path(folder) / name)))
        for name, models in (("random forest, 200 trees", (forest(0), forest(1))), ("of 200 large trees", (jungle(0), jungle(1)))):
            show(f"{name}, taken up by a replica that serves another", loading(models, Path(folder) / f"load {name}"))
        for name, figure in running(Path(folder), swaps=chosen.swaps, replicas=chosen.replicas).items():
            show(name, figure)
    return 0


def show(name: str, figure: str) -> None:
    sys.stdout.write(f"{name}: {figure}\n")
    sys.stdout.flush()


def logistic(number: int) -> Any:
    return LogisticRegression(C=0.5 + number / 10, max_iter=500).fit(*iris())


def forest(number: int) -> Any:
    return RandomForestClassifier(200, max_depth=10, random_state=number).fit(*iris())


def jungle(number: int) -> Any:
    """A forest of trees that learnt noise by heart."""
    random = np.random.default_rng(number)
    X, y = iris()
    picked = random.integers(0, len(X), 3000)
    return RandomForestClassifier(200, random_state=number).fit(
        np.abs(X[picked] + random.normal(0, 1, (3000, 4))), random.permutation(y[picked])
    )


def loading(models: tuple[Any, Any], folder: Path) -> str:
    """Seconds and memory of a swap in this process: at most so much more than before was in use meanwhile."""
    store = Store(folder)
    slot = Slot(store, policy=ALLOW_ALL)
    publish(store, models[0])
    slot.refresh()
    entry = publish(store, models[1])
    size = sum(file.stat().st_size for file in entry.folder.iterdir())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident(os.getpid())
    if not slot.refresh():
        raise AssertionError(slot.problem)
    peak = most_resident() - before
    return f"{slot.load_seconds:.2f} s; {peak / 1e6:.1f} MB more for a bundle of {size / 1e6:.1f} MB ({peak / size:.1f} times)"


def most_resident() -> int:
    """Bytes of memory that this process had in use at most since the peak was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def publish(store: Store, estimator: Any) -> Entry:
    return store.publish(bundle_files(estimator, onnx=True), bundle_manifest())


def opened(estimator: Any, folder: Path) -> Predictor:
    return open_predictor(read_bundle(publish(Store(folder), estimator).folder), ALLOW_ALL)


def row_microseconds(predictor: Predictor, *, rounds: int = 300, calls: int = 100) -> str:
    """The model alone, and from the request's body to the answer's: the best round of each."""
    codec = NativeRowCodec(context_of(predictor))

    def answered(body: bytes) -> Buffer:
        batch = codec.decode(body, ())
        return codec.encode(batch, predictor.row_scores(batch.matrix))

    row = codec.decode(BODY, ()).matrix

    def best(call: Any, argument: Any) -> float:
        found = []
        for _ in range(rounds):
            started = time.perf_counter()
            for _ in range(calls):
                call(argument)
            found.append((time.perf_counter() - started) / calls)
        return min(found) * 1e6

    return f"{best(predictor.scores, row):.1f} µs; with JSON in and out {best(answered, BODY):.1f} µs ({predictor.kind})"


def running(folder: Path, *, swaps: int, replicas: int) -> dict[str, str]:
    """Start, replace under load, stop; AssertionError when an answer was wrong."""
    store = Store(folder / "models", keep=swaps + 1)
    first = publish(store, forest(0))
    # Published models are immutable, so the right answers are known before the first replica sees them.
    models = [logistic(number) if number % 2 else forest(number) for number in range(1, swaps + 1)]
    expected = {
        str(version): answer_row(opened(model, folder / f"preview-{version}"), BODY).decode()
        for version, model in enumerate([forest(0), *models], first.version)
    }
    delays = []
    started = time.monotonic()
    with serving(store.root, folder, ready="/livez", replicas=replicas) as server:
        until(lambda: httpx2.post(f"{server.url}/predict", json=A_FLOWER, headers=HEADERS).status_code == 200)
        answered = time.monotonic() - started
        until(lambda: server.versions() == {str(first.version)}, seconds=60)
        with closed_loop(server.url, A_FLOWER, key=KEY, check=matches(expected)) as load:
            for model in models:
                version = publish(store, model).version
                published = time.monotonic()
                until(partial(_serves, server, version), seconds=60)
                delays.append(time.monotonic() - published)
        if load.failures or load.reconnects or len(load.versions) != swaps + 1:
            raise AssertionError(f"not every answer was right: {load.failures[:3]}, versions {sorted(load.versions)}")
        asked = time.monotonic()
        stop(server.process)
        until(lambda: not of_session(server.process.pid), seconds=60)
        stopped = time.monotonic() - asked
    return {
        "from the command to the first answer": f"{answered:.1f} s",
        f"from publishing to visible on all of {replicas} replicas, {swaps} times": (
            f"median {statistics.median(delays):.2f} s, worst {max(delays):.2f} s"
        ),
        "answers meanwhile": f"{load.answered}, 0 failed or mislabelled",
        "from Ctrl-C to no process left": f"{stopped:.1f} s",
    }


if __name__ == "__main__":
    sys.exit(main())
