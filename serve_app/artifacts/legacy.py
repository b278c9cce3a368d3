"""The three plain files of the system of old: what can be known of a model that came without a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from serve_app.artifacts.bundle import Bundle
from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.names import JOBLIB, MANIFEST, METRICS
from serve_app.artifacts.signature import Label, Signature, plain_signature
from serve_app.errors import BundleRefused


def signature_of(manifest: Manifest, classes: Sequence[Any] = ()) -> Signature:
    """The signature that `feature_names` and `target_names` of the manifest tell; raises BundleRefused `signature`.

    `classes` are the estimator's own, for a manifest that names none.
    """
    if not manifest.feature_names:
        raise BundleRefused("signature", f"{MANIFEST} holds no feature_names and target_names")
    labels: Sequence[Label] = manifest.target_names or [label.item() if hasattr(label, "item") else label for label in classes]
    try:
        return plain_signature(manifest.feature_names, labels)
    except ValueError as error:
        raise BundleRefused("signature", f"{MANIFEST}: {error}") from None


def adopt(plain: Bundle) -> tuple[dict[str, bytes], Manifest]:
    """Files and manifest of the bundle that a plain model becomes when the first bundle is published over it."""
    files = {JOBLIB: plain.files[JOBLIB], METRICS: plain.files.get(METRICS, b"{}\n")}
    return files, msgspec.structs.replace(plain.manifest, signature=signature_of(plain.manifest), origin="plain")
