"""What a replica reads of a bundle, and what the bundle must prove before: decided from the names of its files."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Protocol

from serve_app.artifacts.code_package import package_files
from serve_app.artifacts.names import GOLDEN, JOBLIB, METRICS, NATIVE, ONNX
from serve_app.artifacts.signing import Verify
from serve_app.errors import BundleRefused

BackendChoice = Literal["auto", "onnx", "scikit-learn"]
"""`auto` takes ONNX Runtime for a bundle with an ONNX form, else the library of a booster for a bundle in the library's format; the
others allow one backend only."""


class ReadPolicy(Protocol):
    """What the operator allows; `LoadPolicy` of serve_app/inference/policy.py is one."""

    @property
    def allow_joblib(self) -> bool:
        """Whether a model may be unpickled."""

    @property
    def backend(self) -> BackendChoice:
        """Which form of the model is used."""

    @property
    def verify(self) -> Verify | None:
        """The check of the seal; None: none is needed."""


def check_seal(digest: str, seal: bytes | None, verify: Verify | None) -> None:
    """Refuse a bundle without the seal that is asked for; raises BundleRefused `unsigned`."""
    if verify is not None and not verify(digest, seal):
        raise BundleRefused("unsigned", "the bundle is not signed with a key that is trusted here")


def model_file(names: Collection[str], policy: ReadPolicy) -> str:
    """The file of the model that is loaded, of a bundle with these files; raises BundleRefused `forbidden`."""
    if ONNX in names and policy.backend != "scikit-learn":
        return ONNX
    if policy.backend == "onnx":
        raise BundleRefused("forbidden", "the model has no ONNX form and the settings allow no other")
    native = next((name for name in NATIVE if name in names), None)
    if native is not None and policy.backend == "auto":
        return native
    if not policy.allow_joblib:
        raise BundleRefused("forbidden", "the model would have to be unpickled, which the settings forbid")
    return JOBLIB


def used_files(names: Collection[str], policy: ReadPolicy | None) -> set[str]:
    """The files that are read: metrics, golden examples, and the model; without a policy, every form of the model.

    Packages of code are read with a pickled model, which imports them.
    """
    models = {JOBLIB, ONNX, *NATIVE} if policy is None else {model_file(names, policy)}
    packages = package_files(names) if JOBLIB in models else ()
    return ({METRICS, GOLDEN, *models} & set(names)).union(packages)
