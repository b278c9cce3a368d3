"""The predictor: a verified bundle, loaded and ready to answer.

ONNX Runtime computes when the bundle has a converted model that training has proven equal. The library of a booster computes when
the bundle has the library's own format. Both execute no pickle. Otherwise scikit-learn computes.
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
    """One version of the model, ready to answer. It is immutable, so a request can use it until its end.

    `bundle` does not contain the files of the model, which the backend holds in its own form.
    """

    bundle: Bundle
    signature: Signature
    backend: Backend
    profile: CallProfile
    version: str = field(init=False)
    digest: str = field(init=False)
    kind: Kind = field(init=False)
    slow: bool = field(init=False)
    """Whether a row is so expensive that it should wait for other rows."""

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
        """The scores of single rows, each of shape (1, features), from one call.

        The result may have more scores than rows, because of the padding of the call.
        """
        return self.backend.scores(np.concatenate(pad_rows(rows, self.profile.batch_multiple)))

    def seconds_of(self, rows: float) -> float:
        """The approximate time in seconds of one call with this number of rows."""
        return self.profile.seconds(rows)


def check_policy(bundle: Bundle, policy: LoadPolicy) -> None:
    """Refuse a bundle that the policy does not allow, before it is parsed. Raises BundleRefused `unsigned` or `forbidden`."""
    check_seal(bundle.digest, bundle.seal, policy.verify)
    model_file(bundle.files, policy)


def open_predictor(bundle: Bundle, policy: LoadPolicy) -> Predictor:
    """Check library versions, load the model, replay the golden examples and warm up in this process. Raises BundleRefused."""
    check_policy(bundle, policy)
    backend: Backend
    file = model_file(bundle.files, policy)
    if file == ONNX:
        bundle = _without(bundle, JOBLIB)  # frees memory before ONNX Runtime copies the model
        backend, signature = open_onnx(bundle)
    elif file in NATIVE:
        backend, signature = open_booster(bundle, file)
    else:
        backend, signature = open_sklearn(bundle) if bundle.manifest.frame is None else open_frame(bundle)
    replay_golden(backend, signature, bundle.files)
    read = (JOBLIB, ONNX, *NATIVE, GOLDEN, *package_files(bundle.files))
    return Predictor(_without(bundle, *read), signature, backend, warm_up(backend, signature))


def _without(bundle: Bundle, *names: str) -> Bundle:
    """The bundle without files that are no longer needed, to save memory during a swap."""
    return replace(bundle, files={name: data for name, data in bundle.files.items() if name not in names})
