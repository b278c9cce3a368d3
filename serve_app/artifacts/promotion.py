"""The load policy of the replicas, applied to a bundle of the store before the pointer moves to it."""

from __future__ import annotations

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.names import SEAL
from serve_app.artifacts.read_policy import ReadPolicy, check_seal, model_file
from serve_app.artifacts.regular_file import UnfitFile, read_regular
from serve_app.artifacts.signing import MAX_SEAL_BYTES
from serve_app.artifacts.store import Check, Entry
from serve_app.errors import BundleRefused, StoreError


def check_promotion(policy: ReadPolicy) -> Check:
    """Refuse a version that no replica with this policy would serve."""

    def check(entry: Entry) -> None:
        try:
            check_entry(entry, policy)
        except BundleRefused as error:
            raise StoreError(
                f"version {entry.version} was not promoted, because the replicas would refuse it ({error.reason}: {error}): "
                f"{_FIXES.get(error.reason, 'promote another version')}"
            ) from error

    return check


def check_entry(entry: Entry, policy: ReadPolicy) -> Manifest:
    """The manifest of a version that the policy allows; nothing but manifest and seal is read. Raises BundleRefused."""
    if entry.manifest is None:
        raise BundleRefused("manifest", f"version {entry.version} is damaged")
    check_seal(entry.digest, _seal(entry), policy.verify)
    model_file(entry.manifest.files, policy)
    return entry.manifest


def _seal(entry: Entry) -> bytes | None:
    try:
        return read_regular(entry.folder / SEAL, MAX_SEAL_BYTES)
    except (OSError, UnfitFile):
        return None


_FIXES = {
    "unsigned": "promote a signed version, or train one with `train --signing-key`",
    "forbidden": "promote a version with an ONNX form, or allow it with IRIS_ALLOW_JOBLIB and IRIS_PREDICTOR as on the replicas",
}
