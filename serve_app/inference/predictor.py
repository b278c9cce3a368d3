"""The predictor: a verified bundle made ready to answer.

ONNX Runtime computes when the bundle has a converted model whose parity training has proven, and the library of a booster when the
bundle has the library's own format: no pickle is executed. Otherwise scikit-learn computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.code_package import package_files
from serve_app.artifacts.matrix import Matrix, Scores
from serve_app.artifacts.names import GOLDEN, JOBLIB, NATIVE, ONNX
from serve_app.artifacts.read_policy import check_seal, model_file
from serve_app.artifacts.signature import Signature
from serve_app.inference.backends import Backend, Kind
from serve_app.inference.backends.booster_backend import open_booster
from serve_app.inference.backends.frame_backend import open_frame
from serve_app.inference.backends.onnx_backend import open_onnx
from serve_app.inference.backends.sklearn_backend import open_sklearn
from serve_app.inference.padding import pad_row, pad_rows
from serve_app.inference.policy import LoadPolicy
from serve_app.inference.warm_up import CallProfile, replay_golden, warm_up


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Predictor:
    """One version of the model, ready to answer. It never changes, so a request may keep it to the end.

    `bundle` is without the files of the model, which the backend holds in its own form.
    """

    bundle: Bundle
    signature: Signature
    backend: Backend
    profile: CallProfile
    version: str = field(init=False)
    digest: str = field(init=False)
    kind: Kind = field(init=False)
    slow: bool = field(init=False)
    """Whether a row costs so much that it is worth waiting for others."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "version", self.bundle.version)
        object.__setattr__(self, "digest", self.bundle.digest)
        object.__setattr__(self, "kind", self.backend.kind)
        object.__setattr__(self, "slow", self.profile.slow)

    def scores(self, matrix: Matrix) -> Scores:
        """The scores of coded rows, shape (rows, features); see Backend.scores."""
        return self.backend.scores(matrix)

    def row_scores(self, row: Matrix) -> Scores:
        """The scores of one row, shape (1, features)."""
        multiple = self.profile.batch_multiple
        return self.backend.scores(row) if multiple == 1 else self.backend.scores(pad_row(row, multiple))[:1]

    def rows_scores(self, rows: list[Matrix]) -> Scores:
        """The scores of rows that came one by one, each of shape (1, features), computed in one call.

        The result may have more scores than there are rows: those of the rows that filled up the call.
        """
        return self.backend.scores(np.concatenate(pad_rows(rows, self.profile.batch_multiple)))

    def seconds_of(self, rows: float) -> float:
        """About how long one call with so many rows takes."""
        return self.profile.seconds(rows)


def check_policy(bundle: Bundle, policy: LoadPolicy) -> None:
    """Whether the policy allows this bundle, before anything of it is parsed. Raises BundleRefused `unsigned` or `forbidden`."""
    check_seal(bundle.digest, bundle.seal, policy.verify)
    model_file(bundle.files, policy)


def open_predictor(bundle: Bundle, policy: LoadPolicy) -> Predictor:
    """Load, check library versions, replay the golden examples, warm up, all in this process. Raises BundleRefused."""
    check_policy(bundle, policy)
    backend: Backend
    file = model_file(bundle.files, policy)
    if file == ONNX:
        bundle = _without(bundle, JOBLIB)  # before ONNX Runtime makes its own copy of the model
        backend, signature = open_onnx(bundle)
    elif file in NATIVE:
        backend, signature = open_booster(bundle, file)
    else:
        backend, signature = open_sklearn(bundle) if bundle.manifest.frame is None else open_frame(bundle)
    replay_golden(backend, signature, bundle.files)
    read = (JOBLIB, ONNX, *NATIVE, GOLDEN, *package_files(bundle.files))
    return Predictor(_without(bundle, *read), signature, backend, warm_up(backend, signature))


def _without(bundle: Bundle, *names: str) -> Bundle:
    """The bundle without files that are not needed any more: while a model is replaced, each would be there twice."""
    return replace(bundle, files={name: data for name, data in bundle.files.items() if name not in names})
