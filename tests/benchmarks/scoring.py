"""Bulk scoring: rows a second by one worker and by two, and memory of a worker for a small and a large file.

    python -m tests.benchmarks.scoring [--only cores|memory] [--repeat 3] [--large 2000]

Seconds are those from the first part that a worker begins to the last that one ends: the start of Ray and of its workers is not in
them. One worker and two take turns, with one and two processes
without Ray between them, which tell what the machine gives; medians are shown. Answers are compared with the predictor's first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from serve_app.artifacts.store import Store
from serve_app.batch.pool import in_process, on_ray
from serve_app.batch.run import Outcome, score
from serve_app.batch.score_options import PART_BYTES, ScoreOptions
from serve_app.inference.predictor import open_predictor
from tests.support.models import bundle_files, bundle_manifest, iris, iris_signature
from tests.support.native import answer_rows
from tests.support.policies import ALLOW_ALL
from tests.support.scoring import as_answers, results

LOGISTIC = "logistic regression, ONNX Runtime"
MODELS: dict[str, tuple[Any, bool, int]] = {
    LOGISTIC: (LogisticRegression(max_iter=500), True, 120_000_000),
    "random forest, 200 trees, scikit-learn": (RandomForestClassifier(200, max_depth=10, random_state=42), False, 4_000_000),
    "random forest, 200 trees, ONNX Runtime": (RandomForestClassifier(200, max_depth=10, random_state=42), True, 4_000_000),
    "k-nearest neighbours, scikit-learn": (KNeighborsClassifier(), False, 12_000_000),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scoring", description=__doc__)
    parser.add_argument("--only", choices=("cores", "memory"))
    parser.add_argument("--model", choices=tuple(MODELS), action="append", help="for cores; may be repeated")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--large", type=int, default=2000, metavar="MB", help="size of the large file; the small one is a tenth")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="iris-api-bench-") as name:
        folder = Path(name)
        if chosen.only != "memory":
            cores(folder, chosen.model or list(MODELS), chosen.repeat)
        if chosen.only != "cores":
            memory(folder, (chosen.large // 10, chosen.large))
    return 0


def cores(folder: Path, models: Sequence[str], repeat: int) -> None:
    print("| model | rows | 1 worker, rows/s | 2 workers, rows/s | ratio (lowest to highest) | two bare processes to one |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name in models:
        _, _, rows = MODELS[name]
        store = published(folder, name)
        data = table(folder / "cores.csv", rows=rows)
        check(store, data, folder / "out")
        pairs, floor = [], []
        for _ in range(repeat):
            pairs.append(tuple(run(store, data, folder / "out", count, parts=120).seconds for count in (1, 2)))
            floor.append(bare(folder, store, rows, 1) / bare(folder, store, rows, 2))
        ratios = [one / two for one, two in pairs]
        one, two = (rows / statistics.median(seconds) for seconds in zip(*pairs, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        cells = (name, f"{rows:,}", f"{one:,.0f}", f"{two:,.0f}", ratio, f"{statistics.median(floor):.2f}")
        print(f"| {' | '.join(cells)} |", flush=True)


def bare(folder: Path, store: Store, rows: int, count: int) -> float:
    """Seconds that the same rows take in so many processes without Ray: what the machine gives at this moment."""
    table(folder / "share.csv", rows=rows // count)
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(count), context.Queue()
    processes = [context.Process(target=_share, args=(folder, store.root, at, barrier, seconds)) for at in range(count)]
    for process in processes:
        process.start()
    found: list[float] = [seconds.get(timeout=400) for _ in processes]
    for process in processes:
        process.join()
    return max(found)


def _share(folder: Path, model_dir: Path, at: int, barrier: Any, seconds: Any) -> None:
    options = ScoreOptions(data=str(folder / "share.csv"), out=str(folder / f"bare-{at}"), model_dir=model_dir, restart=True)
    barrier.wait(timeout=200)
    seconds.put(score(options, lambda _: nullcontext(), in_process).seconds)


def memory(folder: Path, sizes: Sequence[int]) -> None:
    store = published(folder, LOGISTIC)
    print("| file, MB | rows | seconds, 2 workers | rows/s | peak of a worker, MB | peak of the driver, MB |")
    print("| --: | --: | --: | --: | --: | --: |")
    for size in sizes:
        data = table(folder / "memory.csv", size=size * 1_000_000)
        found = run(store, data, folder / "out", 2)
        driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        numbers = (f"{size:,}", f"{found.rows:,}", f"{found.seconds:.1f}", f"{found.rows / found.seconds:,.0f}")
        print(f"| {' | '.join((*numbers, f'{found.peak_bytes / 1e6:,.0f}', f'{driver / 1e6:,.0f}'))} |", flush=True)
        data.unlink()


def published(folder: Path, name: str) -> Store:
    estimator, onnx, _ = MODELS[name]
    store = Store(folder / name.replace(" ", "-").replace(",", ""))
    store.publish(bundle_files(estimator.fit(*iris()), onnx=onnx), bundle_manifest())
    return store


def table(path: Path, *, rows: int = 0, size: int = 0) -> Path:
    """Flowers that differ a little from the known ones, at least so many rows or bytes; 10,000 of them, again and again."""
    random = np.random.default_rng(0)
    X = np.abs(iris()[0][random.integers(0, 150, 10_000)] + random.normal(0, 0.1, (10_000, 4)))
    lines = [",".join(f"{value:.4f}" for value in row) for row in X]
    block = ("\n".join(lines) + "\n").encode()
    with open(path, "wb") as file:
        file.write((",".join(iris_signature().names) + "\n").encode())
        file.writelines(block for _ in range(rows // len(lines) if rows else size // len(block)))
    return path


def run(store: Store, data: Path, out: Path, count: int, *, parts: int = 0) -> Outcome:
    part_bytes = data.stat().st_size // parts if parts else PART_BYTES
    options = ScoreOptions(data=str(data), out=str(out), model_dir=store.root, part_bytes=part_bytes, restart=True)
    return score(options, lambda _: nullcontext(), lambda: on_ray(count))


def check(store: Store, data: Path, out: Path) -> None:
    """The first 10,000 rows must be what the predictor answers."""
    with open(data) as file:
        lines = [next(file) for _ in range(10_001)]
    few = data.with_name("few.csv")
    few.write_text("".join(lines))
    score(ScoreOptions(data=str(few), out=str(out), model_dir=store.root, restart=True), lambda _: nullcontext(), in_process)
    bundle = store.current()
    assert bundle is not None
    rows = [dict(zip(iris_signature().names, map(float, line.split(",")), strict=True)) for line in lines[1:]]
    expected = orjson.loads(answer_rows(open_predictor(bundle, ALLOW_ALL), orjson.dumps({"instances": rows})))["predictions"]
    if as_answers(results(out)) != expected:
        raise AssertionError("different answers")


if __name__ == "__main__":
    sys.exit(main())
