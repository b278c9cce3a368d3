"""The three plain files of the system of old: what can be known of a model that came without a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.artifacts.bundle import JOBLIB, METRICS, Bundle
from serve_app.artifacts.signature import Label, Signature, plain_signature
from serve_app.errors import BundleRefused


def signature_of(metadata: Mapping[str, Any], classes: Sequence[Any] = ()) -> Signature:
    """The signature that `feature_names` and `target_names` of the metadata tell; raises BundleRefused.

    `classes` are the estimator's own, for metadata that names none.
    """
    names: Any = metadata.get("feature_names")
    named = metadata.get("target_names") or [label.item() if hasattr(label, "item") else label for label in classes]
    if not _texts(names) or not isinstance(named, list) or not all(isinstance(label, str | int | float) for label in named):
        raise BundleRefused("signature", "metadata.json holds no feature_names and target_names")
    labels: list[Label] = list(named)
    try:
        return plain_signature(names, labels)
    except ValueError as error:
        raise BundleRefused("signature", f"metadata.json: {error}") from None


def adopt(plain: Bundle) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and metadata of the bundle that a plain model becomes when the first bundle is published over it."""
    files = {JOBLIB: plain.files[JOBLIB], METRICS: plain.files.get(METRICS, b"{}\n")}
    metadata = {key: value for key, value in plain.metadata.items() if key not in ("files", "format", "signature", "version")}
    return files, {**metadata, "signature": signature_of(plain.metadata).to_dict(), "origin": "plain"}


def _texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and all(isinstance(v, str) for v in value)
