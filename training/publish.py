"""The bundle of a trained model: its files, and the metadata that describes them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from serve_app import __version__
from serve_app.artifacts.manifest import DataSource, Libraries, Manifest, OnnxConversion, SourceCode
from serve_app.artifacts.names import GOLDEN, JOBLIB, METRICS, ONNX
from serve_app.artifacts.signature import Signature
from training import fit
from training.candidate import Candidate
from training.reference import reference

GOLDEN_ROWS = 50


def files(candidate: Candidate, onnx: bytes | None) -> dict[str, bytes]:
    """What is served: the model in its one or two forms, its metrics, and the examples that prove it."""
    chosen = golden_choice(candidate.rows, candidate.target[: len(candidate.rows)], candidate.signature)
    golden = {
        "rows": [candidate.rows[at] for at in chosen],
        "scores": np.asarray(candidate.scores, dtype=np.float64)[chosen].tolist(),
    }
    made = {
        JOBLIB: candidate.file,
        METRICS: orjson.dumps(candidate.metrics, option=orjson.OPT_INDENT_2) + b"\n",
        GOLDEN: orjson.dumps(golden) + b"\n",
    }
    return made if onnx is None else {**made, ONNX: onnx}


def describe(candidate: Candidate, *, estimator: str, random_state: int, onnx: OnnxConversion) -> Manifest:
    """The part of the manifest that follows from the model and its data."""
    dataset, signature = candidate.dataset, candidate.signature
    parameters = fit.parameters(candidate.model)
    return Manifest(
        signature=signature,
        feature_names=signature.names,
        target_names=signature.classes,
        model_type=fit.model_type(candidate.model),
        n_estimators=parameters.get("n_estimators"),
        max_depth=parameters.get("max_depth"),
        random_state=random_state,
        n_features=len(signature.features),
        n_samples=dataset.rows,
        local_model_path=JOBLIB,
        estimator=estimator,
        parameters=parameters,
        data=DataSource(
            name=dataset.name,
            sha256=dataset.sha256,
            rows=dataset.rows,
            columns=len(signature.features) + 1,
            held_out=len(dataset.test),
        ),
        code=code(),
        libraries=libraries(),
        onnx=onnx,
        trained_at=datetime.now(UTC).isoformat(timespec="seconds"),
        reference=reference(dataset.train, dataset.train_target, signature),
    )


def golden_choice(rows: Sequence[Mapping[str, Any]], target: npt.NDArray[Any], signature: Signature) -> list[int]:
    """Which held-out rows become golden examples: each class, each category and a gap of each feature first, then from the top."""
    chosen: dict[int, None] = {}
    if signature.task == "classification":
        texts = [str(label) for label in target.tolist()]
        for label in signature.classes:
            chosen.update(dict.fromkeys([at for at, text in enumerate(texts) if text == str(label)][:3]))
    for feature in signature.features:
        wanted: list[Any] = [None] if feature.nullable else []
        wanted += [True, False] if feature.kind == "boolean" else list(feature.categories[:10])
        for value in wanted:
            found = next((at for at, row in enumerate(rows) if row[feature.name] == value), None)
            if found is not None and len(chosen) < GOLDEN_ROWS * 2:
                chosen[found] = None
    for at in range(len(rows)):
        if len(chosen) >= GOLDEN_ROWS:
            break
        chosen[at] = None
    return sorted(chosen)


def libraries() -> Libraries:
    """What the model was made with; serving compares the first two before it unpickles."""
    return Libraries(
        scikit_learn=version("scikit-learn"),
        numpy=version("numpy"),
        onnxruntime=version("onnxruntime"),
        skl2onnx=version("skl2onnx"),
        python=platform.python_version(),
    )


def requirements() -> list[str]:
    return [f"{name}=={version(name)}" for name in ("scikit-learn", "numpy", "scipy", "skops", "joblib")]


def code() -> SourceCode:
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
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
