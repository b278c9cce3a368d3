"""The record of a training in MLflow: the run with the model, a version of the registered model, and copies of the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from serve_app.artifacts.manifest import Verdict
from serve_app.artifacts.names import (
    BUNDLE_FOLDER,
    DIGEST_TAG,
    REPORT_FOLDER,
    STORE_VERSION_TAG,
    VERDICT_REASONS_TAG,
    VERDICT_TAG,
)
from serve_app.artifacts.store import Entry, Store
from serve_app.errors import IrisApiError
from serve_app.inference.policy import LoadPolicy
from training import fit, tracking
from training import publication as bundles
from training.evaluate import AnyMetrics, ClassificationMetrics
from training.publication import Publication
from training.tracking import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """The location of a run and its model in MLflow; the version is None until the model is registered."""

    run_uri: str
    model_uri: str
    experiment_name: str
    run_name: str
    run_id: str
    relative_path: str
    model_name: str | None = None
    model_version: str | None = None

    def manifest_keys(self) -> dict[str, Any]:
        """The keys of the manifest that name the run and the version."""
        return {f"mlflow_{field.name}": getattr(self, field.name) for field in fields(self)}

    @property
    def version_number(self) -> int | None:
        """The version of the registered model as a number; the store uses the same number if it is free."""
        return None if self.model_version is None else int(self.model_version)


def record(run: Run, publication: Publication) -> RunRecord:
    """Record parameters, metrics, tags and the model; raises BackendUnavailable."""
    candidate, options = publication.candidate, publication.options
    params = {
        **fit.parameters(candidate.model),
        "estimator": options.estimator,
        **({} if publication.adoption else {"random_state": publication.random_state, "test_size": options.test_size}),
        "data": candidate.dataset.name,
        "data_sha256": candidate.dataset.sha256,
        **(publication.decision or {}),
    }
    run.log(params=params, metrics=flat_metrics(candidate.metrics), tags=options.tags)
    model_uri = tracking.log_model(
        run,
        candidate.model,
        candidate.signature,
        bundles.requirements(candidate.model),
        frame=candidate.frame,
        packages=candidate.packages,
    )
    return RunRecord(
        run_uri=run.uri,
        model_uri=model_uri,
        experiment_name=run.server.experiment_name,
        run_name=run.name,
        run_id=run.run_id,
        relative_path=f"{run.server.experiment_id}/{run.run_id}",
    )


def flat_metrics(metrics: AnyMetrics) -> dict[str, float]:
    """Every metric by name; the name of a metric of a class ends in `_` and the class."""
    flat = {**metrics.scalars(), "rows": metrics.rows}
    if isinstance(metrics, ClassificationMetrics):
        for label, by_class in metrics.per_class.items():
            flat |= {
                f"precision_{label}": by_class.precision,
                f"recall_{label}": by_class.recall,
                f"f1_score_{label}": by_class.f1_score,
                f"support_{label}": by_class.support,
            }
    return flat


def register(run: Run, record: RunRecord, name: str) -> RunRecord:
    """Register the run's model as a new version of `name`; raises BackendUnavailable."""
    return replace(record, model_name=name, model_version=tracking.register(run, record.model_uri, name))


def finish(
    run: Run,
    record: RunRecord,
    verdict: Verdict,
    entry: Entry | None,
    bundle: Mapping[str, bytes],
    report: Mapping[str, bytes],
) -> list[str]:
    """Copy the report, the verdict and the published bundle to MLflow; returns a failure as a note.

    `bundle` and `report` are files by name. They come from the trainer's memory and not from the store, where a link to another
    file may have replaced a file meanwhile.
    """
    tags: dict[str, object] = {VERDICT_TAG: "accepted" if verdict.accepted else "forced" if entry else "refused"}
    if verdict.reasons:
        tags[VERDICT_REASONS_TAG] = "; ".join(verdict.reasons)
    try:
        run.upload(report, REPORT_FOLDER)
        if entry is None:
            run.tag(tags)
            return []
        tags |= {DIGEST_TAG: entry.digest, STORE_VERSION_TAG: entry.version}
        run.upload(bundle, BUNDLE_FOLDER)
        run.tag(tags)
        if record.model_name is not None and record.model_version is not None:
            tracking.tag_version(run.server, record.model_name, record.model_version, tags)
    except (IrisApiError, OSError) as error:
        if entry is None:
            return [f"the refusal could not be recorded: {error}"]
        return [f"version {entry.version} is published, but its copy in MLflow is incomplete: {error}"]
    return []


def follow(run: Run, store: Store, model_name: str, policy: LoadPolicy, alias: str) -> list[str]:
    """Move the alias of the registered model to the version that the store serves; returns a failure as a note."""
    try:
        tracking.follow(run.server.uri, store, model_name, policy, alias)
    except IrisApiError as error:
        return [str(error)]
    return []
