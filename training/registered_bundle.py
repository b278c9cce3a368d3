"""Copies the bundle of a registered version in MLflow into the store."""

from __future__ import annotations

from serve_app.artifacts.bundle import folder_name
from serve_app.artifacts.manifest import parse_manifest, sha256
from serve_app.artifacts.mlflow_mirror import put_bundle
from serve_app.artifacts.mlflow_source import MlflowSource
from serve_app.artifacts.mlflow_version import RegisteredVersion
from serve_app.artifacts.store import Store
from serve_app.errors import BackendUnavailable, BundleRefused, StoreError, UsageError
from training.mlflow_model import parse_address, resolve_address
from training.tracking_uri import resolve


def bring(uri: str, store: Store, *, tracking_uri: str | None) -> int:
    """Copy the bundle of the version at `uri` into the store, and return its version there; the served version does not change.

    A bundle that the store has already is not fetched. Raises UsageError for an address without a version and a bundle, StoreError
    when the store has another bundle of that version, and BackendUnavailable.
    """
    tracking, _ = resolve(tracking_uri)
    resolved = resolve_address(parse_address(uri), tracking)
    entries = store.entries()
    held = next((entry for entry in entries if entry.digest == resolved.digest), None)
    if held is not None:
        return held.version
    if resolved.name is None or resolved.version is None:
        raise UsageError(f"'{uri}' is not a version of a registered model: write models:/NAME@ALIAS or models:/NAME/VERSION")
    version = RegisteredVersion(resolved.name, resolved.version, resolved.run_id, digest=resolved.digest)
    source = MlflowSource(tracking, model_name=resolved.name, alias="", legacy=None, poll_seconds=0)
    try:
        copy = source.copy(version)
        if copy is None:
            raise UsageError(f"'{uri}' has no bundle: adopt it with `iris-api adopt {uri} --sample FILE`")
        raw, seal, files = copy
        number = parse_manifest(raw).version or 0
        name = folder_name(number, sha256(raw))
        if any(entry.version == number and entry.folder.name != name for entry in entries):
            raise StoreError(f"{store.root} has another version {number}, so the bundle of {uri} was not copied")
        put_bundle(store, name, raw, seal, files)
    except BundleRefused as error:
        if error.final:
            raise StoreError(f"the bundle of {uri} was refused ({error.reason}: {error})") from error
        raise BackendUnavailable(str(error)) from error
    return number
