"""The estimators of training that can be fitted here: those of scikit-learn, and the boosters whose packages are installed."""

from __future__ import annotations

from training.estimators import ESTIMATORS

INSTALLED = tuple(name for name, estimator in ESTIMATORS.items() if estimator.is_installed)
OF_SCIKIT_LEARN = tuple(name for name, estimator in ESTIMATORS.items() if estimator.package is None)
BOOSTERS = tuple(name for name in INSTALLED if name not in OF_SCIKIT_LEARN)
