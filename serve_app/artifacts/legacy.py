"""The legacy layout: model.joblib, metadata.json and metrics.json directly in the folder, without a manifest of this project.

Each of the three may be a link to a file inside the folder: a ConfigMap or a Secret that is mounted as the folder holds such links.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from serve_app.artifacts.bundle import Bundle, unreadable
from serve_app.artifacts.manifest import MAX_MANIFEST_BYTES, Manifest, json_object, sha256
from serve_app.artifacts.manifest_bounds import MAX_METRICS_BYTES, check_bounds
from serve_app.artifacts.memory_limit import max_model_bytes
from serve_app.artifacts.names import JOBLIB, LEGACY_FILES, MANIFEST, METRICS, VERSION
from serve_app.artifacts.read_policy import ReadPolicy, check_seal, model_file
from serve_app.artifacts.regular_file import UnfitFile, read_inside
from serve_app.artifacts.signature import Label, Signature, legacy_signature
from serve_app.errors import BundleRefused


def signature_of(manifest: Manifest, classes: Sequence[Any] = ()) -> Signature:
    """The signature from `feature_names` and `target_names` of the manifest; raises BundleRefused `signature`.

    `classes` are those of the estimator, for a manifest without `target_names`.
    """
    if not manifest.feature_names:
        raise BundleRefused("signature", f"{MANIFEST} holds no feature_names and target_names")
    labels: Sequence[Label] = manifest.target_names or [label.item() if hasattr(label, "item") else label for label in classes]
    try:
        return legacy_signature(manifest.feature_names, labels)
    except ValueError as error:
        raise BundleRefused("signature", f"{MANIFEST}: {error}") from None


def adopt(legacy: Bundle) -> tuple[dict[str, bytes], Manifest]:
    """Files and manifest of the bundle for a legacy model; the store keeps it when a first bundle is published."""
    files = {JOBLIB: legacy.files[JOBLIB], METRICS: legacy.files.get(METRICS, b"{}\n")}
    return files, msgspec.structs.replace(legacy.manifest, signature=signature_of(legacy.manifest), origin="plain")


def read_legacy(folder: Path, policy: ReadPolicy | None = None) -> Bundle | None:
    """The model of a legacy layout; None without a model. Raises BundleRefused.

    No published digest covers these files; the digest over the three files only names the version. Files that change during the
    read are refused as `unreadable`. This refusal is not final: the replica reads them again at the next poll.
    """
    if not (folder / MANIFEST).exists() or not (folder / JOBLIB).exists():
        return None
    if policy is not None:
        check_seal("", None, policy.verify)  # a legacy layout has no seal
        model_file(LEGACY_FILES, policy)
    try:
        before = _stamp(folder)
        data = _read_files(folder)
        if _stamp(folder) != before:
            raise BundleRefused("unreadable", "the model's files are being written", final=False)
    except UnfitFile as error:
        raise BundleRefused("manifest", str(error)) from None
    except OSError as error:
        raise unreadable(folder.name, error) from None
    if MANIFEST not in data or JOBLIB not in data:
        raise BundleRefused("unreadable", "the model's files are being written", final=False)
    document = json_object(data[MANIFEST], MANIFEST)
    check_bounds(document, MANIFEST)
    manifest = Manifest.from_legacy(document)
    metrics = json_object(data[METRICS], METRICS) if METRICS in data else {}
    number = manifest.mlflow_model_version
    version = str(number) if number is not None and VERSION.fullmatch(str(number)) else "0"
    return Bundle(version, legacy_digest(data), manifest, metrics, data, "plain")


def read_description(folder: Path) -> Manifest:
    """The `metadata.json` of a legacy layout, without the model; raises BundleRefused, UnfitFile and OSError."""
    document = json_object(read_inside(folder, MANIFEST, MAX_MANIFEST_BYTES), MANIFEST)
    check_bounds(document, MANIFEST)
    return Manifest.from_legacy(document)


def _read_files(folder: Path) -> dict[str, bytes]:
    """The existing files. It reads the small files first, so a refused description costs no read of the model."""
    limits = {MANIFEST: MAX_MANIFEST_BYTES, METRICS: MAX_METRICS_BYTES, JOBLIB: max_model_bytes()}
    data = {name: read_inside(folder, name, limit) for name, limit in limits.items() if (folder / name).exists()}
    return {name: data[name] for name in LEGACY_FILES if name in data}


def legacy_digest(files: Mapping[str, bytes]) -> str:
    """The name of a version whose files have no published digest: the sha256 over the digests of the three files."""
    return sha256(b"".join(sha256(files.get(name, b"")).encode() for name in LEGACY_FILES))


def legacy_stamp(folder: Path) -> tuple[tuple[int, int, int], ...] | None:
    """A value that changes with each of the files; None without a model. Costs three stat calls."""
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
