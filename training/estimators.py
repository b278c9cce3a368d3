"""The table of estimators that need no import path. A new estimator is one entry of ESTIMATORS.

The classes stand as paths: the names of the table are known without loading scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

from serve_app.artifacts.signature import Task

SearchSpace = Mapping[str, tuple[Any, ...]]
"""By parameter, the values that a search tries."""


@dataclass(frozen=True, slots=True)
class Learner:
    """One class of scikit-learn: its import path `module:class`, the parameters it starts from, and what a search varies."""

    path: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    search_space: SearchSpace = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The class itself; imports its module."""
        learner: Callable[..., Any] = resolve_name(self.path)
        return learner


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """A name of `--estimator`: the class for each task, and what the matrix must look like before it is fitted.

    `parameter_names` translates common parameters into the class's own. Categories are always encoded one-hot.
    """

    classification: Learner
    regression: Learner
    needs_scaling: bool = False
    """Whether features are brought to mean 0 and variance 1 first."""
    takes_gaps: bool = False
    """Whether it learns from NaN; otherwise gaps are filled first."""
    parameter_names: Mapping[str, str] = field(default_factory=dict)

    def learner(self, task: Task) -> Learner:
        """The class for this task."""
        return self.classification if task == "classification" else self.regression

    def own_parameters(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters under the names that the class knows."""
        return {self.parameter_names.get(name, name): value for name, value in params.items()}


_FOREST_DEFAULTS = {"n_estimators": 200, "max_depth": 10}
_FOREST_SPACE: SearchSpace = {
    "n_estimators": (50, 100, 200, 400),
    "max_depth": (3, 5, 10, 20, None),
    "min_samples_leaf": (1, 2, 4, 8),
    "max_features": ("sqrt", 0.5, 1.0),
}
_BOOSTING_SPACE: SearchSpace = {
    "learning_rate": (0.03, 0.1, 0.3),
    "max_iter": (50, 100, 200),
    "max_leaf_nodes": (7, 15, 31),
    "min_samples_leaf": (5, 10, 20),
    "l2_regularization": (0.0, 0.1, 1.0),
}

ESTIMATORS: Mapping[str, Estimator] = {
    "random-forest": Estimator(
        classification=Learner("sklearn.ensemble:RandomForestClassifier", _FOREST_DEFAULTS, _FOREST_SPACE),
        regression=Learner("sklearn.ensemble:RandomForestRegressor", _FOREST_DEFAULTS, _FOREST_SPACE),
    ),
    "logistic-regression": Estimator(
        classification=Learner(
            "sklearn.linear_model:LogisticRegression",
            {"max_iter": 1000},
            {"C": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)},
        ),
        regression=Learner("sklearn.linear_model:Ridge", search_space={"alpha": (0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)}),
        needs_scaling=True,
    ),
    "hist-gradient-boosting": Estimator(
        classification=Learner("sklearn.ensemble:HistGradientBoostingClassifier", search_space=_BOOSTING_SPACE),
        regression=Learner("sklearn.ensemble:HistGradientBoostingRegressor", search_space=_BOOSTING_SPACE),
        takes_gaps=True,
        parameter_names={"n_estimators": "max_iter"},
    ),
}
