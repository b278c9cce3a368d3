"""The bundle of a trained model: its files, and the manifest that describes them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from serve_app import __version__
from serve_app.artifacts.manifest import DataSource, Libraries, Manifest, SourceCode, Verdict, describe, sha256
from serve_app.artifacts.names import CARD, GOLDEN, JOBLIB, MANIFEST, METRICS, ONNX, SEAL
from serve_app.artifacts.signature import Signature
from serve_app.artifacts.signing import Sign
from serve_app.artifacts.store import Entry
from training import card, fit
from training.candidate import Candidate
from training.convert import Converted
from training.reference import reference
from training.train_options import TrainOptions

if TYPE_CHECKING:
    from training.run_record import RunRecord

GOLDEN_ROWS = 50
"""Golden examples in a bundle, unless classes and categories need more."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Publication:
    """Everything that goes into a bundle, apart from the verdict and the version.

    `plots` are PNG files by name, `importance` the mean loss by feature (None: not measured), `search` the record of a search, None
    without one, `decision` that of a threshold.
    """

    candidate: Candidate
    options: TrainOptions
    floors: Mapping[str, float]
    random_state: int
    converted: Converted
    plots: Mapping[str, bytes]
    importance: Mapping[str, float | None]
    search: Mapping[str, Any] | None = None
    decision: Mapping[str, Any] | None = None
    trained_at: str = field(default_factory=_now)


def files(publication: Publication, manifest: Manifest) -> dict[str, bytes]:
    """The files of the bundle by name: the model in one or two forms, metrics, golden examples, plots and the card."""
    candidate = publication.candidate
    golden_rows = select_golden_rows(candidate.rows, candidate.target[: len(candidate.rows)], candidate.signature)
    golden = {
        "rows": [candidate.rows[at] for at in golden_rows],
        "scores": np.asarray(candidate.scores, dtype=np.float64)[golden_rows].tolist(),
    }
    metrics = candidate.metrics.to_dict()
    onnx = publication.converted.model
    return {
        JOBLIB: candidate.pickle,
        METRICS: orjson.dumps(metrics, option=orjson.OPT_INDENT_2) + b"\n",
        GOLDEN: orjson.dumps(golden) + b"\n",
        **({} if onnx is None else {ONNX: onnx}),
        **publication.plots,
        CARD: card.render(manifest, metrics, publication.plots),
    }


def bundle_files(files: Mapping[str, bytes], manifest: Manifest, entry: Entry, sign: Sign | None) -> dict[str, bytes]:
    """Every file of the bundle that was published as `entry`, by name: `files`, the manifest and the seal."""
    raw = describe(files, msgspec.structs.replace(manifest, version=entry.version))
    assert sha256(raw) == entry.digest, "the store has published other bytes"
    return {**files, MANIFEST: raw, **({} if sign is None else {SEAL: sign(entry.digest)})}


def manifest(publication: Publication, verdict: Verdict, record: RunRecord | None) -> Manifest:
    """The manifest of the bundle; `record` is None without tracking."""
    candidate, options = publication.candidate, publication.options
    dataset, signature = candidate.dataset, candidate.signature
    parameters = fit.parameters(candidate.model)
    return Manifest(
        signature=signature,
        feature_names=signature.names,
        target_names=signature.classes,
        model_type=fit.model_type(candidate.model),
        n_estimators=parameters.get("n_estimators"),
        max_depth=parameters.get("max_depth"),
        random_state=publication.random_state,
        n_features=len(signature.features),
        n_samples=dataset.rows,
        local_model_path=JOBLIB,
        **({} if record is None else record.manifest_keys()),
        estimator=options.estimator,
        parameters=parameters,
        data=DataSource(
            name=dataset.name,
            sha256=dataset.sha256,
            rows=dataset.rows,
            columns=len(signature.features) + 1,
            held_out=len(dataset.test),
        ),
        code=source_code(),
        libraries=libraries(),
        onnx=publication.converted.facts,
        trained_at=publication.trained_at,
        test_size=options.test_size,
        reference=reference(dataset.train, dataset.train_target, signature),
        importance=publication.importance,
        search=publication.search,
        decision=publication.decision,
        limits=publication.floors,
        verdict=verdict,
        forced=options.force and not verdict.accepted,
        tags=options.tags,
        tracking="none" if record is None else "mlflow",
    )


def select_golden_rows(rows: Sequence[Mapping[str, Any]], target: npt.NDArray[Any], signature: Signature) -> list[int]:
    """Positions of the held-out rows that become golden examples, ascending.

    Up to three rows of each class and one of each category, boolean value and gap come first, then rows from the top.
    """
    selected: dict[int, None] = {}
    if signature.task == "classification":
        texts = [str(label) for label in target.tolist()]
        for label in signature.classes:
            selected.update(dict.fromkeys([at for at, text in enumerate(texts) if text == str(label)][:3]))
    for feature in signature.features:
        values: list[Any] = [None] if feature.nullable else []
        values += [True, False] if feature.kind == "boolean" else list(feature.categories[:10])
        for value in values:
            first = next((at for at, row in enumerate(rows) if row[feature.name] == value), None)
            if first is not None and len(selected) < GOLDEN_ROWS * 2:
                selected[first] = None
    for at in range(len(rows)):
        if len(selected) >= GOLDEN_ROWS:
            break
        selected[at] = None
    return sorted(selected)


def libraries() -> Libraries:
    """The versions of the libraries that trained; serving compares the first two before it unpickles."""
    return Libraries(
        scikit_learn=version("scikit-learn"),
        numpy=version("numpy"),
        onnxruntime=version("onnxruntime"),
        skl2onnx=version("skl2onnx"),
        python=platform.python_version(),
    )


def requirements() -> list[str]:
    """What a program needs to load the model from MLflow, as `pip` reads it."""
    return [f"{name}=={version(name)}" for name in ("scikit-learn", "numpy", "scipy", "pandas", "skops", "joblib")]


def source_code() -> SourceCode:
    """The code that trained: the package's version and, in a clone or with GIT_COMMIT set, the commit."""
    try:
        package = version("iris-api")
    except PackageNotFoundError:
        package = __version__
    commit: str | None = os.environ.get("GIT_COMMIT") or None
    changed: bool | None = None
    folder = Path(__file__).resolve().parents[1]
    if commit is None and (folder / ".git").exists():
        commit = _git(folder, "rev-parse", "HEAD")
        changed = (
            bool(_git(folder, "status", "--porcelain", "--untracked-files=no", "--", "training", "serve_app")) if commit else None
        )
    return SourceCode(version=package, commit=commit, changed=changed)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        completed = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()
