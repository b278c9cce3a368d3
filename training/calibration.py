"""Calibrated probabilities: about 80 in 100 rows with a probability of 0.8 belong to the class.

The estimator is fitted on all training rows. The correction of its probabilities is learnt from cross-validated predictions
(scikit-learn's CalibratedClassifierCV with `ensemble=False`), so a call costs little more than without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from serve_app.artifacts.signature import Signature
from serve_app.errors import UsageError
from training.dataset import Dataset
from training.train_options import CalibrationMethod

FOLDS = 5
"""Number of folds of the cross-validation; fewer if a class has fewer rows."""


def check(signature: Signature) -> None:
    """Raise UsageError for a task without probabilities of one target."""
    if signature.task != "classification" or signature.outputs:
        raise UsageError("--calibrate needs one target of classes: omit it")


def calibrated(estimator: Any, method: CalibrationMethod) -> CalibratedClassifierCV:
    """The unfitted estimator with a correction of its probabilities."""
    return CalibratedClassifierCV(estimator, method=method, ensemble=False)


@contextmanager
def cross_validation(estimator: Any, dataset: Dataset, random_state: int) -> Iterator[None]:
    """Give a calibrated estimator the folds of this dataset inside the block; do nothing for another estimator.

    No group is on both sides of a fold, and rows in time order are not shuffled. Raises UsageError for too few rows of a class.
    """
    if not isinstance(estimator, CalibratedClassifierCV):
        yield
        return
    target = np.array([str(label) for label in dataset.train_target.tolist()])
    count = min(FOLDS, int(np.unique(target, return_counts=True)[1].min()))
    if count < 2:
        raise UsageError("--calibrate needs at least two rows of each class besides the held-out ones: add rows")
    if dataset.groups is not None:
        count = min(count, len(np.unique(dataset.groups)))
        if count < 2:
            raise UsageError("--calibrate with --group-column needs two groups besides the held-out ones: add rows")
    splitter: Any = StratifiedKFold(count) if dataset.by_time else StratifiedKFold(count, shuffle=True, random_state=random_state)
    if dataset.groups is not None:
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=random_state)
    estimator.cv = list(splitter.split(np.zeros(len(target)), target, dataset.groups))
    yield
    estimator.cv = None  # positions of training rows must not get into the bundle


def inner(estimator: Any) -> Any:
    """The estimator whose probabilities are corrected, the fitted one after a fit; without a correction, the estimator itself."""
    if not isinstance(estimator, CalibratedClassifierCV):
        return estimator
    fitted = getattr(estimator, "calibrated_classifiers_", None)
    return fitted[0].estimator if fitted else estimator.estimator
