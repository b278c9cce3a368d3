"""The steps in their order: dataset, fit, evaluate, verdict, tracking, publication.

All that can fail comes before the store's pointer moves; only copies in MLflow come after. Whoever published meanwhile is compared
with first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from serve_app.artifacts.signing import Sign, SigningError, signer
from serve_app.artifacts.store import Entry, PointerMoved, Store
from serve_app.errors import IrisApiError, UsageError
from serve_app.inference.predictor import onnx_scores, sklearn_scores
from training import card, convert, evaluate, figures, fit, publish
from training.candidate import Candidate, fit_candidate, judge
from training.dataset import Dataset, load
from training.evaluate import Verdict
from training.train_options import TrainOptions

if TYPE_CHECKING:
    from training.tracking import Run

REPORT = "verdict.json"

Progress = Callable[[str], AbstractContextManager[None]]
"""Given what is being done, and entered while it is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended; `entry` is what was published, None when the model was refused."""

    verdict: Verdict
    metrics: Mapping[str, Any]
    metadata: Mapping[str, Any]
    entry: Entry | None
    report: Path
    notes: tuple[str, ...]


def train(options: TrainOptions, progress: Progress) -> Outcome:
    """Train, judge and publish. Raises UsageError, BackendUnavailable or StoreError; a refused model is an outcome."""
    sign = None if options.signing_key is None else _signer(options.signing_key)
    seed = secrets.randbelow(2**31) if options.random_state.value is None else options.random_state.value
    with progress("read the data"):
        dataset = load(
            options.data,
            target=options.target,
            task=options.task,
            drop=options.drop,
            bounds=options.column_bounds,
            test_size=options.test_size,
            random_state=seed,
        )
        limits = _limits(options, dataset)
        fit.build(dataset.signature, options.estimator, options.params, random_state=seed)  # a wrong name shows now
    if options.no_tracking:
        return _train(options, dataset, limits, seed, progress, None, sign)
    with progress("connect to MLflow"):
        from training import tracking

        server = tracking.connect(options.tracking_uri, options.experiment_name)
    with tracking.running(server, options.run_name) as run:
        return _train(options, dataset, limits, seed, progress, run, sign)


def _train(
    options: TrainOptions,
    dataset: Dataset,
    limits: Mapping[str, float],
    seed: int,
    progress: Progress,
    run: Run | None,
    sign: Sign | None,
) -> Outcome:
    params, searched = dict(options.params), None
    if options.search:
        from training import search

        with progress(f"search among {options.search} candidates"):
            params, searched = search.search(dataset, options.estimator, params, candidates=options.search, random_state=seed)
    with progress(f"fit {options.estimator} on {len(dataset.train)} rows"):
        candidate = fit_candidate(dataset, options.estimator, params, random_state=seed)
    store = Store(options.model_dir, keep=options.keep)
    with progress(f"evaluate on {len(dataset.test)} held-out rows"):
        pointer, verdict = judge(candidate, store, limits=limits, tolerance=options.tolerance)
    with progress("convert to ONNX and compare"):
        converted = convert.convert(candidate.tail, candidate.signature, candidate.train, candidate.held_out)
    with progress("draw the figures"):
        images, importance = _figures(candidate, converted, seed)
    metadata = publish.describe(candidate, estimator=options.estimator, random_state=seed, onnx=converted.facts)
    metadata |= {"importance": importance, "search": searched, "test_size": options.test_size, "limits": dict(limits)}
    metadata |= {"tags": dict(options.tags), "tracking": "none" if run is None else "mlflow"}
    if run is not None:
        with progress("record the run in MLflow"):
            metadata |= _record(run, options, candidate, metadata)
    files = {**publish.files(candidate, converted.model), **images}
    entry: Entry | None = None
    while entry is None:
        metadata |= {"verdict": verdict.to_dict(), "forced": options.force and not verdict.accepted}
        if not verdict.accepted and not options.force:
            break
        if run is not None and metadata["mlflow_model_version"] is None:
            metadata |= _register(run, options, metadata)
        wanted = metadata["mlflow_model_version"]
        page = card.render(metadata, candidate.metrics, images)
        try:
            with progress(f"publish to {options.model_dir}"):
                entry = store.publish(
                    {**files, "card.html": page},
                    metadata,
                    version=int(wanted) if wanted else None,
                    expected=pointer,
                    check=True,
                    sign=sign,
                )
        except PointerMoved:
            with progress("compare with the model that was published meanwhile"):
                pointer, verdict = judge(candidate, store, limits=limits, tolerance=options.tolerance)
    report = options.report or options.model_dir / REPORT
    notes = [*candidate.notes, *_write_report(report, options, verdict, candidate, metadata, entry)]
    if run is not None:
        with progress("finish the run in MLflow"):
            notes += _finish(
                run, store, metadata, verdict, entry, {**images, "card.html": card.render(metadata, candidate.metrics, images)}
            )
    return Outcome(verdict, candidate.metrics, metadata, entry, report, tuple(notes))


def _signer(file: Path) -> Sign:
    try:
        return signer(file)
    except SigningError as error:
        raise UsageError(f"--signing-key: {error}") from None


def _limits(options: TrainOptions, dataset: Dataset) -> dict[str, float]:
    known = evaluate.NAMES[dataset.signature.task]
    for name in options.floors:
        if name not in known:
            raise UsageError(f"a {dataset.signature.task} has no metric '{name}': use {', '.join(known)}")
    defaults = evaluate.default_floors(dataset.test_target, dataset.signature, built_in=options.data is None)
    return {**defaults, **options.floors}


def _figures(candidate: Candidate, converted: convert.Converted, seed: int) -> tuple[dict[str, bytes], dict[str, float]]:
    signature = candidate.signature
    if converted.model is None:
        score = sklearn_scores(candidate.tail, signature)
    else:
        score = onnx_scores(converted.model, signature, rounded=converted.facts["rounded"])
    drawn, importance = figures.importance(
        candidate.tail, score, candidate.held_out, candidate.target, signature, random_state=seed
    )
    images = {"feature_importance.png": drawn}
    if signature.task == "classification":
        images["confusion_matrix.png"] = figures.confusion(candidate.metrics["confusion_matrix"], signature.classes)
    else:
        images["predicted_and_true.png"] = figures.residuals(candidate.target, candidate.predictions)
    return images, importance


def _record(run: Run, options: TrainOptions, candidate: Candidate, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters, metrics and the model; gives the metadata that name them."""
    from training import tracking

    params = {**metadata["parameters"], "estimator": options.estimator, "random_state": metadata["random_state"]}
    params |= {"test_size": options.test_size, "data": candidate.dataset.name, "data_sha256": candidate.dataset.sha256}
    flat = {name: value for name, value in candidate.metrics.items() if isinstance(value, int | float)}
    for label, row in candidate.metrics.get("per_class", {}).items():
        flat |= {f"{name}_{label}": value for name, value in row.items()}
    run.log(params=params, metrics=flat, tags=options.tags)
    example = candidate.dataset.train.dropna().head(3)
    uri = tracking.log_model(run, candidate.model, candidate.signature, example, publish.requirements())
    return {
        "mlflow_run_uri": run.uri,
        "mlflow_model_uri": uri,
        "mlflow_experiment_name": run.server.experiment_name,
        "mlflow_run_name": run.name,
        "mlflow_run_id": run.run_id,
        "mlflow_relative_path": f"{run.server.experiment_id}/{run.run_id}",
    }


