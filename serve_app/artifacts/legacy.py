"""The legacy layout: model.joblib, metadata.json and metrics.json directly in the folder, without a manifest of our own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serve_app.artifacts.bundle import Bundle, unreadable
from serve_app.artifacts.manifest import Manifest, json_object, sha256
from serve_app.artifacts.names import JOBLIB, LEGACY_FILES, MANIFEST, METRICS
from serve_app.artifacts.signature import Label, Signature, legacy_signature
from serve_app.errors import BundleRefused

_VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")  # it goes into a header of each response


def signature_of(manifest: Manifest, classes: Sequence[Any] = ()) -> Signature:
    """The signature that `feature_names` and `target_names` of the manifest tell; raises BundleRefused `signature`.

    `classes` are the estimator's own, for a manifest that names none.
    """
    if not manifest.feature_names:
        raise BundleRefused("signature", f"{MANIFEST} holds no feature_names and target_names")
    labels: Sequence[Label] = manifest.target_names or [label.item() if hasattr(label, "item") else label for label in classes]
    try:
        return legacy_signature(manifest.feature_names, labels)
    except ValueError as error:
        raise BundleRefused("signature", f"{MANIFEST}: {error}") from None


def adopt(legacy: Bundle) -> tuple[dict[str, bytes], Manifest]:
    """Files and manifest of the bundle that a legacy model becomes when the first bundle is published over it."""
    files = {JOBLIB: legacy.files[JOBLIB], METRICS: legacy.files.get(METRICS, b"{}\n")}
    return files, msgspec.structs.replace(legacy.manifest, signature=signature_of(legacy.manifest), origin="plain")


def read_legacy(folder: Path) -> Bundle | None:
    """The model of a legacy layout; None when there is none. Raises BundleRefused.

    The files were written one by one and prove nothing; the digest over the three only gives them a name. Files that change while
    they are read are refused as `unreadable`, which is not final: they are read again at the next poll.
    """
    if not (folder / MANIFEST).is_file() or not (folder / JOBLIB).is_file():
        return None
    try:
        before = _stamp(folder)
        data = {name: (folder / name).read_bytes() for name in LEGACY_FILES if (folder / name).is_file()}
        if _stamp(folder) != before:
            raise BundleRefused("unreadable", "the model's files are being written", final=False)
    except OSError as error:
        raise unreadable(folder.name, error) from None
    if MANIFEST not in data or JOBLIB not in data:
        raise BundleRefused("unreadable", "the model's files are being written", final=False)
    manifest = Manifest.from_legacy(json_object(data[MANIFEST], MANIFEST))
    metrics = json_object(data[METRICS], METRICS) if METRICS in data else {}
    number = manifest.mlflow_model_version
    version = str(number) if number is not None and _VERSION.fullmatch(str(number)) else "0"
    return Bundle(version, legacy_digest(data), manifest, metrics, data, "plain")


def legacy_digest(files: Mapping[str, bytes]) -> str:
    """What stands for the digest of files that have no manifest to prove them."""
    return sha256(b"".join(sha256(files.get(name, b"")).encode() for name in LEGACY_FILES))


def legacy_stamp(folder: Path) -> tuple[tuple[int, int, int], ...] | None:
    """A value that changes when one of the files does; None when there is no model. Costs three stat calls."""
    try:
        stamp = _stamp(folder)
    except OSError:
        return None
    return stamp if stamp[0][0] and stamp[1][0] else None


def _stamp(folder: Path) -> tuple[tuple[int, int, int], ...]:
    stamps = []
    for name in LEGACY_FILES:
        try:
            status = (folder / name).stat()
            stamps.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except FileNotFoundError:
            stamps.append((0, 0, 0))
    return tuple(stamps)
