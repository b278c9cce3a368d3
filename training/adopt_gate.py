"""The gate for an adopted model: the same verdict and publication as for a trained model."""

from __future__ import annotations

from dataclasses import replace

from serve_app.errors import UsageError
from serve_app.progress import Progress
from training.adoption import Adoption
from training.evaluate import COVERAGE_METRICS
from training.pipeline import Job, Outcome, floors, judge_and_publish, read_keys, run_job
from training.train_options import TrainOptions
from training.unlabelled import UNLABELLED


def pass_gate(adoption: Adoption, options: TrainOptions, progress: Progress) -> Outcome:
    """Judge the model, and publish it when it is accepted; a refusal is an outcome, not an error.

    Raises UsageError, BackendUnavailable or StoreError; nothing is published then.
    """
    candidate = adoption.candidate
    keys = read_keys(options)
    options = replace(
        options,
        data=adoption.sample.name,
        target=", ".join(adoption.sample.targets) or None,
        estimator=adoption.record.model_class or "",
    )
    for name in COVERAGE_METRICS:
        if name in options.floors:
            raise UsageError(f"--floor {name} needs intervals or prediction sets, which an adopted model does not have: omit it")
    if candidate.is_labelled or adoption.signature.task in UNLABELLED:
        required = floors(options, candidate.dataset)
    elif options.floors:
        raise UsageError("--floor and --min-accuracy need labels: give the name of their column with --target")
    else:
        required = {}
    seed = options.random_state.value or 0
    job = Job(options, candidate.dataset, required, seed, progress, keys.policy, keys.sign, adopted=True)
    return run_job(job, lambda job: judge_and_publish(job, candidate, adoption.converted, adoption=adoption.record))