def _register(run: Run, options: TrainOptions, metadata: Mapping[str, Any]) -> dict[str, str]:
    from training import tracking

    version = tracking.register(run, metadata["mlflow_model_uri"], options.model_name)
    return {"mlflow_model_name": options.model_name, "mlflow_model_version": version}


def _finish(
    run: Run, store: Store, metadata: Mapping[str, Any], verdict: Verdict, entry: Entry | None, shown: Mapping[str, bytes]
) -> list[str]:
    """Copies in MLflow of what has been decided; the store is right already, so a failure here is a note."""
    from training import tracking

    try:
        run.upload(shown, "report")
        tags: dict[str, object] = {"verdict": "accepted" if verdict.accepted else "forced" if entry else "refused"}
        if verdict.reasons:
            tags["verdict_reasons"] = "; ".join(verdict.reasons)
        if entry is None:
            run.tag(tags)
            return []
        tags |= {"digest": entry.digest, "store_version": entry.version}
        run.upload({path.name: path.read_bytes() for path in entry.folder.iterdir()}, "bundle")
        run.tag(tags)
        name, version = metadata["mlflow_model_name"], metadata["mlflow_model_version"]
        tracking.tag_version(run.server, name, version, tags)
        tracking.follow(run.server.uri, store)
    except (IrisApiError, OSError) as error:
        if entry is None:
            return [f"the refusal could not be recorded: {error}"]
        return [f"version {entry.version} is published, but its copy in MLflow is incomplete: {error}"]
    return []


def _write_report(
    path: Path, options: TrainOptions, verdict: Verdict, candidate: Candidate, metadata: Mapping[str, Any], entry: Entry | None
) -> list[str]:
    document = {
        **verdict.to_dict(),
        "forced": metadata["forced"],
        "published": None if entry is None else {"version": entry.version, "digest": entry.digest},
        "metrics": candidate.metrics,
        "limits": metadata["limits"],
        "tolerance": options.tolerance,
        "data": metadata["data"],
        "estimator": options.estimator,
        "mlflow_run_id": metadata["mlflow_run_id"],
        "trained_at": metadata["trained_at"],
    }
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        return [f"the report {path} could not be written: {error.strerror}"]
    return []
