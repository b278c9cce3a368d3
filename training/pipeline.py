"""The steps of a training in their order: dataset, fit, evaluate, verdict, tracking, publication.

Every step that can fail comes before the store's pointer moves; only copies in MLflow come after. When another model was published
meanwhile, the candidate is compared with that one first.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.artifacts.manifest import Adopted, Manifest, Verdict
from serve_app.artifacts.names import CARD, CONFUSION_IMAGE, IMPORTANCE_IMAGE, REPORT, RESIDUALS_IMAGE
from serve_app.artifacts.signing import Sign, SigningError, signer
from serve_app.artifacts.store import Entry, PointerMoved, Store
from serve_app.errors import BundleRefused, UsageError
from serve_app.inference.backends.onnx_backend import OnnxBackend
from serve_app.inference.backends.sklearn_backend import SklearnBackend
from serve_app.inference.policy import LoadPolicy, load_policy
from serve_app.progress import Progress, note
from serve_app.tables.dialect import DialectFlags
from serve_app.tables.fetch import fetched
from serve_app.tables.location import Location
from serve_app.tables.scratch import ScratchSpace
from training import calibration, card, column_report, coverage, figures, fit, importance, threshold
from training import publication as bundles
from training.candidate import Candidate, fit_candidate, gather_evidence
from training.comparison import Comparison, require_same_columns
from training.convert import Converted, convert
from training.dataset import Dataset, load
from training.evaluate import COVERAGE_METRICS, AnyMetrics, ClassificationMetrics, RegressionMetrics, metric_names
from training.importance import Importance
from training.publication import Publication
from training.report import write_columns, write_report
from training.rules import Evidence, constant_floors, default_floors, judge
from training.train_options import TrainOptions
from training.unlabelled import UNLABELLED

if TYPE_CHECKING:
    from training.run_record import RunRecord
    from training.tracking import Run


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a training; `entry` is the published version, None when the model was refused."""

    verdict: Verdict
    comparison: Comparison
    metrics: AnyMetrics
    manifest: Manifest
    entry: Entry | None
    report: Path
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """The common data of all steps of one training. `run` is None without tracking, `sign` without a signing key.

    `policy` is the load policy for bundles of the store. `adopted`: the model was fitted elsewhere.
    """

    options: TrainOptions
    dataset: Dataset
    floors: Mapping[str, float]
    random_state: int
    progress: Progress
    policy: LoadPolicy
    sign: Sign | None = None
    run: Run | None = None
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict with its comparison, the manifest with both, and the published version, None when the model was refused.

    `bundle` holds the published files by name, as this process made them.
    """

    verdict: Verdict
    comparison: Comparison
    manifest: Manifest
    record: RunRecord | None
    entry: Entry | None
    bundle: Mapping[str, bytes] = field(default_factory=dict)


def train(options: TrainOptions, progress: Progress) -> Outcome:
    """Train, judge and publish; a refusal is an outcome, not an error.

    Raises UsageError, BackendUnavailable or StoreError; nothing is published then.
    """
    keys = read_keys(options)
    seed = _seed(options)
    dataset, required = _prepare(options, seed, progress)
    return run_job(Job(options, dataset, required, seed, progress, keys.policy, keys.sign), _train)


@dataclass(frozen=True, slots=True)
class Keys:
    """The load policy for bundles of the store, and the signer of a new bundle."""

    policy: LoadPolicy
    sign: Sign | None


def read_keys(options: TrainOptions) -> Keys:
    """The load policy and the signer from the options; raises UsageError for a file that is not a key."""
    sign = None if options.signing_key is None else _load_signer(options.signing_key)
    policy = load_policy(
        allow_joblib=options.allow_joblib,
        backend=options.prefer,
        verify_key=options.verify_key,
        signing_key=options.signing_key,
    )
    return Keys(policy, sign)


def run_job(job: Job, work: Callable[[Job], Outcome]) -> Outcome:
    """Do the work in a run of MLflow, or without MLflow when the options say so; raises the errors of `train`."""
    options = job.options
    if options.same_columns:
        _require_same_columns(Store(options.model_dir), job)
    if options.no_tracking:
        return work(job)
    with job.progress("connect to MLflow"):
        from training import tracking

        server = tracking.connect(options.tracking_uri, options.experiment_name)
    with tracking.running(server, options.run_name) as run:
        return work(replace(job, run=run))


def _require_same_columns(store: Store, job: Job) -> None:
    """Raise UsageError when the candidate changes the columns or the target of the served model, if that model can be read."""
    try:
        served = store.current(job.policy)
    except BundleRefused:
        return
    if served is not None and served.signature is not None:
        require_same_columns(served.signature, job.dataset.signature, adopted=job.adopted)


def look(options: TrainOptions, progress: Progress) -> None:
    """Print the report on each column, and write it to `--report`; raises UsageError like `train`."""
    dataset, _ = _prepare(options, _seed(options), progress)
    if options.report is not None:
        write_columns(options.report, dataset.columns)


def _seed(options: TrainOptions) -> int:
    return options.random_state.value if options.random_state.value is not None else secrets.randbelow(2**31)


def _prepare(options: TrainOptions, seed: int, progress: Progress) -> tuple[Dataset, dict[str, float]]:
    """Read the dataset and the floors, and print the report on the table."""
    space = ScratchSpace(options.scratch_dir, options.scratch_bytes)
    location = None if options.data is None else Location(options.data, allow_http=options.allow_http)
    with nullcontext() if location is None else fetched(location, space, progress) as source, progress("read the data"):
        dataset = _load_dataset(options, source, seed)
        if options.threshold_rule is not None:
            dataset = replace(dataset, signature=threshold.check(dataset.signature, options.threshold_rule))
        if options.search and dataset.signature.outputs:
            raise UsageError("--search needs one target: omit --search, or give one --target")
        if options.calibrate is not None:
            calibration.check(dataset.signature)
        if options.coverage is not None:
            dataset = coverage.hold_back(dataset, options.coverage, seed)
        required = floors(options, dataset)
        fit.build(
            dataset.signature, options.estimator, options.params, random_state=seed
        )  # an unknown name must fail before the fit
    for line in (*dataset.remarks, *column_report.lines(dataset.columns)):
        note(line)
    return dataset, required


def _train(job: Job) -> Outcome:
    params, search = _search(job)
    job, threshold_record = _decide_threshold(job, params)
    candidate = _fit(job, params)
    with job.progress("convert to ONNX and compare"):
        converted = convert(candidate.estimator, candidate.signature, candidate.train, candidate.held_out)
    return judge_and_publish(job, candidate, converted, search=search, decision=threshold_record)


def judge_and_publish(
    job: Job,
    candidate: Candidate,
    converted: Converted,
    *,
    search: Mapping[str, Any] | None = None,
    decision: Mapping[str, Any] | None = None,
    adoption: Adopted | None = None,
) -> Outcome:
    """Pass the candidate through the gate: compare it with the served model, judge it, and publish it when it is accepted."""
    store = Store(job.options.model_dir, keep=job.options.keep)
    with job.progress(f"evaluate on {len(job.dataset.test)} held-out rows"):
        pointer, evidence = _gather_evidence(job, candidate, converted, store)
    measured = _measure_importance(job, candidate, converted)
    with job.progress("draw the figures"):
        plots = _plots(candidate, measured)
    publication = Publication(
        candidate,
        job.options,
        job.floors,
        job.random_state,
        converted,
        plots,
        importance=measured.by_feature(candidate.signature.names),
        search=search,
        decision=decision,
        adoption=adoption,
    )
    record = _record_run(job, publication)
    decided = _decide(job, publication, store, pointer, evidence, record)
    return _finish(job, publication, store, decided)


def _load_signer(file: Path) -> Sign:
    try:
        return signer(file)
    except SigningError as error:
        raise UsageError(f"--signing-key: {error}") from None


def _load_dataset(options: TrainOptions, source: Location | None, seed: int) -> Dataset:
    return load(
        source,
        target=options.target,
        task=options.task,
        drop=options.drop,
        bounds=options.column_bounds,
        dates=options.dates,
        time_column=options.time_column,
        group_column=options.group_column,
        test_size=options.test_size,
        random_state=seed,
        drop_unlabelled=options.drop_rows_without_target,
        drop_rare=options.drop_rare_classes,
        flags=DialectFlags(options.separator, options.decimal, options.encoding),
        missing=options.na or None,
        kinds=options.kinds,
    )


def floors(options: TrainOptions, dataset: Dataset) -> dict[str, float]:
    """The default floors, replaced by those from flags."""
    known = metric_names(dataset.signature)
    for name in options.floors:
        if name not in known:
            raise UsageError(f"a {dataset.signature.task} has no metric '{name}': use {', '.join(known)}")
        if name in COVERAGE_METRICS and options.coverage is None:
            raise UsageError(f"--floor {name} needs intervals or prediction sets: add --coverage")
    defaults = default_floors(dataset.test_target, dataset.signature, built_in=options.data is None)
    return {**defaults, **options.floors}


def _search(job: Job) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The parameters for the fit, and the record of the search, if any."""
    options = job.options
    if not options.search:
        return options.params, None
    from training import search

    with job.progress(f"search among {options.search} candidates"):
        return search.search(
            job.dataset, options.estimator, options.params, candidates=options.search, random_state=job.random_state
        )


