"""The files that a replica reads from a bundle, and the seal that the bundle needs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Protocol

from serve_app.artifacts.code_package import package_files
from serve_app.artifacts.names import GOLDEN, JOBLIB, METRICS, NATIVE, ONNX
from serve_app.artifacts.signing import Verify
from serve_app.errors import BundleRefused

BackendChoice = Literal["auto", "onnx", "scikit-learn"]
"""`auto` uses ONNX Runtime for a bundle with an ONNX form, otherwise the library of a booster for a bundle in the library's format,
otherwise scikit-learn. The other values allow only one backend."""


class ReadPolicy(Protocol):
    """The backends and files that the operator allows; serve_app/inference/policy.py implements it as `LoadPolicy`."""

    @property
    def allow_joblib(self) -> bool:
        """Whether a replica may unpickle a model."""

    @property
    def backend(self) -> BackendChoice:
        """The backends that a replica may use."""

    @property
    def verify(self) -> Verify | None:
        """The check of the seal; None when a bundle needs no seal."""


def check_seal(digest: str, seal: bytes | None, verify: Verify | None) -> None:
    """Refuse a bundle without a valid seal; raises BundleRefused `unsigned`."""
    if verify is not None and not verify(digest, seal):
        raise BundleRefused("unsigned", "the bundle is not signed with a trusted key")


def model_file(names: Collection[str], policy: ReadPolicy) -> str:
    """The file of the model that a replica loads from a bundle with these files; raises BundleRefused `forbidden`."""
    if ONNX in names and policy.backend != "scikit-learn":
        return ONNX
    if policy.backend == "onnx":
        raise BundleRefused("forbidden", "the model has no ONNX form, and the settings allow no other backend")
    native = next((name for name in NATIVE if name in names), None)
    if native is not None and policy.backend == "auto":
        return native
    if not policy.allow_joblib:
        raise BundleRefused("forbidden", "the model must be unpickled, which the settings forbid")
    return JOBLIB


def used_files(names: Collection[str], policy: ReadPolicy | None) -> set[str]:
    """The files that a replica reads: metrics, golden examples, and the model; without a policy, every form of the model.

    For a pickled model, they include the packages of code that the model imports.
    """
    models = {JOBLIB, ONNX, *NATIVE} if policy is None else {model_file(names, policy)}
    packages = package_files(names) if JOBLIB in models else ()
    return ({METRICS, GOLDEN, *models} & set(names)).union(packages)
