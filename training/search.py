"""Compares candidates by cross-validation: each fold of each candidate is a Ray task, here or on a cluster (RAY_ADDRESS).

Only the seed decides candidates and folds, and the results have a fixed order. So the number of workers changes only the duration.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, TimeSeriesSplit

from serve_app import progress
from serve_app.artifacts.signature import Signature, Task
from serve_app.errors import UsageError
from serve_app.ray_workers import workers
from training import evaluate, fit
from training.dataset import Dataset
from training.estimators import ESTIMATORS

FOLDS = 5
"""Number of folds of the cross-validation; fewer if a class has fewer rows."""


def search(
    dataset: Dataset, estimator: str, params: Mapping[str, Any], *, candidates: int, random_state: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best parameters, and the record of all candidates for the manifest. `params` are part of every candidate.

    Raises UsageError when the estimator has no search space or a class has too few rows, and BackendUnavailable when Ray does not
    answer.
    """
    proposals = propose(dataset.signature.task, estimator, params, candidates=candidates, random_state=random_state)
    splits = folds(dataset, random_state)
    means = _cv_scores(dataset, estimator, proposals, splits, random_state).mean(axis=1)
    best = int(means.argmax())  # the first of equal results
    metric = "accuracy" if dataset.signature.task == "classification" else "negative rmse"
    table = [{"parameters": proposal, "score": float(mean)} for proposal, mean in zip(proposals, means, strict=True)]
    return proposals[best], {"metric": metric, "folds": len(splits), "chosen": best, "candidates": table}


def propose(task: Task, estimator: str, params: Mapping[str, Any], *, candidates: int, random_state: int) -> list[dict[str, Any]]:
    """Up to `candidates` different sets of parameters, `params` alone first; fewer when the search space is smaller.

    Raises UsageError when the estimator has no search space.
    """
    known = ESTIMATORS.get(estimator)
    if known is None:
        raise UsageError(f"--search has no search space for {estimator}: use it with {', '.join(ESTIMATORS)}")
    fixed = known.own_parameters(params)
    free = {name: values for name, values in known.learner(task).search_space.items() if name not in fixed}
    sizes = [len(values) for values in free.values()]
    total = int(np.prod(sizes)) if sizes else 0
    numbers = np.random.default_rng(random_state).permutation(total)[: candidates - 1]
    proposals = [fixed]
    for number in numbers:
        indexes = np.unravel_index(int(number), sizes)
        proposals.append({**fixed, **{name: values[at] for (name, values), at in zip(free.items(), indexes, strict=True)}})
    return proposals


def folds(dataset: Dataset, random_state: int) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """The training rows and the test rows by fold, split like the dataset; raises UsageError for too few rows."""
    rows, target = len(dataset.train), dataset.train_target
    if dataset.by_time:
        return _folds_by_time(dataset)
    if dataset.groups is not None:
        return _folds_by_group(dataset, dataset.groups, random_state)
    if dataset.signature.task == "regression":
        count = min(FOLDS, rows)
        return list(KFold(count, shuffle=True, random_state=random_state).split(np.zeros(rows)))
    count = min(FOLDS, int(np.unique(target, return_counts=True)[1].min()))
    if count < 2:
        raise UsageError("--search needs at least two rows of each class besides the held-out ones: add rows")
    return list(StratifiedKFold(count, shuffle=True, random_state=random_state).split(np.zeros(rows), target))


def _folds_by_time(dataset: Dataset) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Folds in which the training rows precede the test rows."""
    folds = list(TimeSeriesSplit(min(FOLDS, len(dataset.train) - 1)).split(np.zeros(len(dataset.train))))
    if dataset.signature.task == "classification":
        folds = [fold for fold in folds if len(np.unique(dataset.train_target[fold[0]])) > 1]
    if not folds:
        raise UsageError("--search with --time-column needs two classes among the oldest rows: add rows")
    return folds


def _folds_by_group(
    dataset: Dataset, groups: npt.NDArray[Any], random_state: int
) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Folds in which no group is on both sides."""
    folds = min(FOLDS, len(np.unique(groups)))
    if folds < 2:
        raise UsageError("--search with --group-column needs two groups besides the held-out ones: add rows")
    rows, target = np.zeros(len(groups)), dataset.train_target
    if dataset.signature.task == "regression":
        return list(GroupKFold(folds, shuffle=True, random_state=random_state).split(rows, target, groups))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class with fewer rows than folds
        parts = list(StratifiedGroupKFold(folds, shuffle=True, random_state=random_state).split(rows, target, groups))
    usable = [fold for fold in parts if len(np.unique(target[fold[0]])) > 1 and len(fold[1])]
    if not usable:
        raise UsageError("--search with --group-column needs two classes outside each group: add rows")
    return usable


def _cv_scores(
    dataset: Dataset, estimator: str, proposals: list[dict[str, Any]], folds: list[Any], random_state: int
) -> npt.NDArray[np.float64]:
    """The metric of every proposal on every fold, shape (proposals, folds)."""
    import ray

    scores = np.full((len(proposals), len(folds)), np.nan)
    with workers(), progress.bar(scores.size, "cross-validation", "fit") as bar:
        data = ray.put((dataset.train, dataset.train_target, dataset.signature, estimator, random_state))
        task = ray.remote(num_cpus=1)(_cv_score)
        pending = {
            task.remote(data, params, *fold): (row, column)
            for row, params in enumerate(proposals)
            for column, fold in enumerate(folds)
        }
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            scores[pending.pop(ready)] = ray.get(ready)
            bar.update()
    return scores


def _cv_score(
    data: tuple[pd.DataFrame, npt.NDArray[Any], Signature, str, int],
    params: Mapping[str, Any],
    train: npt.NDArray[Any],
    test: npt.NDArray[Any],
) -> float:
    """One candidate on one fold, in a worker: accuracy, or the negative rmse."""
    frame, target, signature, estimator, random_state = data
    model = fit.build(signature, estimator, params, random_state=random_state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(frame.iloc[train], target[train])
        predictions = model.predict(frame.iloc[test])
    metrics = evaluate.measure(target[test], np.asarray(predictions), signature)
    scalars = metrics.scalars()
    return scalars["accuracy"] if signature.task == "classification" else -scalars["rmse"]
