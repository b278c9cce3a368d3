"""The load policy of the replicas, as the trainer applies it to bundles of the store."""

from __future__ import annotations

from pathlib import Path

from serve_app.artifacts.bundle import Bundle, read_bundle
from serve_app.artifacts.signing import SigningError, own_verifier, verifier
from serve_app.artifacts.store import Check, Entry, Store
from serve_app.errors import BundleRefused, StoreError, UsageError
from serve_app.inference.policy import BackendChoice, LoadPolicy
from serve_app.inference.predictor import check_policy


def load_policy(
    *, allow_joblib: bool, backend: BackendChoice, verify_key: Path | None, signing_key: Path | None = None
) -> LoadPolicy:
    """The policy of the replicas; with a signing key and without public keys, what that key has signed is trusted.

    Raises UsageError when a file is no usable key.
    """
    verify = None
    try:
        if verify_key is not None:
            verify = verifier(verify_key)
        elif signing_key is not None:
            verify = own_verifier(signing_key)
    except SigningError as error:
        raise UsageError(f"--verify-key: {error}") from None
    return LoadPolicy(allow_joblib=allow_joblib, backend=backend, verify=verify)


def check_promotion(policy: LoadPolicy) -> Check:
    """Refuse a version that no replica with this policy would serve."""

    def check(entry: Entry) -> None:
        try:
            check_policy(read_bundle(entry.folder), policy)
        except BundleRefused as error:
            raise StoreError(
                f"version {entry.version} is not served because the replicas would refuse it ({error.reason}: {error}): "
                f"{_FIXES.get(error.reason, 'promote another version')}"
            ) from error

    return check


def served_bundle(store: Store, policy: LoadPolicy) -> Bundle | None:
    """The served bundle when the policy allows it; None for an empty store. Raises BundleRefused."""
    bundle = store.current()
    if bundle is not None:
        check_policy(bundle, policy)
    return bundle


_FIXES = {
    "unsigned": "promote a version that is signed, or sign a new one with `train --signing-key`",
    "forbidden": "promote a version with an ONNX form, or allow it with IRIS_ALLOW_JOBLIB and IRIS_PREDICTOR as on the replicas",
}
