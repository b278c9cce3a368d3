"""The table of estimators that learn without a target. A new estimator is one entry in UNSUPERVISED."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.artifacts.signature import Task
from training.estimators import Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsupervisedEstimator:
    """A name of `--estimator` for a task without a target: its class, and whether features are scaled first."""

    task: Task
    learner: Learner
    needs_scaling: bool = False

    @property
    def choice(self) -> str:
        """The task as `--task` names it."""
        return self.task.replace(" ", "-")


UNSUPERVISED: Mapping[str, UnsupervisedEstimator] = {
    "isolation-forest": UnsupervisedEstimator(task="outlier detection", learner=Learner("sklearn.ensemble:IsolationForest")),
    "one-class-svm": UnsupervisedEstimator(
        task="outlier detection", learner=Learner("sklearn.svm:OneClassSVM", {"nu": 0.05}), needs_scaling=True
    ),
    "k-means": UnsupervisedEstimator(task="clustering", learner=Learner("sklearn.cluster:KMeans"), needs_scaling=True),
    "gaussian-mixture": UnsupervisedEstimator(
        task="clustering", learner=Learner("sklearn.mixture:GaussianMixture", {"n_components": 8}), needs_scaling=True
    ),
}

DEFAULT_ESTIMATORS: Mapping[Task, str] = {"outlier detection": "isolation-forest", "clustering": "k-means"}
"""The default estimator of each task."""

CLUSTERS: Mapping[str, str] = {"k-means": "n_clusters", "gaussian-mixture": "n_components"}
"""The parameter that holds the number of clusters."""

OUTLIER_SHARE: Mapping[str, str] = {"isolation-forest": "contamination", "one-class-svm": "nu"}
"""The parameter that holds the share of outliers among the training rows."""
