"""The bundle of a trained model: its files, and the manifest that describes them."""

from __future__ import annotations

import contextlib
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
from serve_app.artifacts.manifest import Adopted, DataSource, Libraries, Manifest, SourceCode, Verdict, describe, sha256
from serve_app.artifacts.names import CARD, GOLDEN, JOBLIB, MANIFEST, METRICS, ONNX, SEAL
from serve_app.artifacts.signature import Signature
from serve_app.artifacts.signing import Sign
from serve_app.artifacts.store import Entry
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from serve_app.inference.booster_estimators import library
from training import card, fit
from training.boosters import distribution, is_booster
from training.candidate import Candidate, GoldenExamples
from training.convert import Converted
from training.reference import reference
from training.train_options import TrainOptions
from training.unlabelled import UNLABELLED, answers

if TYPE_CHECKING:
    from training.run_record import RunRecord

GOLDEN_ROWS = 50
"""Number of golden examples in a bundle, unless classes and categories need more."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Publication:
    """The content of a bundle, except the verdict and the version.

    `plots` are PNG files by name, `importance` is the mean loss by feature (None: not measured), `search` the record of a search or
    None, `decision` that of a threshold. `adoption` is the origin of a model that was fitted elsewhere.
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
    adoption: Adopted | None = None
    trained_at: str = field(default_factory=_now)


def files(publication: Publication, manifest: Manifest) -> dict[str, bytes]:
    """The files of the bundle by name: the model in one or two forms, metrics, golden examples, plots and the card."""
    candidate = publication.candidate
    examples = candidate.golden or _golden_examples(candidate)
    golden = {"rows": examples.rows, "scores": np.asarray(examples.scores, dtype=np.float64).tolist()}
    metrics = candidate.metrics.to_dict()
    onnx, native = publication.converted.model, publication.converted.native
    return {
        JOBLIB: candidate.pickle,
        **candidate.packages,
        METRICS: orjson.dumps(metrics, option=orjson.OPT_INDENT_2) + b"\n",
        GOLDEN: orjson.dumps(golden) + b"\n",
        **({} if onnx is None else {ONNX: onnx}),
        **({} if native is None else {native.form.file: native.data}),
        **publication.plots,
        CARD: card.render(manifest, metrics, publication.plots),
    }


def _golden_examples(candidate: Candidate) -> GoldenExamples:
    selected = select_golden_rows(candidate.rows, candidate.target[: len(candidate.rows)], candidate.signature)
    return GoldenExamples([candidate.rows[at] for at in selected], candidate.scores[selected])


def bundle_files(files: Mapping[str, bytes], manifest: Manifest, entry: Entry, sign: Sign | None) -> dict[str, bytes]:
    """Every file of the bundle published as `entry`, by name: `files`, the manifest and the seal."""
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
        random_state=publication.random_state if publication.adoption is None else None,
        n_features=len(signature.features),
        n_samples=dataset.rows,
        local_model_path=JOBLIB,
        **({} if record is None else record.manifest_keys()),
        estimator=options.estimator if publication.adoption is None else publication.adoption.model_class,
        parameters=parameters,
        data=DataSource(
            name=dataset.name,
            sha256=dataset.sha256,
            rows=dataset.rows,
            columns=len(signature.features) + (0 if signature.task in UNLABELLED else max(1, len(signature.outputs))),
            held_out=len(dataset.test),
        ),
        code=source_code(),
        libraries=libraries(() if publication.adoption is None else publication.adoption.packages),
        onnx=publication.converted.facts,
        native=None if publication.converted.native is None else publication.converted.native.form,
        trained_at=publication.trained_at,
        test_size=options.test_size if publication.adoption is None else None,
        reference=reference(dataset.train, _reference_target(candidate), signature),
        importance=publication.importance,
        search=publication.search,
        decision=publication.decision,
        calibration=_calibration(publication),
        limits=publication.floors,
        verdict=verdict,
        forced=options.force and not verdict.accepted,
        tags=options.tags,
        tracking="none" if record is None else "mlflow",
        adopted=publication.adoption,
        frame=candidate.frame,
    )


def _reference_target(candidate: Candidate) -> npt.NDArray[Any]:
    """The targets of the training rows; for a model without a target, the scores or clusters of these rows."""
    signature = candidate.signature
    if signature.task not in UNLABELLED:
        return candidate.dataset.train_target
    scores = SklearnBackend(candidate.estimator, signature).scores(candidate.train)
    return scores if signature.task == "outlier detection" else answers(scores, signature)


def _calibration(publication: Publication) -> dict[str, Any] | None:
    """The method of the calibration, and the number of rows for the bound of the coverage."""
    held_back = publication.candidate.dataset.calibration
    record = {"method": publication.options.calibrate, "rows": None if held_back is None else len(held_back)}
    return {key: value for key, value in record.items() if value is not None} or None


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


def libraries(packages: Sequence[str] = ()) -> Libraries:
    """The versions of the training libraries; serving compares the first two before it unpickles.

    `packages` are import names of further packages; packages without a version are left out.
    """
    others = {}
    for name in packages:
        if name not in ("sklearn", "numpy"):
            with contextlib.suppress(PackageNotFoundError):
                others[name] = version(distribution(name))
    return Libraries(
        extra=others,
        scikit_learn=version("scikit-learn"),
        numpy=version("numpy"),
        onnxruntime=version("onnxruntime"),
        skl2onnx=version("skl2onnx"),
        python=platform.python_version(),
    )


def requirements(model: Any) -> list[str]:
    """The requirements to load the model from MLflow, in the format of `pip`."""
    names = ["scikit-learn", "numpy", "scipy", "pandas", "skops", "joblib"]
    if is_booster(fit.final_estimator(model)):
        names.append(distribution(library(fit.final_estimator(model))))
    return [f"{name}=={version(name)}" for name in names]


def source_code() -> SourceCode:
    """The code of the training: the version of the package and, in a clone or with GIT_COMMIT set, the commit."""
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