def _decide_threshold(job: Job, params: Mapping[str, Any]) -> tuple[Job, Mapping[str, Any] | None]:
    """The job with the threshold in the signature, and the record of the decision; unchanged without flags for a threshold."""
    rule = job.options.threshold_rule
    if rule is None:
        return job, None
    with job.progress("decide the threshold"):
        signature, decision = threshold.decide(
            job.dataset,
            rule,
            job.options.estimator,
            params,
            random_state=job.random_state,
            calibrate=job.options.calibrate,
        )
    note(f"class '{decision['positive']}' is predicted if its probability is at least {decision['threshold']:g}")
    return replace(job, dataset=replace(job.dataset, signature=signature)), decision


def _fit(job: Job, params: Mapping[str, Any]) -> Candidate:
    with job.progress(f"fit {job.options.estimator} on {len(job.dataset.train)} rows"):
        return fit_candidate(
            job.dataset,
            job.options.estimator,
            params,
            random_state=job.random_state,
            calibrate=job.options.calibrate,
            level=job.options.coverage,
        )


def _gather_evidence(job: Job, candidate: Candidate, converted: Converted, store: Store) -> tuple[str | None, Evidence]:
    options = job.options
    return gather_evidence(
        candidate,
        store,
        job.policy,
        floors=job.floors,
        tolerance=options.tolerance,
        needs_pickle=converted.model is None and converted.native is None,
        constant=constant_floors(candidate.signature, options.floors, built_in=options.data is None),
        allow_unpredicted=options.allow_unpredicted_classes,
        adopted=job.adopted,
    )


