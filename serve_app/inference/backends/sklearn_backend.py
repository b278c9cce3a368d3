"""Scikit-learn computes, for a bundle without an ONNX form.

The library is imported when the first such bundle comes: the import takes seconds and some 80 MB, which a replica of converted
models never needs.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.legacy import signature_of
from serve_app.artifacts.manifest import Libraries
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.signature import Label, Signature
from serve_app.errors import BundleRefused
from serve_app.inference.backends import Kind

ENCODE = "encode"
"""Name of the pipeline step that codes the categories of a table; requests arrive coded already."""


class SklearnBackend:
    """A fitted estimator on coded matrices; raises BundleRefused `signature` when it does not fit the signature."""

    __slots__ = ("_scores",)

    def __init__(self, estimator: Any, signature: Signature) -> None:
        width = getattr(estimator, "n_features_in_", None)
        if width not in (None, len(signature.features)):
            raise BundleRefused("signature", f"the model takes {width} features, the signature names {len(signature.features)}")
        self._scores = _score_function(estimator, signature)

    @property
    def kind(self) -> Kind:
        """The library that computes."""
        return "scikit-learn"

    def scores(self, matrix: Matrix) -> Scores:
        """Scores of coded rows, shape (rows, features)."""
        return self._scores(matrix)


def open_sklearn(bundle: Bundle) -> tuple[SklearnBackend, Signature]:
    """The backend of a pickled model, and its signature, which a legacy layout does not bring; raises BundleRefused.

    Versions of libraries are compared before the pickle is opened.
    """
    _check_libraries(bundle.manifest.libraries or Libraries())
    model = _unpickle(bundle.files[JOBLIB])
    signature = bundle.signature or signature_of(bundle.manifest, getattr(model, "classes_", ()))
    try:
        return SklearnBackend(strip_encoder(model), signature), signature
    except BundleRefused:
        raise
    except Exception as error:
        raise BundleRefused("load", f"{JOBLIB} holds no fitted estimator ({type(error).__name__})") from error


def strip_encoder(model: Any) -> Any:
    """The part of a trained pipeline behind its first step, which turns a table into the matrix that requests are decoded to."""
    steps = getattr(model, "steps", None)
    if steps and steps[0][0] == ENCODE:
        model = steps[1][1] if len(steps) == 2 else model[1:]
    first = model.steps[0][1] if hasattr(model, "steps") else model
    with contextlib.suppress(AttributeError):
        del first.feature_names_in_  # else each call warns that a matrix has no names
    return model


def _unpickle(data: bytes) -> Any:
    import joblib
    import sklearn

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", sklearn.exceptions.InconsistentVersionWarning)
            return joblib.load(io.BytesIO(data))
    except sklearn.exceptions.InconsistentVersionWarning as error:
        raise BundleRefused(
            "libraries", f"the model was trained with scikit-learn {error.original_sklearn_version}, this is {sklearn.__version__}"
        ) from error
    except Exception as error:
        raise BundleRefused("load", f"{JOBLIB} cannot be loaded ({type(error).__name__})") from error


def _check_libraries(libraries: Libraries) -> None:
    """A pickled estimator is only right with the scikit-learn minor version and the numpy major version it was trained with."""
    import sklearn

    for name, trained, installed, parts in (
        ("scikit-learn", libraries.scikit_learn, sklearn.__version__, 2),
        ("numpy", libraries.numpy, np.__version__, 1),
    ):
        if trained is not None and trained.split(".")[:parts] != installed.split(".")[:parts]:
            raise BundleRefused(
                "libraries", f"the model was trained with {name} {trained}, {installed} is installed: train it again here"
            )


def _score_function(estimator: Any, signature: Signature) -> Callable[[Matrix], Scores]:
    if signature.task == "regression":
        return lambda matrix: np.asarray(estimator.predict(matrix), dtype=np.float64).ravel()
    order = _class_order(list(estimator.classes_), signature.classes)
    if not signature.probabilistic:
        position = {label: order.index(i) for i, label in enumerate(estimator.classes_)}
        return lambda matrix: np.array([position[label] for label in estimator.predict(matrix)], dtype=np.float64)
    if not hasattr(estimator, "predict_proba"):
        raise BundleRefused("signature", "the model gives no probabilities though its signature says so")
    if order == list(range(len(order))):
        return lambda matrix: estimator.predict_proba(matrix)
    return lambda matrix: estimator.predict_proba(matrix)[:, order]


def _class_order(known: list[Any], classes: Sequence[Label]) -> list[int]:
    """Positions in the estimator's classes, in the order of the signature's."""
    labels = [label.item() if hasattr(label, "item") else label for label in known]
    if sorted(map(str, labels)) == sorted(map(str, classes)):
        texts = [str(label) for label in labels]
        return [texts.index(str(label)) for label in classes]
    if labels == list(range(len(classes))):  # numbers that stand for target_names, as in a legacy layout
        return labels
    raise BundleRefused("signature", "the model's classes are not those of its signature")
