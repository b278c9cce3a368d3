"""Models of XGBoost, LightGBM and CatBoost in the formats of their libraries: written into bundles, and read from users' files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.artifacts.manifest import NativeForm
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.names import CATBOOST, LIGHTGBM, NATIVE, XGBOOST
from serve_app.artifacts.signature import Signature
from serve_app.inference.backends.booster_backend import BoosterBackend
from serve_app.inference.boosters import Booster, library
from serve_app.inference.parity import same_scores
from training import fit
from training.fit import final_estimator

_FILES = {package: file for file, package in NATIVE.items()}
_DISTRIBUTIONS = {"xgboost": ("xgboost", "xgboost-cpu")}
"""Names under which a library is installed, where they are not the name of its module."""


@dataclass(frozen=True, slots=True)
class Native:
    """A model in the format of its library; `form` is the entry `native` of the manifest."""

    data: bytes
    form: NativeForm


def is_booster(estimator: Any) -> bool:
    """Whether the estimator is one of XGBoost, LightGBM or CatBoost, or one of this project around such a one."""
    return isinstance(estimator, Booster) or library(estimator) in _FILES


def native_file(estimator: Any) -> tuple[str, bytes]:
    """The name in a bundle and the bytes of a fitted booster in the format of its library, the trees up to the best one.

    Raises NotImplementedError for another estimator.
    """
    inner = estimator.estimator_ if isinstance(estimator, Booster) else estimator
    package = library(inner)
    if package == "xgboost":
        booster = inner if type(inner).__name__ == "Booster" else inner.get_booster()
        best = booster.attr("best_iteration")
        return XGBOOST, bytes((booster if best is None else booster[: int(best) + 1]).save_raw("ubj"))
    if package == "lightgbm":
        booster = inner if type(inner).__name__ == "Booster" else inner.booster_
        text: str = booster.model_to_string()
        return LIGHTGBM, text.encode()
    if package == "catboost":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, CATBOOST)
            inner.save_model(str(path), format="cbm")
            return CATBOOST, path.read_bytes()
    raise NotImplementedError(f"the format of {type(inner).__name__}")


def library_version(package: str) -> str:
    """The version of a boosting library that is installed."""
    for name in _DISTRIBUTIONS.get(package, (package,)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def to_native(
    estimator: Any, signature: Signature, rows: Matrix, expected: Scores, *, texts: bool = False, gap: str | None = None
) -> Native:
    """The estimator in the format of its library, proven on these rows: the backend that serves it gives the expected scores.

    `estimator` is a booster, or a pipeline of the step for dates and a booster. Raises NotImplementedError for another model, and
    ValueError when the answers differ.
    """
    final = final_estimator(estimator)
    steps = [name for name, _ in getattr(estimator, "steps", [])[:-1]]
    if not is_booster(final) or steps not in ([], [fit.DATES]):
        raise NotImplementedError("steps before the booster")
    file, data = native_file(final)
    package = NATIVE[file]
    form = NativeForm(
        file=file,
        library=package,
        version=library_version(package),
        order=_order(final, signature),
        texts=texts or None,
        gap=gap,
        dates=bool(steps) or None,
        rows_compared=len(rows),
    )
    scores = BoosterBackend(data, form, signature).scores(rows)
    if scores.shape != expected.shape or not same_scores(expected, scores, signature):
        raise ValueError(f"the format of {package} does not give the answers of the model")
    difference = float(np.max(np.abs(expected - scores), initial=0.0))
    return Native(data, NativeForm(**{**_fields(form), "largest_difference": difference}))


def _fields(form: NativeForm) -> dict[str, Any]:
    return {name: getattr(form, name) for name in form.__struct_fields__}


def _order(estimator: Any, signature: Signature) -> tuple[int, ...] | None:
    """The positions of the signature's classes among those of the estimator; None where they are in its order."""
    known: Sequence[Any] = list(getattr(estimator, "classes_", ()))
    texts = [str(label) for label in known]
    wanted = [str(label) for label in signature.classes]
    if texts == wanted or sorted(texts) != sorted(wanted):
        return None
    return tuple(texts.index(label) for label in wanted)
