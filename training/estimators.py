"""The table of built-in estimators. A new estimator is one entry in ESTIMATORS.

The table holds import paths in place of classes, so its names are known without an import of scikit-learn.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

from serve_app.artifacts.signature import Task
from serve_app.errors import UsageError

SearchSpace = Mapping[str, tuple[Any, ...]]
"""By parameter, the values that a search tries."""


@dataclass(frozen=True, slots=True)
class Learner:
    """One class: its import path `module:class`, its initial parameters, and the search space."""

    path: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    search_space: SearchSpace = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """Import the module and return the class."""
        learner: Callable[..., Any] = resolve_name(self.path)
        return learner


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """A name of `--estimator`: the class for each task, and the preparation of the matrix before the fit.

    `parameter_names` maps common parameters to those of the class.
    """

    classification: Learner
    regression: Learner
    needs_scaling: bool = False
    """Whether features are scaled to mean 0 and variance 1 first."""
    takes_gaps: bool = False
    """Whether the class learns from NaN; otherwise gaps are filled first."""
    takes_categories: bool = False
    """Whether the class learns from the codes of categories; otherwise they are encoded one-hot."""
    parameter_names: Mapping[str, str] = field(default_factory=dict)
    package: str | None = None
    """The required package, which is also the name of the extra of iris-api; None for scikit-learn."""
    unlimited_depth: int | None = None
    """The value of `max_depth` for no limit."""

    @property
    def is_installed(self) -> bool:
        """Whether its package is installed."""
        return self.package is None or find_spec(self.package) is not None

    def check_installed(self) -> None:
        """Raise UsageError with the name of the extra when its package is missing."""
        if not self.is_installed:
            raise UsageError(f"--estimator {self.package} needs a package that is missing: pip install 'iris-api[{self.package}]'")

    def learner(self, task: Task) -> Learner:
        """The class for this task."""
        return self.classification if task == "classification" else self.regression

    def own_parameters(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters with the names of the class."""
        return {
            self.parameter_names.get(name, name): self.unlimited_depth if name == "max_depth" and value is None else value
            for name, value in params.items()
        }

    def accepted_parameters(self, factory: Callable[..., Any]) -> Collection[str]:
        """The parameter names of the class, with those that it passes to its base classes."""
        kinds = factory.__mro__ if self.package is not None and isinstance(factory, type) else (factory,)
        return {name for kind in kinds for name in inspect.signature(kind).parameters}


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

_XGBOOST_DEFAULTS = {"n_estimators": 200, "learning_rate": 0.1}
_XGBOOST_SPACE: SearchSpace = {
    "learning_rate": (0.03, 0.1, 0.3),
    "max_depth": (3, 5, 7, 9),
    "min_child_weight": (1, 3, 10),
    "subsample": (0.7, 1.0),
    "colsample_bytree": (0.7, 1.0),
    "reg_lambda": (1.0, 3.0, 10.0),
}
_LIGHTGBM_DEFAULTS = {"n_estimators": 200, "learning_rate": 0.1, "verbosity": -1}
_LIGHTGBM_SPACE: SearchSpace = {
    "learning_rate": (0.03, 0.1, 0.3),
    "num_leaves": (7, 15, 31, 63),
    "min_child_samples": (5, 10, 20, 50),
    "colsample_bytree": (0.7, 1.0),
    "reg_lambda": (0.0, 1.0, 10.0),
}
_CATBOOST_DEFAULTS = {"n_estimators": 300, "learning_rate": 0.1, "verbose": False, "allow_writing_files": False}
_CATBOOST_SPACE: SearchSpace = {
    "learning_rate": (0.03, 0.1, 0.3),
    "depth": (4, 6, 8),
    "l2_leaf_reg": (1.0, 3.0, 10.0),
    "random_strength": (0.5, 1.0, 3.0),
}
STOPPING_ROUNDS = 20
"""Number of consecutive trees without an improvement after which a booster stops."""

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
    "xgboost": Estimator(
        classification=Learner("xgboost:XGBClassifier", _XGBOOST_DEFAULTS, _XGBOOST_SPACE),
        regression=Learner("xgboost:XGBRegressor", _XGBOOST_DEFAULTS, _XGBOOST_SPACE),
        takes_gaps=True,
        takes_categories=True,
        package="xgboost",
        unlimited_depth=0,
    ),
    "lightgbm": Estimator(
        classification=Learner("lightgbm:LGBMClassifier", _LIGHTGBM_DEFAULTS, _LIGHTGBM_SPACE),
        regression=Learner("lightgbm:LGBMRegressor", _LIGHTGBM_DEFAULTS, _LIGHTGBM_SPACE),
        takes_gaps=True,
        takes_categories=True,
        package="lightgbm",
        unlimited_depth=-1,
    ),
    "catboost": Estimator(
        classification=Learner("catboost:CatBoostClassifier", _CATBOOST_DEFAULTS, _CATBOOST_SPACE),
        regression=Learner("catboost:CatBoostRegressor", _CATBOOST_DEFAULTS, _CATBOOST_SPACE),
        takes_gaps=True,
        takes_categories=True,
        parameter_names={"max_depth": "depth"},
        package="catboost",
    ),
}