def _measure_importance(job: Job, candidate: Candidate, converted: Converted) -> Importance:
    signature, seconds = candidate.signature, job.options.importance_seconds
    if not candidate.is_labelled or signature.task in UNLABELLED:
        return Importance({}, {})
    if converted.model is None:
        score = SklearnBackend(candidate.estimator, signature).scores
    else:
        score = OnnxBackend(converted.model, signature, rounded=bool(converted.facts.rounded)).scores
    with job.progress(f"measure the importance of {len(signature.names)} columns, for at most {seconds:g} s"):
        return importance.measure(
            candidate.estimator,
            score,
            candidate.held_out,
            candidate.target,
            signature,
            random_state=job.random_state,
            seconds=seconds,
        )


def _plots(candidate: Candidate, measured: Importance) -> dict[str, bytes]:
    """The figures as PNG files by name, without the figure of importances when none was measured."""
    signature = candidate.signature
    plots = {IMPORTANCE_IMAGE: figures.importances(measured, signature)} if measured.mean else {}
    if isinstance(candidate.metrics, ClassificationMetrics):
        plots[CONFUSION_IMAGE] = figures.confusion(candidate.metrics.confusion_matrix, signature.classes)
    elif isinstance(candidate.metrics, RegressionMetrics):
        plots[RESIDUALS_IMAGE] = figures.residuals(candidate.target, candidate.predictions)
    return plots


def _record_run(job: Job, publication: Publication) -> RunRecord | None:
    if job.run is None:
        return None
    from training import run_record

    with job.progress("record the run in MLflow"):
        return run_record.record(job.run, publication)


def _decide(
    job: Job, publication: Publication, store: Store, pointer: str | None, evidence: Evidence, record: RunRecord | None
) -> Decision:
    """Judge the candidate, and publish it when it is accepted or forced; judge again when another model was published meanwhile."""
    while True:
        verdict = judge(evidence)
        if not verdict.accepted and not job.options.force:
            return Decision(verdict, evidence.comparison, bundles.manifest(publication, verdict, record), record, None)
        record = _register(job, record)
        manifest = bundles.manifest(publication, verdict, record)
        files = bundles.files(publication, manifest)
        try:
            with job.progress(f"publish to {job.options.model_dir}"):
                entry = store.publish(
                    files,
                    manifest,
                    version=None if record is None else record.version_number,
                    expected=pointer,
                    check=True,
                    sign=job.sign,
                )
        except PointerMoved:
            with job.progress("compare with the model that was published meanwhile"):
                pointer, evidence = _gather_evidence(job, publication.candidate, publication.converted, store)
        else:
            bundle = bundles.bundle_files(files, manifest, entry, job.sign)
            return Decision(verdict, evidence.comparison, manifest, record, entry, bundle)


def _register(job: Job, record: RunRecord | None) -> RunRecord | None:
    """The record with a version of the registered model; an existing version stays."""
    if job.run is None or record is None or record.model_version is not None:
        return record
    from training import run_record

    return run_record.register(job.run, record, job.options.model_name)


def _finish(job: Job, publication: Publication, store: Store, decision: Decision) -> Outcome:
    """Write the report and the copies in MLflow. The store is complete already, so a failure becomes a note."""
    path = job.options.report or job.options.model_dir / REPORT
    candidate, entry = publication.candidate, decision.entry
    notes = [*candidate.notes, *write_report(path, publication, decision.manifest, decision.verdict, entry)]
    if job.run is not None and decision.record is not None:
        from training import run_record

        with job.progress("finish the run in MLflow"):
            report = {
                **publication.plots,
                CARD: card.render(decision.manifest, candidate.metrics.to_dict(), publication.plots),
            }
            notes += run_record.finish(job.run, decision.record, decision.verdict, entry, decision.bundle, report)
            if entry is not None:
                notes += run_record.follow(job.run, store, job.options.model_name, job.policy, job.options.model_alias)
    return Outcome(decision.verdict, decision.comparison, candidate.metrics, decision.manifest, entry, path, tuple(notes))
