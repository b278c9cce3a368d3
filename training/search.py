"""Candidates compared by cross-validation, each fold of each one a Ray task: on this machine, or on the cluster of RAY_ADDRESS.

Candidates and folds follow from the seed alone and the results are put in order before anything is chosen, so the number of
workers changes how long it takes and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold

from serve_app import progress
from serve_app.artifacts.signature import Signature, Task
from serve_app.errors import UsageError
from serve_app.ray_workers import workers
from training import evaluate, fit
from training.dataset import Dataset

FOLDS = 5

SPACES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "random-forest": {
        "n_estimators": (50, 100, 200, 400),
        "max_depth": (3, 5, 10, 20, None),
        "min_samples_leaf": (1, 2, 4, 8),
        "max_features": ("sqrt", 0.5, 1.0),
    },
    "logistic-regression": {"C": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)},
    "hist-gradient-boosting": {
        "learning_rate": (0.03, 0.1, 0.3),
        "max_iter": (50, 100, 200),
        "max_leaf_nodes": (7, 15, 31),
        "min_samples_leaf": (5, 10, 20),
        "l2_regularization": (0.0, 0.1, 1.0),
    },
}
RIDGE: Mapping[str, tuple[Any, ...]] = {"alpha": (0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)}
"""What a regression searches under the name of logistic-regression."""


def search(
    dataset: Dataset, estimator: str, params: Mapping[str, Any], *, candidates: int, random_state: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The best parameters, and what was compared. The given parameters stay as they are in every candidate."""
    tried = propose(dataset.signature.task, estimator, params, candidates=candidates, random_state=random_state)
    folds = _folds(dataset, random_state)
    scores = _scores(dataset, estimator, tried, folds, random_state)
    means = scores.mean(axis=1)
    best = int(means.argmax())  # the first of equals
    metric = "accuracy" if dataset.signature.task == "classification" else "negative rmse"
    table = [{"parameters": given, "score": float(mean)} for given, mean in zip(tried, means, strict=True)]
    return tried[best], {"metric": metric, "folds": len(folds), "chosen": best, "candidates": table}


def propose(task: Task, estimator: str, params: Mapping[str, Any], *, candidates: int, random_state: int) -> list[dict[str, Any]]:
    """Different parameters, the given ones first; fewer when the space holds no more."""
    space = RIDGE if (task, estimator) == ("regression", "logistic-regression") else SPACES.get(estimator)
    if space is None:
        raise UsageError(f"--search knows no parameters of {estimator}: use it with {', '.join(SPACES)}")
    given = dict(params)
    if estimator == "hist-gradient-boosting" and "n_estimators" in given:
        given["max_iter"] = given.pop("n_estimators")
    free = {name: values for name, values in space.items() if name not in given}
    sizes = [len(values) for values in free.values()]
    total = int(np.prod(sizes)) if sizes else 0
    numbers = np.random.default_rng(random_state).permutation(total)[: candidates - 1]
    found = [given]
    for number in numbers:
        places = np.unravel_index(int(number), sizes)
        found.append({**given, **{name: values[place] for (name, values), place in zip(free.items(), places, strict=True)}})
    return found


def _folds(dataset: Dataset, random_state: int) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    rows, target = len(dataset.train), dataset.train_target
    if dataset.signature.task == "regression":
        folds = min(FOLDS, rows)
        return list(KFold(folds, shuffle=True, random_state=random_state).split(np.zeros(rows)))
    folds = min(FOLDS, int(np.unique(target, return_counts=True)[1].min()))
    if folds < 2:
        raise UsageError("--search needs at least two rows of each class besides the held-out ones: add rows")
    return list(StratifiedKFold(folds, shuffle=True, random_state=random_state).split(np.zeros(rows), target))


def _scores(
    dataset: Dataset, estimator: str, tried: list[dict[str, Any]], folds: list[Any], random_state: int
) -> npt.NDArray[np.float64]:
    import ray

    scores = np.full((len(tried), len(folds)), np.nan)
    with workers(), progress.bar(scores.size, "cross-validation", "fit") as bar:
        data = ray.put((dataset.train, dataset.train_target, dataset.signature, estimator, random_state))
        task = ray.remote(num_cpus=1)(_score)
        waiting = {task.remote(data, given, *fold): (at, of) for at, given in enumerate(tried) for of, fold in enumerate(folds)}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            scores[waiting.pop(done)] = ray.get(done)
            bar.update()
    return scores


def _score(
    data: tuple[pd.DataFrame, npt.NDArray[Any], Signature, str, int],
    params: Mapping[str, Any],
    learn: npt.NDArray[Any],
    check: npt.NDArray[Any],
) -> float:
    """One candidate on one fold, in a worker: accuracy, or the error with a minus."""
    frame, target, signature, estimator, random_state = data
    model = fit.build(signature, estimator, params, random_state=random_state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(frame.iloc[learn], target[learn])
        found = model.predict(frame.iloc[check])
    metrics = evaluate.measure(target[check], np.asarray(found), signature)
    return float(metrics["accuracy"]) if signature.task == "classification" else -float(metrics["rmse"])
