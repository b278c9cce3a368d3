"""The backend of XGBoost, LightGBM and CatBoost, for a bundle with a model in the library's own format.

These formats contain trees and no code, so the replica unpickles nothing. It imports the library for the first such bundle. An
image without the library refuses the bundle and names the library.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.manifest import NativeForm
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.names import CATBOOST, LIGHTGBM, NATIVE, XGBOOST
from serve_app.artifacts.signature import Signature
from serve_app.errors import BundleRefused
from serve_app.inference.backends import Kind
from serve_app.inference.backends.catboost_rows import catboost_rows
from serve_app.inference.native_guard import check_native

Ask = Callable[[Any], npt.NDArray[Any]]
"""Returns the probabilities or values of the library for its rows."""

_KINDS: dict[str, Kind] = {XGBOOST: "xgboost", LIGHTGBM: "lightgbm", CATBOOST: "catboost"}


class BoosterBackend:
    """A model of a boosting library on coded matrices, on one thread.

    Raises BundleRefused `signature` when it does not fit the signature, and the errors of the library for invalid bytes.
    """

    __slots__ = ("_ask", "_kind", "_order", "_prepare", "_task")

    def __init__(self, data: bytes, form: NativeForm, signature: Signature) -> None:
        self._kind = _KINDS[form.file]
        self._task = signature.task
        expand, width = _expansion(signature, form)
        self._ask, features, categories = _LOADERS[form.file](data, signature)
        if features != width:
            raise BundleRefused("signature", f"the model takes {features} features, but the signature describes {width}")
        self._order = None if form.order is None else _order(form.order, signature)
        self._prepare = _preparation(signature, form, expand, categories)

    @property
    def kind(self) -> Kind:
        """The library that computes."""
        return self._kind

    def scores(self, matrix: Matrix) -> Scores:
        """Scores of coded rows, shape (rows, features)."""
        answer = self._ask(matrix if self._prepare is None else self._prepare(matrix))
        if self._task == "regression":
            return np.asarray(answer, dtype=np.float64)
        if answer.ndim == 1:  # the probability of the second class
            answer = np.stack((1.0 - answer, answer), axis=1)
        return answer if self._order is None else answer[:, self._order]


def open_booster(bundle: Bundle, file: str) -> tuple[BoosterBackend, Signature]:
    """The backend of a bundle with a model in the format of its library, and its signature.

    Raises BundleRefused `libraries` when the library is not installed, `load`, `manifest` or `signature`.
    """
    signature, form = bundle.signature, bundle.manifest.native
    if signature is None:
        raise BundleRefused("signature", f"{file} needs a signature")
    if form is None or form.file != file:
        raise BundleRefused("manifest", f"the manifest does not describe {file}")
    package = NATIVE[file]
    try:
        installed = str(importlib.import_module(package).__version__)
    except ImportError:
        raise BundleRefused(
            "libraries",
            f"the model needs {package}, which is not installed: use the image serve-boost, or install iris-api[{package}]",
        ) from None
    check_native(file, bundle.files[file])
    try:
        backend = BoosterBackend(bundle.files[file], form, signature)
        shape = backend.scores(np.zeros((1, len(signature.features)))).shape
    except BundleRefused:
        raise
    except Exception as error:
        versions = f"written by {package} {form.version}, {installed} is installed"
        raise BundleRefused("load", f"{file} cannot be loaded ({type(error).__name__}; {versions})") from error
    expected = (1,) if signature.task == "regression" else (1, len(signature.classes))
    if shape != expected:
        raise BundleRefused("signature", f"{file} gives scores of shape {shape}, but the signature needs {expected}")
    return backend, signature


# --- the libraries: the function that answers, the number of features, and the positions of categories that must not be floats

Loaded = tuple[Ask, int, Sequence[int]]


def _load_xgboost(data: bytes, signature: Signature) -> Loaded:
    import xgboost

    booster = xgboost.Booster({"nthread": 1, "verbosity": 0})
    booster.load_model(bytearray(data))
    booster.set_param({"nthread": 1})
    best = booster.attr("best_iteration")
    trees = (0, 0 if best is None else int(best) + 1)
    predict = booster.inplace_predict

    def ask(rows: Any) -> npt.NDArray[Any]:
        answer: npt.NDArray[Any] = predict(rows, iteration_range=trees, validate_features=False)
        return answer

    def ask_linear(rows: Any) -> npt.NDArray[Any]:
        answer: npt.NDArray[Any] = booster.predict(xgboost.DMatrix(rows, nthread=1), validate_features=False)
        return answer

    linear = '"name":"gblinear"' in booster.save_config().replace(" ", "")
    return ask_linear if linear else ask, booster.num_features(), ()


def _load_lightgbm(data: bytes, signature: Signature) -> Loaded:
    import lightgbm

    booster = lightgbm.Booster(model_str=data.decode(), params={"verbosity": -1})
    predict = booster.predict
    return lambda rows: predict(rows, num_threads=1), booster.num_feature(), ()


def _load_catboost(data: bytes, signature: Signature) -> Loaded:
    import catboost

    classes = signature.task == "classification"
    model = (catboost.CatBoostClassifier if classes else catboost.CatBoostRegressor)()
    model.load_model(stream=io.BytesIO(data))  # CatBoost may read a `blob` beyond its end, but not a stream
    predict = model.predict_proba if classes else model.predict
    return lambda rows: predict(rows, thread_count=1), len(model.feature_names_), model.get_cat_feature_indices()


_LOADERS: dict[str, Callable[[bytes, Signature], Loaded]] = {
    XGBOOST: _load_xgboost,
    LIGHTGBM: _load_lightgbm,
    CATBOOST: _load_catboost,
}


# --- from the coded matrix to the input of the library

Prepare = Callable[[Matrix], Any]


def _order(order: Sequence[int], signature: Signature) -> list[int]:
    if sorted(order) != list(range(len(signature.classes))):
        raise BundleRefused("manifest", "the order of the classes does not match the classes of the signature")
    return list(order)


def _expansion(signature: Signature, form: NativeForm) -> tuple[Prepare | None, int]:
    """The function that replaces dates with their parts, None without dates, and the number of columns in its result."""
    if not form.dates:
        return None, len(signature.features)
    from serve_app.inference.date_parts import date_step

    step = date_step(signature)
    if step is None:
        raise BundleRefused("manifest", "the manifest says that the model takes dates, but the signature has no dates")
    return step.transform, len(signature.features) + sum(len(parts) - 1 for parts in step.parts)


def _preparation(signature: Signature, form: NativeForm, expand: Prepare | None, categories: Sequence[int]) -> Prepare | None:
    if not categories:
        return expand
    if form.texts and expand is not None:
        raise BundleRefused("manifest", "texts of categories and parts of dates cannot be combined")
    texts = [signature.features[at].categories for at in categories] if form.texts else ()
    if expand is None:
        return lambda matrix: catboost_rows(matrix, categories, texts, form.gap)
    return lambda matrix: catboost_rows(expand(matrix), categories)
