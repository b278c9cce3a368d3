"""Stores full of small bundles whose model is a text: what a store keeps it never opens."""

from __future__ import annotations

from typing import Any

import orjson

from serve_app.artifacts.manifest import Manifest
from serve_app.artifacts.names import JOBLIB, METRICS
from serve_app.artifacts.store import Entry, Store
from tests.support.models import bundle_manifest


def publish(store: Store, text: str = "a model", **options: Any) -> Entry:
    files = {JOBLIB: text.encode(), METRICS: orjson.dumps({"text": text})}
    return store.publish(files, bundle_manifest(text=text), **options)


def served(store: Store) -> str:
    bundle = store.current()
    assert bundle is not None
    return bundle.files[JOBLIB].decode()


def manifest_of(entry: Entry) -> Manifest:
    """The manifest of a bundle that is not damaged."""
    assert entry.manifest is not None
    return entry.manifest


def versions(store: Store) -> list[int]:
    return [entry.version for entry in store.entries()]


def what_is_there(store: Store) -> set[str]:
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.name != ".lock"}


def damage(entry: Entry, name: str = JOBLIB) -> None:
    path = entry.folder / name
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw + b"!")
