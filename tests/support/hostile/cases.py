"""Damaged and malicious bundles: each is put into a store, and says for which reasons it must be refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from serve_app.artifacts.bundle import folder_name
from serve_app.artifacts.manifest import describe, sha256
from serve_app.artifacts.names import GOLDEN, JOBLIB, MANIFEST, METRICS, ONNX
from tests.support.models import bundle_files, bundle_manifest, logistic

VERSION = 2
FILES = (JOBLIB, METRICS, GOLDEN, ONNX, MANIFEST)


@dataclass(frozen=True, slots=True)
class Case:
    """`build` puts the bundle into the store at a root and gives the pointer; `reasons` are those it may be refused for."""

    name: str
    reasons: frozenset[str]
    build: Callable[[Path], str]


def case(name: str, reasons: str, build: Callable[[Path], str]) -> Case:
    return Case(name, frozenset(reasons.split()), build)


def anything(*values: Any) -> tuple[Any, ...]:
    """These values, whose types differ on purpose."""
    return values


def put(root: Path, files: Mapping[str, bytes], manifest: bytes, *, version: int = VERSION, name: str | None = None) -> str:
    """A folder of these bytes, whatever they prove; its pointer."""
    folder = root / "bundles" / (name or folder_name(version, sha256(manifest)))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, data in {**files, MANIFEST: manifest}.items():
        (folder / file).write_bytes(data)
    return f"bundles/{folder.name}"


def good(**metadata: Any) -> tuple[dict[str, bytes], bytes]:
    """The files and the manifest of a bundle that would be served."""
    files = dict(bundle_files(logistic(0.5), onnx=True))
    return files, describe(files, bundle_manifest(**{"version": VERSION, **metadata}))


def proven(files: Mapping[str, bytes], **metadata: Any) -> Callable[[Path], str]:
    """A bundle whose digests are right: an attacker that can write the store can make one of anything."""
    document = orjson.loads(describe(files, bundle_manifest(version=VERSION)))
    return lambda root: put(root, files, orjson.dumps({**document, **metadata}))
