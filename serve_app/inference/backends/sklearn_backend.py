"""The backend of scikit-learn, for a bundle without an ONNX form.

The replica imports the library for the first such bundle. The import takes seconds and about 80 MB, which a replica with converted
models does not need.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import numpy as np

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.legacy import signature_of
from serve_app.artifacts.manifest import Libraries
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.names import JOBLIB
from serve_app.artifacts.signature import Signature
from serve_app.errors import BundleRefused
from serve_app.inference.backends import Kind
from serve_app.inference.backends.estimator_scores import estimator_scores
from serve_app.inference.code_import import packages_imported
from serve_app.printable import printable

ENCODE = "encode"
"""Name of the pipeline step that codes the categories of a table; requests are already coded."""


class SklearnBackend:
    """A fitted estimator on coded matrices; raises BundleRefused `signature` when it does not fit the signature."""

    __slots__ = ("_scores",)

    def __init__(self, estimator: Any, signature: Signature) -> None:
        width = getattr(estimator, "n_features_in_", None)
        if width not in (None, len(signature.features)):
            raise BundleRefused("signature", f"the model takes {width} features, but the signature names {len(signature.features)}")
        self._scores = estimator_scores(estimator, signature)

    @property
    def kind(self) -> Kind:
        """The library that computes."""
        return "scikit-learn"

    def scores(self, matrix: Matrix) -> Scores:
        """Scores of coded rows, shape (rows, features)."""
        return self._scores(matrix)


def open_sklearn(bundle: Bundle) -> tuple[SklearnBackend, Signature]:
    """The backend of a pickled model, and its signature, derived from the manifest for a legacy layout; raises BundleRefused."""
    model = load_estimator(bundle)
    signature = bundle.signature or signature_of(bundle.manifest, getattr(model, "classes_", ()))
    try:
        return SklearnBackend(strip_encoder(model), signature), signature
    except BundleRefused:
        raise
    except Exception as error:
        raise BundleRefused("load", f"{JOBLIB} holds no fitted estimator ({type(error).__name__})") from error


def load_estimator(bundle: Bundle) -> Any:
    """Unpickle the model of a bundle, which imports and runs the packages of code in the bundle; raises BundleRefused.

    It compares the versions of libraries before it opens the pickle.
    """
    _check_libraries(bundle.manifest.libraries or Libraries())
    with packages_imported(bundle.files):
        return _unpickle(bundle.files[JOBLIB])


def strip_encoder(model: Any) -> Any:
    """A trained pipeline without the step ENCODE, because requests are already coded."""
    steps = getattr(model, "steps", None)
    if steps and steps[0][0] == ENCODE:
        model = steps[1][1] if len(steps) == 2 else model[1:]
    first = model.steps[0][1] if hasattr(model, "steps") else model
    _forget_names(first)
    return model


def _forget_names(estimator: Any) -> None:
    """Remove the names of columns, also in estimators of several targets and of corrected probabilities.

    Otherwise scikit-learn warns at each call that a matrix has no names.
    """
    with contextlib.suppress(AttributeError):
        del estimator.feature_names_in_
    for inner in getattr(estimator, "calibrated_classifiers_", ()):
        _forget_names(inner.estimator)
    if type(estimator).__module__ == "sklearn.multioutput":
        for inner in estimator.estimators_:
            _forget_names(inner)


def _unpickle(data: bytes) -> Any:
    import joblib
    import sklearn

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", sklearn.exceptions.InconsistentVersionWarning)
            return joblib.load(io.BytesIO(data))
    except sklearn.exceptions.InconsistentVersionWarning as error:
        raise BundleRefused(
            "libraries",
            f"the model was trained with scikit-learn {error.original_sklearn_version}, but {sklearn.__version__} is installed",
        ) from error
    except ModuleNotFoundError as error:
        name = printable(str(error.name)[:100])
        raise BundleRefused(
            "libraries", f"the model needs the Python module {name}, which is neither installed nor in the bundle"
        ) from error
    except Exception as error:
        raise BundleRefused("load", f"{JOBLIB} cannot be loaded ({type(error).__name__})") from error


def _check_libraries(libraries: Libraries) -> None:
    """Refuse another scikit-learn minor version or numpy major version, with which a pickled estimator may compute wrongly."""
    import sklearn

    for name, trained, installed, parts in (
        ("scikit-learn", libraries.scikit_learn, sklearn.__version__, 2),
        ("numpy", libraries.numpy, np.__version__, 1),
    ):
        if trained is not None and trained.split(".")[:parts] != installed.split(".")[:parts]:
            raise BundleRefused(
                "libraries",
                f"the model was trained with {name} {trained}, but {installed} is installed: train it again with this version",
            )
